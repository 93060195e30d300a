import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import InvalidPackage
from confide.packages import manifest as package
from confide.packages.manifest import Manifest, ModelDigest, read_manifest
from confide.rlwe.parameters import Profile

SERVER: dict[str, Any] = {
    "format": 3,
    "kind": "hybrid-server",
    "profile": "private-weights",
    "model_type": "llama",
    "model_digest": "ab" * 32,
    "groups": [
        {
            "name": "layers.0.qkv",
            "layers": [{"name": "layers.0.q", "rows": 16}, {"name": "layers.0.k", "rows": 8}],
            "columns": 32,
            "activation_bits": 14,
            "plaintext_bits": 30,
            "entropy_bits": 200.5,
        },
        {
            "name": "layers.0.o",
            "layers": [{"name": "layers.0.o", "rows": 32}],
            "columns": 16,
            "activation_bits": 15,
            "plaintext_bits": 28,
            "entropy_bits": 96.0,
        },
    ],
    "files": {"group-00000.safetensors": "cd" * 32, "templates/chat-1.jinja": "ef" * 32},
    "epoch": 3,
    "hint": {"hint/group-00000.bin": "01" * 32, "hint/group-00001.bin": "23" * 32},
}


def changed(path: str, value: object) -> dict[str, Any]:
    """SERVER with one value replaced, or removed where it is `...`."""
    copy: Any = msgspec.json.decode(msgspec.json.encode(SERVER))
    *parents, leaf = [int(part) if part.isdigit() else part for part in path.split("/")]
    place = copy
    for part in parents:
        place = place[part]
    if value is ...:
        del place[leaf]
    else:
        place[leaf] = value
    result: dict[str, Any] = copy
    return result


def read(folder: Path, content: bytes | dict[str, Any]) -> Manifest:
    data = content if isinstance(content, bytes) else msgspec.json.encode(content)
    (folder / "manifest.json").write_bytes(data)
    return read_manifest(folder)


def test_a_table_is_read_back(tmp_path: Path) -> None:
    manifest = read(tmp_path, SERVER)
    assert [group.rows for group in manifest.groups] == [24, 32]
    parameters = manifest.groups[0].parameters(manifest.profile)
    assert (parameters.rows, parameters.columns) == (24, 32)
    assert (parameters.plaintext_bits, parameters.activation_bits) == (30, 14)
    package.write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest


def test_both_sides_have_one_table_digest(tmp_path: Path) -> None:
    server = read(tmp_path, SERVER)
    shell = server.for_shell()
    assert (shell.kind, shell.files) == (package.PackageKind.SHELL, {})
    assert shell.hint == server.hint
    assert shell.table_digest() == server.table_digest()
    shell.require_counterpart(server)
    for own, other in [(shell, shell), (shell, msgspec.structs.replace(server, model_digest="cd" * 32))]:
        with pytest.raises(InvalidPackage, match="same split"):
            own.require_counterpart(other)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("epoch", 4),
        ("groups/0/name", "other"),
        ("groups/0/layers/0/name", "other"),
        ("groups/0/layers/0/rows", 17),
        ("groups/0/columns", 33),
        ("groups/0/activation_bits", 13),
        ("groups/0/plaintext_bits", 29),
        ("groups/0/entropy_bits", 200.0),
    ],
)
def test_the_table_digest_depends_on_everything_shared(tmp_path: Path, path: str, value: object) -> None:
    assert read(tmp_path, changed(path, value)).table_digest() != read(tmp_path, SERVER).table_digest()


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("format", 2),
        ("kind", "enclave"),
        ("profile", "none"),
        ("model_type", ""),
        ("model_digest", "AB" * 32),
        ("model_digest", "ab" * 32 + "\n"),
        ("groups", []),
        ("groups", {}),
        ("unknown", 1),
        ("files", ...),
        ("files", []),
        ("files", {"config.json": "ab" * 31}),
        ("files", {"": "ab" * 32}),
        ("files", {"../config.json": "ab" * 32}),
        ("files", {"/etc/passwd": "ab" * 32}),
        ("files", {"a/../../b": "ab" * 32}),
        ("files", {"a//b": "ab" * 32}),
        ("files", {"a/": "ab" * 32}),
        ("files", {".hidden": "ab" * 32}),
        ("files", {"a/b/c/d/e": "ab" * 32}),
        ("files", {"a\x00": "ab" * 32}),
        ("files", {"a\n": "ab" * 32}),
        ("files", {"a" * 129: "ab" * 32}),
        ("groups/0/name", "x" * 257),
        ("groups/0/name", "\x1b[31m"),
        ("groups/0/name", "layers.0.o"),
        ("groups/0/layers", []),
        ("groups/0/layers/1/name", "layers.0.o"),
        ("groups/0/layers/0/rows", 0),
        ("groups/0/layers/0/rows", 1 << 62),
        ("groups/0/layers/0/rows", 1.5),
        ("groups/0/layers/0/rows", True),
        ("groups/0/columns", -1),
        ("groups/0/columns", ...),
        ("groups/0/columns", (1 << 16) + 1),
        ("groups/0/activation_bits", 16),
        ("groups/0/activation_bits", 7),
        ("groups/0/plaintext_bits", ...),
        ("groups/0/plaintext_bits", 26),
        ("groups/0/plaintext_bits", 31),  # answers of 32 bits would leave no room for noise
        ("groups/0/plaintext_bits", 32),
        ("groups/0/entropy_bits", ...),
        ("groups/0/entropy_bits", 0.0),
        ("groups/0/entropy_bits", -1.0),
        ("groups/0/entropy_bits", 1e300),
        ("groups/0/layers/0/name", "u"),
        ("epoch", -1),
        ("epoch", 1 << 32),
        ("hint", {"hint/group-00000.bin": "01" * 32}),
        ("hint", {"hint/group-00000.bin": "01" * 32, "hint/group-00002.bin": "23" * 32}),
        ("hint", {"hint/group-00000.bin": "01" * 32, "hint/group-00001.bin": "2" * 63}),
        ("hint", []),
        ("profile", "open-weights"),  # needs no hint, and 32 bits
    ],
)
def test_what_is_out_of_bounds_is_refused(tmp_path: Path, path: str, value: object) -> None:
    with pytest.raises(InvalidPackage, match="confide split") as caught:
        read(tmp_path, changed(path, value))
    assert str(caught.value).isprintable()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_mutated_bytes_give_a_manifest_or_invalid_package(tmp_path: Path, data: st.DataObject) -> None:
    content = bytearray(msgspec.json.encode(SERVER))
    for _ in range(data.draw(st.integers(1, 4))):
        start = data.draw(st.integers(0, len(content)))
        end = data.draw(st.integers(start, min(len(content), start + 20)))
        content[start:end] = data.draw(st.binary(max_size=6) | st.sampled_from([b"1e999", b"[" * 50, b"null", b"-0"]))
    try:
        assert isinstance(read(tmp_path, bytes(content)), Manifest)
    except InvalidPackage as error:
        assert str(error).isprintable()  # noqa: PT017


@pytest.mark.parametrize(
    "content",
    [b"", b"\xff", b"[" * 100_000, b'{"groups":' * 50_000, b'"\\ud800"', b"\x00" * 64, b'{"x":' + b"[" * 100_000],
)
def test_what_is_no_json_is_refused(tmp_path: Path, content: bytes) -> None:
    with pytest.raises(InvalidPackage):
        read(tmp_path, content)


def test_a_large_file_is_not_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="larger than"):
        read(tmp_path, b" " * (package.MAX_MANIFEST_BYTES + 1))


def test_a_folder_without_a_table_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="confide split"):
        read_manifest(tmp_path / "nowhere")


def test_the_model_digest_separates_matrices() -> None:
    def digest(*layers: tuple[str, int, int, bytes]) -> str:
        result = ModelDigest()
        for name, rows, columns, content in layers:
            result.add(name, rows, columns, memoryview(content))
        return result.hexdigest()

    variants = [
        digest(("a", 2, 2, b"abcd")),
        digest(("b", 2, 2, b"abcd")),
        digest(("a", 4, 1, b"abcd")),
        digest(("a", 2, 2, b"abce")),
        digest(("a", 2, 1, b"ab"), ("a", 2, 1, b"cd")),
        digest(("a", 2, 2, b"abcd"), ("b", 1, 1, b"x")),
    ]
    assert len(set(variants)) == len(variants)


def test_reading_a_table_needs_no_tensor_library() -> None:
    program = "import sys, confide.packages.manifest; sys.exit(bool({'torch', 'transformers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


OPEN: dict[str, Any] = changed("profile", "open-weights") | {
    "hint": {},
    "groups": [group | {"plaintext_bits": 32} for group in SERVER["groups"]],
}


def test_profiles_are_those_of_the_parameters(tmp_path: Path) -> None:
    assert read(tmp_path, OPEN).profile is Profile.OPEN_WEIGHTS
    assert read(tmp_path, OPEN).table_digest() != read(tmp_path, SERVER).table_digest()


def test_open_weights_have_no_hint(tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="open weights"):
        read(tmp_path, OPEN | {"hint": SERVER["hint"]})


def test_the_hint_is_no_part_of_what_both_halves_agree_on(tmp_path: Path) -> None:
    """It can be made later, from the same table."""
    assert read(tmp_path, changed("hint", ...)).table_digest() == read(tmp_path, SERVER).table_digest()


@pytest.mark.parametrize("name", ["modeling_evil.py", "sub/evil.SO", "evil.pyc", "evil.pth"])
def test_a_shell_holds_no_code(tmp_path: Path, name: str) -> None:
    files = {"files": {name: "ab" * 32}}
    read(tmp_path, SERVER | files)  # a server reads nothing but its groups' files
    with pytest.raises(InvalidPackage, match="no code"):
        read(tmp_path, SERVER | files | {"kind": "hybrid-shell"})
