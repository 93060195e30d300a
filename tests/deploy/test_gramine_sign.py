"""MRENCLAVE by Gramine's own tool: here an executable of that name, which is not Gramine's."""

import os
from pathlib import Path

import pytest

from confide.deploy import gramine_sign
from confide.deploy.gramine_sign import SIGSTRUCT_BYTES, measured, mrenclave_of
from confide.errors import DeployError

MRENCLAVE = bytes(range(32))


def sigstruct() -> bytes:
    """The constant fields, and ENCLAVEHASH; the rest is zeros (Intel SDM, volume 3D, table 40-21)."""
    content = bytearray(SIGSTRUCT_BYTES)
    content[:16] = bytes.fromhex("06000000E10000000000010000000000")
    content[24:40] = bytes.fromhex("01010000600000006000000001000000")
    content[960:992] = MRENCLAVE
    return bytes(content)


@pytest.fixture
def key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    Path("key.pem").write_text("a key")
    return Path("key.pem")


def install(folder: Path, *lines: str) -> None:
    """A tool that takes what Gramine's does, and notes what it was given beside itself."""
    noted = (
        'here=$(dirname "$0")',
        'echo "$1 $3 $5 $7" > "$here/given"',
        'cp "$2" "$here/manifest"',
        'cp "$8" "$here/key"',
    )
    (folder / "gramine-sgx-sign").write_text("\n".join(("#!/bin/sh", *noted, *lines, "")))
    (folder / "gramine-sgx-sign").chmod(0o755)


def test_what_the_tool_measures(key: Path, tmp_path: Path) -> None:
    (tmp_path / "sig").write_bytes(sigstruct())
    install(tmp_path / "bin", f'cp {tmp_path}/sig "$6"', 'echo signed > "$4"')
    assert measured(b"sgx.debug = false", key) == MRENCLAVE
    assert (tmp_path / "bin/given").read_text().split() == ["--manifest", "--output", "--sigfile", "--key"]
    assert (tmp_path / "bin/manifest").read_bytes() == b"sgx.debug = false"
    assert (tmp_path / "bin/key").read_text() == "a key"


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        (['printf "no such file\\033[2J" >&2', "exit 1"], r"does not sign \(no such file"),
        (["true"], "wrote no signature"),
        (['head -c 4000 /dev/zero > "$6"'], "wrote no signature"),
        (['head -c 1808 /dev/zero > "$6"'], "no SIGSTRUCT"),
        (['echo > "$6"'], "no SIGSTRUCT"),
        (["exec sleep 60"], "does not end"),
    ],
    ids=["fails", "nothing", "large", "zeros", "short", "hangs"],
)
def test_a_tool_that_does_not_sign(
    lines: list[str], words: str, key: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    install(tmp_path / "bin", *lines)
    if "does not end" in words:
        monkeypatch.setattr(gramine_sign, "SECONDS", 0.5)
    with pytest.raises(DeployError, match=words) as refused:
        measured(b"", key)
    assert str(refused.value).isprintable()


def test_without_the_tool_it_is_said(key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(DeployError, match="not on the PATH"):
        measured(b"", key)


@pytest.mark.parametrize("path", [".", "", "bin"])
def test_a_program_in_the_working_directory_is_not_run(path: str, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(Path())
    install(Path("bin"))
    monkeypatch.setenv("PATH", f"{path}:/nowhere")
    with pytest.raises(DeployError, match="not on the PATH"):
        measured(b"", key)
    assert not Path("given").exists()
    assert not Path("bin/given").exists()


@pytest.mark.parametrize("at", [0, 15, 24, 39])
def test_a_field_that_is_constant(at: int) -> None:
    content = bytearray(sigstruct())
    assert mrenclave_of(bytes(content)) == MRENCLAVE
    content[at] ^= 1
    with pytest.raises(DeployError, match="no SIGSTRUCT"):
        mrenclave_of(bytes(content))
