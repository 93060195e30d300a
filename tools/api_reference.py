"""Writes docs/api.md: every public name with its signature and docstring, read from the source without running it.

python tools/api_reference.py            # writes it
python tools/api_reference.py --check    # exits 1 where it is out of date; the tests do the same
"""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
PAGE: Final = ROOT / "docs" / "api.md"
PACKAGES: Final = ("confide", "confide.attest", "confide.rlwe", "confide.attention")
_HEAD: Final = """# Python, by name

What is public, and nothing else is: other modules change without notice. Made from the source by
`python tools/api_reference.py`; a test compares. [How to](how-to.md#from-python) has it by task.
"""
_Definition = ast.ClassDef | ast.FunctionDef


def reference() -> str:
    """The page."""
    parts = [_HEAD]
    for package in PACKAGES:
        tree = _parsed(_file(package))
        parts.append(f"## {package}\n\n{ast.get_docstring(tree)}\n")
        parts += [_entry(package, name, module) for name, module in sorted(public_names(package).items())]
    return "\n".join(parts)


def public_names(package: str) -> dict[str, str]:
    """The names that a package hands out, and the modules they are defined in, as its imports say."""
    imports = (node for node in ast.walk(_parsed(_file(package))) if isinstance(node, ast.ImportFrom))
    named = {alias.name: node.module or "" for node in imports for alias in node.names}
    exported = next(
        ast.literal_eval(node.value)
        for node in _parsed(_file(package)).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__"
    )
    return {name: named[name] for name in exported}


def _file(module: str) -> Path:
    path = ROOT / "src" / Path(*module.split("."))
    return path / "__init__.py" if path.is_dir() else path.with_suffix(".py")


def _parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def _entry(package: str, name: str, module: str) -> str:
    definition = _definition(name, module)
    parts = [f"### {package}.{name}\n", _described(definition)]
    if isinstance(definition, ast.ClassDef):
        for member in _public_members(definition):
            text = " ".join((ast.get_docstring(member) or "").split("\n\n")[0].split())
            parts.append(f"- `{_short(member)}`" + (f": {text}" if text else ""))
        if len(parts) > 2:
            parts.append("")
    return "\n".join(parts)


def _definition(name: str, module: str) -> _Definition:
    tree = _parsed(_file(module))
    for node in tree.body:
        if isinstance(node, _Definition) and node.name == name:
            return node
    moved = {alias.name: n.module for n in tree.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    return _definition(name, str(moved[name]))


def _described(definition: _Definition) -> str:
    doc = ast.get_docstring(definition) or ""
    return f"```python\n{_signature(definition)}\n```\n\n" + (f"{doc}\n" if doc else "")


def _signature(definition: _Definition) -> str:
    if isinstance(definition, ast.FunctionDef):
        return f"{definition.name}({ast.unparse(definition.args)})" + _returns(definition)
    fields = [
        ast.unparse(node)
        for node in definition.body
        if isinstance(node, ast.AnnAssign) and not ast.unparse(node.target).startswith("_")
    ]
    functions = (node for node in definition.body if isinstance(node, ast.FunctionDef))
    maker = next((function for function in functions if function.name == "__init__"), None)
    if maker is not None:
        maker.args.args = maker.args.args[1:]
        return f"{definition.name}({ast.unparse(maker.args)})"
    return f"class {definition.name}" + "".join(f"\n    {line}" for line in fields)


def _returns(function: ast.FunctionDef) -> str:
    return f" -> {ast.unparse(function.returns)}" if function.returns else ""


def _public_members(definition: ast.ClassDef) -> Iterator[ast.FunctionDef]:
    for node in definition.body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            decorators = {ast.unparse(decorator) for decorator in node.decorator_list}
            if "overload" not in decorators and not any(word.endswith(".setter") for word in decorators):
                yield node


def _short(method: ast.FunctionDef) -> str:
    decorators = {ast.unparse(decorator) for decorator in method.decorator_list}
    if decorators & {"property", "cached_property"}:
        return f"{method.name}" + _returns(method).replace(" -> ", ": ")
    if "staticmethod" not in decorators:
        method.args.args = method.args.args[1:]
    return f"{method.name}({ast.unparse(method.args)})" + _returns(method)


def main() -> int:
    """Write the page, or compare it."""
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != reference())
    PAGE.write_text(reference(), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
