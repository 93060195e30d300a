"""Every place that decodes outside bytes expects nesting that is too deep.

Decoders raise RecursionError for it, which is no ValueError. So a handler for "malformed" alone lets it through: a
traceback for users, and a connection or a request that ends in 500 for servers.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import confide
from confide.errors import ConfideError, InvalidPackage
from confide.packages.manifest import PackageKind, read_kind
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.manifest import read_signed
from confide.packages.sealed.tensors import parse_layout
from confide.packages.signing import SIGNATURE_NAME, open_package
from sources import parsed

SOURCES = Path(confide.__file__).parent
DECODERS = {"json.decode", "msgpack.decode", "toml.decode", "json.loads", "jsonlib.loads"}
OURS = {
    "cli/demo/process.py": "a process that this one started, of this very program",
    "evaluate/calibrate.py": "the same",
    "cli/proxy.py": "the same",
    "evaluate/results.py": "lines of one's own results; whoever reads them has the handler",
    "deploy/image/machine.py": "a file of the image that the program itself is in, and measured with it",
    "enclave/engines/upstream.py": "`_explained` is around every use",
    "enclave/engines/answer_text.py": "what the tokenizers library says of a tokenizer that it has read",
    "models/gguf/vocabulary.py": "what the tokenizers library has just written",
    "attest/families/dcap.py": "what dcap-qvl has parsed, verified, and written anew",
}
"""Where what is decoded was written by this process or by a library in it, and why that is so."""


def calls(tree: ast.AST, guarded: bool = False) -> Iterator[tuple[int, bool]]:
    """Lines that decode, and whether a handler for RecursionError is around them."""
    if isinstance(tree, ast.Try):
        inside = guarded or any("RecursionError" in ast.unparse(one.type) for one in tree.handlers if one.type)
        for part in tree.body:
            yield from calls(part, inside)
        for part in (*tree.handlers, *tree.orelse, *tree.finalbody):
            yield from calls(part, guarded)
        return
    if isinstance(tree, ast.Call) and any(ast.unparse(tree.func).endswith(name) for name in DECODERS):
        yield tree.lineno, guarded
    for child in ast.iter_child_nodes(tree):
        yield from calls(child, guarded)


def test_every_decoder_of_outside_bytes_expects_deep_nesting() -> None:
    bare = []
    for path in sorted(SOURCES.rglob("*.py")):
        name = path.relative_to(SOURCES).as_posix()
        if name not in OURS:
            bare += [f"{name}:{line}" for line, guarded in calls(parsed(path)) if not guarded]
    assert bare == []


DEEP = b'{"x":' + b"[" * 100_000


@pytest.mark.parametrize(
    "write",
    [
        lambda folder: (folder / "manifest.json").write_bytes(DEEP),
        lambda folder: (folder / "manifest.json").write_bytes(b'{"kind":"shell","groups":' + b"[" * 100_000),
    ],
)
@pytest.mark.parametrize("kind", [PackageKind.SHELL, PackageKind.SERVER])
def test_a_deep_manifest_is_an_invalid_package(tmp_path: Path, write: object, kind: PackageKind) -> None:
    write(tmp_path)  # type: ignore[operator]
    with pytest.raises(ConfideError):
        read_kind(tmp_path)
    with pytest.raises(ConfideError):
        open_package(tmp_path, kind, set())


def test_deep_headers_of_weights(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="too deep"):
        parse_layout(DEEP, 0)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_bytes(DEEP)
    with pytest.raises(ConfideError):
        contents_of(str(tmp_path))


def test_deep_signatures(tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_bytes(b"{}")
    (tmp_path / SIGNATURE_NAME).write_bytes(DEEP)
    with pytest.raises(InvalidPackage):
        read_signed(tmp_path, None)
