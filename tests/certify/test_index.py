"""The page of certified scores: only what is verified, and nothing of it but words."""

import base64
import hashlib
import re
from datetime import timedelta
from html.parser import HTMLParser

import pytest
from tests import hostile
from tests.certify.certificates import MEASURED, Laboratory
from tests.certify.test_certificates import approvals

from confide.attest.scores import Metric, ScoreCertificate
from confide.certify.index import Listed, page
from confide.certify.verify import verify_certificate

LATER = MEASURED + timedelta(days=900)


class Reader(HTMLParser):
    """What a browser finds: elements, attributes and words."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags, self.attributes, self.words = list[str](), list[tuple[str, str | None]](), ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.words += data


def listed(laboratory: Laboratory, certificate: ScoreCertificate, file: str = "a.json") -> Listed:
    return Listed(file, certificate, verify_certificate(certificate, laboratory.verifier, laboratory.policy, LATER))


def test_verified_scores_are_listed_the_better_first(laboratory: Laboratory) -> None:
    run = laboratory.run(metric=Metric.ACCURACY, dataset="12" * 32)
    shares = [laboratory.certificate(run, value=value, attested=laboratory.attested(run)) for value in (0.25, 0.75)]
    made = [
        laboratory.certificate(value=55),
        laboratory.certificate(value=40, approvals=approvals(laboratory)),
        *shares,
    ]
    rows = re.findall(
        r'<td class="number">([0-9.]+)', page([listed(laboratory, one) for one in made], "2026-11-29", "ab")
    )
    assert rows == ["0.75", "0.25", "40", "55"]


def test_what_is_not_verified_is_not_listed(laboratory: Laboratory) -> None:
    forged = laboratory.certificate(value=1, attested=laboratory.attested(laboratory.run(nonce="11" * 32)))
    text = page([listed(laboratory, forged)], "2026-11-29", "ab")
    assert "No certificate is verified" in text
    assert "demo" not in text


def test_simulated_scores_say_so_first(laboratory: Laboratory) -> None:
    text = page([listed(laboratory, laboratory.certificate())], "2026-11-29", "ab")
    assert text.index("SIMULATED") < text.index("<table>")
    assert "SIMULATED" not in page([], "2026-11-29", "ab")


@pytest.mark.parametrize("words", [*hostile.WORDS, '"><script>alert(1)</script>', "<img src=x onerror=y>", "{style}"])
def test_a_model_s_name_is_words(laboratory: Laboratory, words: str) -> None:
    made = laboratory.certificate()
    named = ScoreCertificate(words, made.predicate, made.payload, made.signature)
    plain, found = (
        Reader(page([listed(laboratory, one, file)], "2026-11-29", "ab"))
        for one, file in ((made, "a.json"), (named, f"{words}.json"))
    )
    assert (found.tags, found.attributes) == (plain.tags, plain.attributes)
    assert hostile.is_clean(found.words, "\n")


def test_the_page_asks_nobody_and_runs_nothing(laboratory: Laboratory) -> None:
    text = page([listed(laboratory, laboratory.certificate())], "2026-11-29", "ab")
    found = Reader(text)
    assert not {"script", "link", "img", "iframe", "form", "a"} & set(found.tags)
    assert not {name for name, _ in found.attributes} & {"src", "href", "style"}
    assert not [name for name, _ in found.attributes if name.startswith("on")]
    assert "http" not in text.replace("http-equiv", "")
    (policy,) = [value for name, value in found.attributes if name == "content" and value and "default-src" in value]
    (style,) = re.findall(r"<style>(.*?)</style>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert policy == f"default-src 'none'; style-src 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
