"""Files that a person names: read up to a limit, and each way that fails is told."""

from pathlib import Path

import pytest
import typer

from confide.cli.files import read_file
from confide.errors import InvalidManifest, MalformedEvidence


def test_a_file_is_read_up_to_its_limit_and_no_further(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"1234")
    assert read_file(path, 4) == b"1234"
    with pytest.raises(MalformedEvidence, match="give the thing itself alone"):
        read_file(path, 3)
    with pytest.raises(InvalidManifest, match="divide it"):
        read_file(path, 3, InvalidManifest("This is too large; divide it."))


def test_what_cannot_be_read_is_a_wrong_option(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(typer.BadParameter, match="cannot be read"):
            read_file(path, 3, InvalidManifest("This is too large; divide it."))
