from pathlib import Path

import pytest

from confide.disk.home import home, make_home
from confide.errors import ConfideError


def test_the_home_is_closed_to_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "new" / "home"))
    assert not home().exists()
    assert make_home() == make_home() == home()
    assert home().stat().st_mode & 0o777 == 0o700


def test_a_home_that_cannot_be_made_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "file" / "home"))
    with pytest.raises(ConfideError, match="CONFIDE_HOME"):
        make_home()


def test_a_relative_home_is_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would be another one in each folder that a program is started in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("CONFIDE_HOME")
    monkeypatch.setenv("XDG_CONFIG_HOME", "here")
    assert home() == tmp_path / ".config" / "confide"
    monkeypatch.setenv("CONFIDE_HOME", "here")
    with pytest.raises(ConfideError, match="absolute"):
        home()
    monkeypatch.delenv("CONFIDE_HOME")
    monkeypatch.setenv("HOME", "here")
    with pytest.raises(ConfideError, match="absolute"):
        home()
