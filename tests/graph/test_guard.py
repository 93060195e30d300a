"""A guard's rules: what is a phrase, where it is found, and whose they are."""

from pathlib import Path

import httpx
import msgspec
import pytest

from confide.enclave.api.guard import Guarding
from confide.errors import ConfideError, InvalidPackage, PromptRefused, RequestRefused, UntrustedOwner
from confide.packages.guard import MAX_PHRASES, MAX_WORDS, GuardPackage, Rules, parse_guard_manifest, sign_rules
from confide.packages.manifest import MANIFEST_NAME, PackageKind, read_kind

from .graphs import ALICE, MALLORY
from .scene import RULES


@pytest.fixture
def package(tmp_path: Path) -> GuardPackage:
    sign_rules(RULES, tmp_path / "guard", ALICE)
    return GuardPackage.open(tmp_path / "guard")


@pytest.mark.parametrize(
    "text",
    [
        "open sesame",
        "Please OPEN,\n  sesame!",
        "o\u200bpen ses\u00adame",
        "\uff4f\uff50\uff45\uff4e sesame",
        "open_sesame",
        "open open sesame",
        "dynamit",
        "Dynamite",
        "ok: DYNAMITING",
    ],
    ids=["plain", "marks", "invisible", "wide", "underscore", "again", "exact", "rest", "case"],
)
def test_a_phrase_is_found(text: str) -> None:
    assert Rules(["open sesame", "dynamit*"]).match(text)


@pytest.mark.parametrize(
    "text", ["", "open", "sesame open", "open the sesame", "reopen sesame", "open sesames", "dynami", "a dynamo"],
    ids=range(8),
)  # fmt: skip
def test_what_is_no_phrase_is_handed_on(text: str) -> None:
    assert not Rules(["open sesame", "dynamit*"]).match(text)


def test_phrases_that_begin_alike_are_all_looked_for() -> None:
    rules = Rules(["a b c d", "a b", "b c*", "x y z"])
    assert [rules.match(text) for text in ("a b", "a c", "q b cat", "x y", "x x y z", "a x y")] == [
        True, False, True, False, True, False,
    ]  # fmt: skip


@pytest.mark.parametrize(
    "phrase", ["", "!", "*", "a *", "a* b", "a**", "x" * 65, " ".join("x" * (MAX_WORDS + 1))], ids=range(8)
)
def test_what_is_no_phrase_is_no_rule(phrase: str) -> None:
    with pytest.raises(InvalidPackage):
        Rules([phrase])


def test_a_long_text_against_many_phrases_takes_no_long_time() -> None:
    """All phrases begin with the text's only word: a comparison of each at every place would take minutes."""
    rules = Rules([f"a a a a a a a b{number}" for number in range(MAX_PHRASES)])
    assert not rules.match("a " * 20_000)


def test_a_guard_reads_texts_alone(package: GuardPackage) -> None:
    guarding = Guarding(package, httpx.AsyncClient())
    guarding.require_allowed(b'{"prompt": ["hello"], "max_tokens": 5, "logit_bias": {"5": 1}}')
    for body in (b'{"prompt": [1, 2]}', b'{"prompt": [[1]]}', b'{"input": 1}', b'{"prompt": "a", "prompt": "b"}'):
        with pytest.raises(RequestRefused):
            guarding.require_allowed(body)
    for body in (b'{"x": {"y": ["Open sesame"]}}', b'{"open sesame": 1}', b'{"x": "open \\u0073esame"}'):
        with pytest.raises(PromptRefused, match="does not talk about that"):
            guarding.require_allowed(body)


def test_rules_that_were_changed_are_not_taken(package: GuardPackage, tmp_path: Path) -> None:
    folder = tmp_path / "guard"
    assert read_kind(folder) is PackageKind.GUARD
    assert GuardPackage.open(folder, [ALICE.public]).owner == ALICE.public
    with pytest.raises(UntrustedOwner):
        GuardPackage.open(folder, [MALLORY.public])
    (folder / "more").write_text("x")
    with pytest.raises(InvalidPackage, match="not part of the rules"):
        GuardPackage.open(folder)
    (folder / "more").unlink()
    path = folder / MANIFEST_NAME
    path.write_bytes(path.read_bytes().replace(b"sesame", b"sesamo"))
    with pytest.raises(InvalidPackage, match="changed after its owner signed it"):
        GuardPackage.open(folder)


def test_the_digest_is_of_what_the_rules_do(package: GuardPackage) -> None:
    manifest = package.manifest
    for change in ({"name": "other"}, {"refusal": "No."}, {"phrases": ("open sesame",)}):
        assert msgspec.structs.replace(manifest, **change).digest != manifest.digest  # type: ignore[arg-type]
    assert msgspec.structs.replace(manifest).digest == manifest.digest


@pytest.mark.parametrize(
    "draft", ["", "confide-guard = 2", RULES + "more = 1\n", RULES.replace('"open sesame", ', '"", '), "x = [" * 9000],
    ids=["empty", "newer", "more", "blank", "deep"],
)  # fmt: skip
def test_a_file_that_holds_no_rules_is_not_signed(draft: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage):
        sign_rules(draft, tmp_path / "guard", ALICE)
    assert not (tmp_path / "guard").exists()


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"x" * (3 << 20)], ids=range(4))
def test_what_are_no_rules_is_refused(content: bytes) -> None:
    with pytest.raises(ConfideError):
        parse_guard_manifest(content)
