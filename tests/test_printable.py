"""One way for a peer's words to the terminal."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.printable import REPLACEMENT, printable


@pytest.mark.parametrize(
    "character",
    [
        "\x1b",
        "\x9b",
        "\r",
        "\n",
        "\t",
        "\0",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u200f",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\u2029",
        "\ud800",
        "\ue000",
        "\U000e0001",
    ],
)
def test_what_acts_on_a_terminal_or_misleads_is_replaced_visibly(character: str) -> None:
    assert printable(f"a{character}b") == f"a{REPLACEMENT}b"


def test_words_of_any_language_stay() -> None:
    for text in ("plain text, 1 < 2", "Grüße", "日本語", "עברית", "a\N{COMBINING ACUTE ACCENT}", "🙂", ""):
        assert printable(text) == text


def test_spaces_of_any_width_are_spaces() -> None:
    assert printable("a\N{NO-BREAK SPACE}b\N{IDEOGRAPHIC SPACE}c\N{NARROW NO-BREAK SPACE}d e") == "a b c d e"


def test_what_is_kept() -> None:
    assert printable("a\n\tb\r\x1b[31m", keep="\n\t") == f"a\n\tb{REPLACEMENT}{REPLACEMENT}[31m"


@given(st.text(), st.sampled_from(["", "\n", "\n\t"]))
def test_any_text(text: str, keep: str) -> None:
    shown = printable(text, keep=keep)
    assert len(shown) == len(text)
    assert printable(shown, keep=keep) == shown
    assert "\N{NO-BREAK SPACE}" not in shown
    assert all(unicodedata.category(one)[0] not in "CZ" for one in shown if one not in (*keep, " "))
