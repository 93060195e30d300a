"""`confide evaluate` as a person runs it: results, charts, interruptions, and what is refused."""

import csv
import hashlib
import json
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from .command import run

TEXT = "The old king called his three sons and said to them, I will give thee a good one, and they went home. " * 30
LIMITS = ("--context", 32, "--windows", 6)
SHORT = ("--context", 32, "--windows", 3)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "tale.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def evaluate(*arguments: object, check: int = 0) -> str:
    done = run("evaluate", *arguments)
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def answer(*arguments: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run("evaluate", *arguments, "--json").stdout)
    return found


@pytest.fixture(scope="module")
def results(text: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A folder with the results of an evaluation, and what it said."""
    out = tmp_path_factory.mktemp("results")
    return out, answer("perplexity", "demo", text, *LIMITS, "--out", out)


def test_perplexity_of_three_models(text: Path, results: tuple[Path, dict[str, Any]]) -> None:
    out, found = results
    assert (found["windows"], found["context"], found["scored_tokens"]) == (6, 32, 6 * 31)
    assert found["identical"] is True
    models = found["models"]
    assert list(models) == ["fp32", "quantized", "simulated"]
    assert models["simulated"] == models["quantized"] != models["fp32"]
    assert models["quantized"]["ratio"]["value"] == pytest.approx(1, abs=0.005)
    assert models["fp32"]["ratio"] == {"value": 1, "low": 1, "high": 1}
    assert json.loads((out / "perplexity.json").read_text()) == found
    assert found["text_sha256"] == hashlib.sha256(text.read_bytes()).hexdigest()
    assert {"confide", "torch", "transformers"} == found["versions"].keys()
    assert (found["protect"], found["weight_bits"], found["measured"][-1]) == ("all", None, "Z")
    lines = list(csv.DictReader((out / "perplexity.csv").open()))
    assert [(line["variant"], line["quantity"]) for line in lines[:2]] == [("fp32", "perplexity"), ("fp32", "ratio")]
    assert float(lines[0]["value"]) == models["fp32"]["perplexity"]["value"]
    assert {(line["text_sha256"], line["protected_layers"]) for line in lines} == {(found["text_sha256"], "all")}
    latex = (out / "perplexity.tex").read_text()
    assert f"% text sha256: {found['text_sha256']}" in latex
    assert latex.count(r" \\") == 1 + len(lines)
    assert (out / "perplexity.png").read_bytes().startswith(b"\x89PNG")


def test_agreement_for_people(text: Path) -> None:
    shown = evaluate("agreement", "demo", text, *SHORT, "--top-k", "5,1")
    assert "identical" in shown
    assert "too narrow" in shown
    assert "…" not in shown
    rows = [line.split()[:2] for line in shown.splitlines() if line.startswith(("fp32", "quant", "simul"))]
    assert rows == [["fp32", "1"], ["quantized", "1"], ["simulated", "1"]]


def test_a_sweep_draws_accuracy_against_bits(text: Path, tmp_path: Path) -> None:
    found = answer("agreement", "demo", text, *SHORT, "--top-k", "1", "--sweep-bits", "2:4", "--out", tmp_path)
    shares = [found["models"][f"{bits} bits"]["top_1"]["agreement"]["value"] for bits in (2, 3, 4)]
    assert 0.2 < shares[0] < shares[1] < shares[2] <= 1
    assert "identical" not in found
    assert (tmp_path / "agreement-sweep.png").stat().st_size > 10_000


@pytest.mark.slow
def test_what_ctrl_c_stops_goes_on_with_the_same_command(text: Path, tmp_path: Path) -> None:
    options = ("perplexity", "demo", str(text), "--context", "32", "--windows", "24", "--out", str(tmp_path))
    state = tmp_path / "perplexity.jsonl"
    command = [sys.executable, "-m", "confide", "evaluate", *options]
    # Tests that run in the background ignore SIGINT, and what they start would inherit that.
    heeding = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, stderr=subprocess.PIPE, preexec_fn=heeding)
    while not state.exists() or state.read_bytes().count(b"\n") < 3:
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 130, errors
    assert b"goes on from there" in b" ".join(errors.split())
    kept = state.read_bytes()
    assert not (tmp_path / "perplexity.json").exists()
    found = answer(*options)
    assert found["identical"] is True
    assert state.read_bytes().startswith(kept[: kept.rfind(b"\n") + 1])
    assert state.read_bytes().count(b"\n") == 1 + 3 * found["windows"]


def test_results_of_other_settings_are_refused(text: Path, results: tuple[Path, dict[str, Any]]) -> None:
    for other in (("--context", 16), ("--weight-bits", 4)):
        shown = evaluate("perplexity", "demo", text, *LIMITS, *other, "--out", results[0], check=1)
        assert "another" in shown
        assert "choose another --out" in " ".join(shown.split())


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--sweep-bits", "2:8"), "--out"),
        (("--sweep-bits", "8:2", "--out", "x"), "such as 2:8"),
        (("--sweep-bits", "2:8", "--weight-bits", "4", "--out", "x"), "either --weight-bits or --sweep-bits"),
        (("--top-k", "0"), "--top-k"),
        (("--top-k", "1,"), "--top-k"),
    ],
)
def test_wrong_usage(text: Path, options: tuple[str, ...], reason: str) -> None:
    assert reason in " ".join(evaluate("agreement", "demo", text, *options, check=2).split()).replace("│ ", "")


def test_what_cannot_be_evaluated(text: Path, tmp_path: Path) -> None:
    assert "at most" in evaluate("perplexity", "demo", text, "--context", 513, check=1)
    assert "no-such-layer" in evaluate("perplexity", "demo", text, "--protect", "no-such-layer", check=1)
    latin = tmp_path / "latin.txt"
    latin.write_bytes("Königin".encode("latin-1") * 100)
    assert "UTF-8" in evaluate("perplexity", "demo", latin, check=1)
    short = tmp_path / "short.txt"
    short.write_text("Once upon a time")
    assert "longer text" in evaluate("perplexity", "demo", short, check=1)


STUDY = ("attention", "demo", "--bits", "3:4", "--sentences", 6, "--tokens", 8)


@pytest.mark.slow
def test_bits_of_attention(tmp_path: Path) -> None:
    found = answer(*STUDY, "--out", tmp_path)
    assert (found["sentences"], found["scored_tokens"], found["layers"]) == (6, 6 * 7, [0])
    assert {name: list(by_bits) for name, by_bits in found["heads"].items()} == {
        "head 0": ["3", "4"],
        "all heads": ["3", "4"],
    }
    assert list(found["heads"]["head 0"]["3"]) == ["top_1", "top_5", "top_10"]
    assert 0.2 < found["heads"]["all heads"]["3"]["top_1"]["value"] < 1
    assert json.loads((tmp_path / "attention.json").read_text()) == found
    assert (tmp_path / "attention.png").read_bytes().startswith(b"\x89PNG")
    table = list(csv.DictReader((tmp_path / "attention.csv").open()))
    one = next(row for row in table if (row["variant"], row["quantity"]) == ("all heads, 3 bits", "top_1"))
    assert float(one["value"]) == found["heads"]["all heads"]["3"]["top_1"]["value"]
    assert (one["text_sha256"], one["confide"]) == (found["text_sha256"], found["versions"]["confide"])
    assert "all heads, 3 bits & top\\_1" in (tmp_path / "attention.tex").read_text()
    shown = evaluate(*STUDY, "--out", tmp_path)
    assert "42 tokens in 6 sentences" in shown
    assert "…" not in shown
    assert "another" in evaluate(*STUDY, "--layers", 1, "--out", tmp_path, check=1)


def test_bits_of_attention_on_a_text(text: Path) -> None:
    found = answer(*STUDY, text, "--heads", "1,2", "--layers", "0,2")
    assert found["text"] == "tale.txt"
    assert list(found["heads"]) == ["heads 1, 2"]


@pytest.mark.parametrize(("options", "reason"), [(("--heads", "x"), "such as 0,3"), (("--bits", "5"), "such as 2:8")])
def test_wrong_choices_of_attention(options: tuple[str, str], reason: str) -> None:
    assert reason in " ".join(evaluate("attention", "demo", *options, check=2).split()).replace("│ ", "")
