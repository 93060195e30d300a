"""The table of error codes: every one that a person can meet is in it, once, with its class."""

import re
from pathlib import Path

from tests import hostile

PAGE = Path(__file__).parents[1] / "docs" / "how-to.md"
ROW = re.compile(r"^\| `([a-z0-9-]+)` \| `(\w+)` \| ([^|]+) \| ([^|]+) \|$", re.MULTILINE)


def test_every_code_is_in_the_table() -> None:
    rows = [(row[1], row[2]) for row in ROW.finditer(PAGE.read_text(encoding="utf-8"))]
    assert sorted(rows) == sorted((kind.code, kind.__name__) for kind in hostile.kinds())


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in hostile.kinds()]
    assert len(set(codes)) == len(codes)
