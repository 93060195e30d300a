"""No test, fuzz target, benchmark, tool or example reaches into another module's privates.

Each goes the way that production goes, or by a documented name.
"""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from sources import parsed

ROOT = Path(__file__).parents[1]
PRIVATE = re.compile(r"_[A-Za-z0-9]\w*")
NOT_OURS = {
    "_exit",  # os: what a child of a fork ends with
    "_replace",  # of named tuples
    "_commit_hash",  # of transformers' configurations
    "_attn_implementation",  # the same
    "_type",  # data: of in-toto statements
}
"""Names of the standard library and of others, which have no public way."""


def of_the_package() -> set[str]:
    """Every private name in it, of functions, classes, values and attributes."""
    names = set()
    for path in (ROOT / "src").rglob("*.py"):
        for node in ast.walk(parsed(path)):
            match node:
                case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                    names.add(name)
                case ast.Name(id=name) | ast.Attribute(attr=name):
                    names.add(name)
    return {name for name in names if PRIVATE.fullmatch(name)} - NOT_OURS


def reached(tree: ast.AST, names: set[str]) -> Iterator[tuple[int, str]]:
    """Where a module asks anything but itself for one of these names, in code or by a string such as setattr takes."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="self" | "cls")):
                continue
            case ast.Attribute(attr=name) if name in names:
                yield node.lineno, name
            case ast.ImportFrom(module=module) if module and module.startswith("confide"):
                yield from ((node.lineno, each.name) for each in node.names if PRIVATE.fullmatch(each.name))
            case ast.Call(func=func, args=args) if "attr" in ast.unparse(func) or "patch" in ast.unparse(func):
                for given in args:
                    if isinstance(given, ast.Constant) and isinstance(given.value, str):
                        last = given.value.rpartition(".")[2]
                        if last in names:
                            yield node.lineno, last


def test_no_test_reaches_into_privates() -> None:
    names = of_the_package()
    assert len(names) > 500
    found = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for folder in ("tests", "fuzz", "benchmarks", "tools", "examples")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line, name in reached(parsed(path), names)
    ]
    assert found == []


def test_each_way_in_is_noticed() -> None:
    for code in (
        "ledger._store",
        "a.b()._store.c",
        "from confide.rlwe.gemm import _seconds",
        "monkeypatch.setattr(module, '_store', None)",
        "monkeypatch.setattr('confide.disk._store', None)",
        "getattr(ledger, '_store')",
        "patch.object(ledger, '_store')",
    ):
        assert list(reached(ast.parse(code), {"_store"})), code
    assert not list(reached(ast.parse("self._store; os._exit(1); _store = 3"), {"_store"}))
