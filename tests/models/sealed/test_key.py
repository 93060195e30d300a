import stat
from pathlib import Path

import pytest

from confide.errors import ModelKeyError
from confide.packages.sealed.key import ModelKey

KEY = ModelKey(bytes(range(32)))


def test_a_key_comes_back_from_its_file_which_is_for_nobody_else(tmp_path: Path) -> None:
    path = tmp_path / "model.key"
    KEY.write(path)
    assert ModelKey.read(path) == KEY
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.read_bytes() == KEY.raw


def test_a_key_file_is_never_replaced(tmp_path: Path) -> None:
    KEY.write(tmp_path / "model.key")
    with pytest.raises(ModelKeyError, match="exists already"):
        ModelKey.generate().write(tmp_path / "model.key")
    assert ModelKey.read(tmp_path / "model.key") == KEY


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660])
def test_a_key_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    KEY.write(tmp_path / "model.key")
    (tmp_path / "model.key").chmod(mode)
    with pytest.raises(ModelKeyError, match="chmod 600"):
        ModelKey.read(tmp_path / "model.key")


@pytest.mark.parametrize("content", [b"", b"k" * 31, b"k" * 33, b"6b" * 32])
def test_what_is_no_key_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.key"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(ModelKeyError, match="32 bytes"):
        ModelKey.read(path)
    with pytest.raises(ModelKeyError, match="cannot be read"):
        ModelKey.read(tmp_path / "none")


def test_a_key_shows_its_id_and_not_itself() -> None:
    assert KEY.id in repr(KEY)
    assert KEY.raw.hex() not in repr(KEY)
    assert str(KEY.raw) not in repr(KEY)
    assert ModelKey(b"k" * 32).id != KEY.id


def test_every_file_of_every_package_has_its_own_key() -> None:
    places = [(salt, index, name) for salt in (b"s" * 32, b"t" * 32) for index in (0, 1) for name in ("a", "b")]
    keys = {KEY.file_key(*place) for place in places}
    assert len(keys) == len(places)
    assert all(len(key) == 32 for key in keys)
    assert KEY.file_key(*places[0]) == KEY.file_key(*places[0])


def test_two_fresh_keys_differ() -> None:
    assert ModelKey.generate() != ModelKey.generate()
