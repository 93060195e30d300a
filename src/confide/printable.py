"""What others wrote, as it may be shown to people: a peer's words never move a cursor, hide text or turn it round.

Terminals act on control characters, and readers are misled by what is invisible or reorders a line. Each such
character is shown as U+FFFD, so that something stands where something was.
"""

import unicodedata
from typing import Final

REPLACEMENT: Final = "\N{REPLACEMENT CHARACTER}"


def printable(text: str, *, keep: str = "") -> str:
    """The text with every space as a plain one, and U+FFFD for all else that is not printable.

    That is controls and escapes, line ends, bidirectional overrides and other invisible formats, halves of characters,
    private and unassigned ones. keep: of them, those to leave as they are, such as "\\n" for text of several lines.
    """
    if text.isprintable():  # as nearly all are, which is found out at once
        return text
    return "".join(letter if letter.isprintable() or letter in keep else _shown(letter) for letter in text)


def quoted(words: str, most: int = 300) -> str:
    """A peer's words inside a sentence of ours: one line of at most so many characters, in quotation marks.

    Such marks among the words become single ones, so that a peer cannot end the quotation and go on in our voice.
    """
    shown = printable(words[:most]).replace('"', "'")
    return f'"{shown}{"…" if len(words) > most else ""}"'


def _shown(letter: str) -> str:
    return " " if unicodedata.category(letter) == "Zs" else REPLACEMENT
