"""Python sources, as tests of the code itself look at them."""

import ast
from pathlib import Path


def parsed(path: Path) -> ast.Module:
    """What the file says.

    Python 3.11 may fail where something else runs in the middle of it, a finalizer or another thread, for it counts the
    depth of all together (python/cpython#106905).
    """
    text = path.read_text(encoding="utf-8")
    for _ in range(100):
        try:
            return ast.parse(text)
        except SystemError:
            continue
    return ast.parse(text)
