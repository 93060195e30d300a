"""TOML from strangers, bounded before Python's reader sees it: that takes the square of the parts of a dotted key."""

import re
from typing import Final

from confide.errors import ConfideError

MAX_KEY_PARTS: Final = 8
"""Of a dotted key or a table's name; our formats and those that we check need four."""

_OPENING: Final = frozenset("=[{")
_TOKEN: Final = re.compile(
    r"(?P<string>"
    r'"""(?:[^"\\]|\\.|"{1,2}(?!"))*+"""(?:"{1,2}(?!"))?'
    r"|'''(?:[^']|'{1,2}(?!'))*+'''(?:'{1,2}(?!'))?"
    r'|"(?:[^"\\\n]|\\[^\n])*+"'
    r"|'[^'\n]*+')"
    r"|(?P<comment>\#[^\n]*+)"
    r"|(?P<dot>\.)"
    r"|(?P<mark>[=\[\]{},\n])"
    r"""|(?P<other>[^"'\#.=\[\]{},\n]++)""",
    re.DOTALL,
)
"""TOML 1.0, as far as it takes to tell a dot of a key from any other. Possessive: never back over what was matched."""


def require_shallow(text: str, what: str, error: type[ConfideError], max_marks: int) -> None:
    """`error`, which names the text `what`, for a key of more than MAX_KEY_PARTS, or a quote that nothing closes.

    max_marks: keys, tables, arrays and inline tables, each of which costs the reader far more than a character of a
    text does. Linear in the text.
    """
    dots = at = marks = 0
    while at < len(text):
        token = _TOKEN.match(text, at)
        if token is None:
            line = text.count("\n", 0, at) + 1
            raise error(f"{what} opens a quote on line {line} that is never closed; close it.")
        at = token.end()
        match token.lastgroup:
            case "dot":
                dots += 1
            case "mark":
                dots = 0
                marks += token.group() in _OPENING
        if dots >= MAX_KEY_PARTS:
            raise error(f"A key has more than {MAX_KEY_PARTS} parts; write it as tables.")
        if marks > max_marks:
            raise error(f"{what} has more than {max_marks} keys and tables; none needs so many.")
