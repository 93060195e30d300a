"""Tables of results for other programs."""

import csv
import io

from confide.evaluate.export import Row, as_csv, as_latex, rows

FOUND = {
    "fp32": {"top_1": {"agreement": {"value": 1.0, "low": 0.5, "high": 1.5}, "tokens": 7}},
    "w4 100%": {"perplexity": {"value": 0.1 + 0.2, "low": 0.25, "high": 0.375}},
}
SETTINGS = {"text or limit": "a" * 64, "weight bits": "4 mlp=2"}
ROWS = [Row("fp32", "top_1.agreement", 1.0, 0.5, 1.5), Row("w4 100%", "perplexity", 0.1 + 0.2, 0.25, 0.375)]


def test_every_estimate_is_a_row() -> None:
    assert rows(FOUND) == ROWS


def test_csv_keeps_every_bit_and_says_of_what_it_is() -> None:
    lines = list(csv.DictReader(io.StringIO(as_csv(ROWS, SETTINGS))))
    assert float(lines[1]["value"]) == 0.1 + 0.2
    assert all(line["text_or_limit"] == "a" * 64 and line["weight_bits"] == "4 mlp=2" for line in lines)


def test_latex_is_escaped_and_says_of_what_it_is() -> None:
    text = as_latex(ROWS, SETTINGS | {"model": "two\nlines"}, r"a_b & 5% of {x} \ ~")
    assert "% weight bits: 4 mlp=2\n" in text
    assert "% model: two lines\n" in text
    assert r"w4 100\% & perplexity & 0.3 & [0.25, 0.375] \\" in text
    assert r"top\_1.agreement" in text
    assert r"\caption{a\_b \& 5\% of \{x\} \textbackslash{} \textasciitilde{}}" in text
