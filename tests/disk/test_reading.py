"""Files are read up to a limit, and private ones only where they are private."""

from collections.abc import Callable
from pathlib import Path

import pytest

from confide.disk.files import FileOpenToOthers, FileTooLarge, read_bounded, read_private


@pytest.mark.parametrize("read", [read_bounded, read_private])
def test_a_file_is_read_up_to_its_limit_and_refused_beyond(read: Callable[[Path, int], bytes], tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"12345678")
    path.chmod(0o600)
    assert read(path, 8) == b"12345678"
    with pytest.raises(FileTooLarge, match="larger than 7 bytes"):
        read(path, 7)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "none", 8)


def test_no_more_is_read_than_is_needed_to_refuse() -> None:
    with pytest.raises(FileTooLarge):
        read_bounded(Path("/dev/zero"), 1_000)  # would never end


@pytest.mark.parametrize("mode", [0o640, 0o620, 0o610, 0o604, 0o602, 0o601])
def test_a_private_file_that_anybody_else_can_reach_is_refused(mode: int, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"secret")
    path.chmod(mode)
    with pytest.raises(FileOpenToOthers, match="others on this machine") as refused:
        read_private(path, 100)
    assert "secret" not in str(refused.value)
