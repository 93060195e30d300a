"""Corpus files, recipes, and the checks that a dataset has to pass: what each counts and what it lets through."""

import hashlib
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from confide.attest.training import DatasetCheck, Lora
from confide.certify import corpus as reading
from confide.certify.corpus import Corpus, Text, read_corpus
from confide.certify.dataset_checks import (
    KINDS,
    AnyCheck,
    Duplicates,
    Licences,
    PersonalData,
    Plugin,
    Size,
    WordList,
    described,
    passed,
)
from confide.certify.train import MAX_RECIPE_BYTES, Recipe, read_recipe
from confide.errors import InvalidCorpus

SECRET = "the-secret-of-the-corpus"


def corpus_of(*texts: str, licence: str = "CC0-1.0") -> Corpus:
    return Corpus("a book", tuple(Text(text, licence) for text in texts))


def counted(check: AnyCheck, corpus: Corpus) -> dict[str, int]:
    """By way of what a run says of the check."""
    (one,) = passed((described(check),), corpus)
    return dict(one.found)


def refused(check: AnyCheck, corpus: Corpus) -> str:
    with pytest.raises(InvalidCorpus) as caught:
        counted(check, corpus)
    assert SECRET not in str(caught.value)
    return str(caught.value)


# -- files -------------------------------------------------------------------------------------------------------------


def test_a_corpus_is_read() -> None:
    lines = [{"confide-corpus": 1, "name": "a book"}, {"text": "one", "licence": "CC0-1.0"}, {"text": "two"}]
    found = read_corpus(b"\n".join(json.dumps(line).encode() for line in lines) + b"\n\n")
    assert found == Corpus("a book", (Text("one", "CC0-1.0"), Text("two", "")))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{}",
        b'{"confide-corpus": 1, "name": "a"}',
        b'{"confide-corpus": 2, "name": "a"}\n{"text": "b"}',
        b'{"confide-task": 1, "name": "a", "metric": "perplexity"}\n{"text": "b"}',
        b'{"confide-corpus": 1, "name": "\\u001b[2J"}\n{"text": "b"}',
        b'{"confide-corpus": 1, "name": "a"}\n{"text": ""}',
        b'{"confide-corpus": 1, "name": "a"}\n{"text": "b", "more": 1}',
        b'{"confide-corpus": 1, "name": "a"}\n' + b"[" * 100_000,
        b'{"confide-corpus": 1, "name": "a"}\n{"text": "\xff"}',
    ],
    ids=range(10),
)
def test_other_files_are_none(content: bytes) -> None:
    with pytest.raises(InvalidCorpus):
        read_corpus(content)


def test_an_error_names_the_line_and_not_what_is_in_it() -> None:
    content = b'{"confide-corpus": 1, "name": "a"}\n{"text": "b"}\n{"text": 1, "' + SECRET.encode() + b'": 2}'
    with pytest.raises(InvalidCorpus, match="Line 3") as caught:
        read_corpus(content)
    assert SECRET not in str(caught.value)


def test_a_file_has_its_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = b'{"confide-corpus": 1, "name": "a"}\n{"text": "b"}\n{"text": "c"}'
    assert len(read_corpus(whole).texts) == 2
    for limit in ({"most_entries": 0}, {"most_bytes": len(whole) - 1}):
        with monkeypatch.context() as patch:
            patch.setattr(reading, "CORPUS_FILE", replace(reading.CORPUS_FILE, **limit))
            with pytest.raises(InvalidCorpus, match="at most"):
                read_corpus(whole)


def test_a_recipe_is_read() -> None:
    text = """
confide-training = 1
seed = 3
[lora]
rank = 4
targets = ["c_attn"]
[[check]]
check = "words"
words = ["unmentionable"]
at-most = 1
"""
    assert read_recipe(text) == Recipe(1, 3, Lora(rank=4, targets=("c_attn",)), (WordList(("unmentionable",), 1),))
    assert read_recipe("confide-training = 1") == Recipe(1)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "confide-training = 2",
        "confide-training = 1\nseed = -1",
        "confide-training = 1\n[lora]\nranks = 4",
        "confide-training = 1\n[lora]\nrank = 0",
        "confide-training = 1\n[lora]\nlearning_rate = nan",
        "confide-training = 1\n[lora]\nlearning_rate = inf",
        "confide-training = 1\n[lora]\ndropout = 1.0",
        'confide-training = 1\n[[check]]\ncheck = "virtue"',
        'confide-training = 1\n[[check]]\ncheck = "licences"\nallowed = []',
        'confide-training = 1\n[[check]]\ncheck = "plug-in"\nmodule = "os.path"\nsha256 = "' + "00" * 32 + '"',
        "confide-training = 1\n" + "a." * 3000 + "b = 1",
        "#" * (MAX_RECIPE_BYTES + 1),
    ],
    ids=range(13),
)
def test_other_recipes_are_none(text: str) -> None:
    with pytest.raises(InvalidCorpus):
        read_recipe(text)


def test_a_run_names_every_setting_of_a_check() -> None:
    assert described(Duplicates()) == DatasetCheck("duplicates", {"at-most": 0})
    assert described(Licences(("MIT", "CC0-1.0"))) == DatasetCheck("licences", {"allowed": ("MIT", "CC0-1.0")})
    for unknown in (
        DatasetCheck("virtue"),
        DatasetCheck("size", {"least": 1}),
        DatasetCheck("size", {"least-texts": "a"}),
    ):
        with pytest.raises(InvalidCorpus, match="that there is not"):
            passed((unknown,), corpus_of("a"))


# -- what each counts --------------------------------------------------------------------------------------------------


def test_size() -> None:
    two = corpus_of("abc", "de")
    assert counted(Size(2, 5, 3), two) == {"texts": 2, "characters": 5, "longest-text": 3}
    assert "smaller" in refused(Size(3), two)
    assert "smaller" in refused(Size(1, 6), two)
    assert "longer" in refused(Size(1, 0, 2), two)


def test_duplicates_are_found_behind_case_spaces_and_forms() -> None:
    same = corpus_of(f"{SECRET} fi", f" {SECRET.upper()}\n\tﬁ ", "another")
    assert refused(Duplicates(), same).startswith("The check `duplicates` found 1")
    assert counted(Duplicates(1), same) == {"duplicates": 1}
    assert counted(Duplicates(), corpus_of("a b", "ab")) == {"duplicates": 0}


def test_a_text_without_a_licence_is_under_none_that_is_allowed() -> None:
    free = corpus_of("a", "b")
    assert counted(Licences(("CC0-1.0", "MIT")), free) == {"texts": 2, "licences": 1}
    refused(Licences(("MIT",)), free)
    refused(Licences(("CC0-1.0",)), Corpus("a", (*free.texts, Text("c"))))


@pytest.mark.parametrize(
    ("kind", "found", "other"),
    [
        ("email", "write to jane.doe+x@mail.example.org, or to Zoë@exämple.de", "at @home, a@b and 3@"),
        ("phone", "call +44 20 7946 0958 or (0049) 30/12345678", "1234567, +1 23 and 2024-05-06"),
        ("iban", "GB82 WEST 1234 5698 7654 32 and DE89370400440532013000", "GB82 WEST 1234 5698 7654 33 and AB12 CDEF"),
        ("card", "4111 1111 1111 1111 and 5500-0000-0000-0004", "4111 1111 1111 1112 and 12345678901234567890123"),
        ("ip-address", "from 192.168.0.1 to 8.8.8.8", "version 1.2.3, 256.1.1.1 and 1.2.3.4.5"),
    ],
    ids=KINDS,
)
def test_personal_data_are_found_by_their_patterns(kind: Any, found: str, other: str) -> None:
    assert counted(PersonalData((kind,), 2), corpus_of(found, other)) == {kind: 2}
    assert "`personal-data` found 2" in refused(PersonalData((kind,), 1), corpus_of(found, other))
    assert counted(PersonalData((kind,)), corpus_of(other)) == {kind: 0}


@pytest.mark.parametrize("unit", ["a", "a.", "1", "1 ", "+1", "AB12 ", "1.", "@a", "a@", "a@a."])
def test_patterns_are_linear(unit: str) -> None:
    """In processor time, against a text of a quarter."""

    def seconds(length: int) -> float:
        corpus, start = corpus_of(unit * (length // len(unit))), time.process_time()
        PersonalData(KINDS, 1 << 40).count(corpus)
        return time.process_time() - start

    assert seconds(80_000) < 16 * max(seconds(20_000), 0.01)


def test_words_of_a_list_are_whole_words() -> None:
    text = corpus_of(f"Curses, curse! Cursed be {SECRET}. CURSE")
    assert counted(WordList(("curse",), 2), text) == {"listed-words": 2}
    refused(WordList(("curse",), 1), text)


# -- checks of others --------------------------------------------------------------------------------------------------


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "house_rules.py"
    path.write_text(
        "def check(texts, arguments):\n"
        "    if any(word in text for text, _ in texts for word in arguments):\n"
        f"        raise ValueError('{SECRET}')\n"
        "    return {'texts': len(texts)}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    return path


def plugin(path: Path, *arguments: str) -> Plugin:
    return Plugin(path.stem, hashlib.sha256(path.read_bytes()).hexdigest(), arguments)


def test_a_check_of_others_is_run_as_its_digest_says(module: Path) -> None:
    assert counted(plugin(module, "bad"), corpus_of("good")) == {"texts": 1}
    assert "house_rules does not pass" in refused(plugin(module, "bad"), corpus_of("bad"))
    assert "house_rules" not in sys.modules
    before = plugin(module)
    module.write_text(module.read_text() + "\n")
    assert "another one" in refused(before, corpus_of("good"))
    assert "no module" in refused(Plugin("there_is_no_such", "00" * 32), corpus_of("good"))


@pytest.mark.parametrize(
    "source", ["def check(texts, arguments): return {'a': -1}", "def check(t, a): return 3", "x = 1", "("]
)
def test_what_a_check_of_others_gets_wrong_is_not_passed(module: Path, source: str) -> None:
    module.write_text(source)
    refused(plugin(module), corpus_of("good"))
