import traceback
from pathlib import Path

import pytest

from confide.disk.secrets import find_secret, read_secret, variable
from confide.errors import InvalidSettings


@pytest.fixture
def credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", str(tmp_path))
    monkeypatch.delenv("CONFIDE_LICENCE", raising=False)
    return tmp_path


def test_the_variable_before_the_credential(credentials: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_secret("licence") is None
    (credentials / "licence").write_bytes(b"of systemd\r\n")
    found = find_secret("licence")
    assert found is not None
    assert (found.text, found.source) == ("of systemd", f"file {credentials / 'licence'}")
    assert "of systemd" not in repr(found)
    monkeypatch.setenv(variable("licence"), "of the shell")
    found = find_secret("licence")
    assert found is not None
    assert (found.text, found.source) == ("of the shell", "environment CONFIDE_LICENCE")
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", "")
    monkeypatch.setenv(variable("licence"), "")
    assert find_secret("licence") is None


def test_credentials_are_not_looked_for_in_a_working_directory(
    credentials: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (credentials / "licence").write_text("key")
    monkeypatch.chdir(credentials)
    monkeypatch.setenv("CREDENTIALS_DIRECTORY", ".")
    with pytest.raises(InvalidSettings, match="absolute"):
        find_secret("licence")


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"hush\nhush", b"hush\x1b[0m", b"hush\xff", b"hush" * 2000], ids=range(6)
)
def test_what_is_no_line_of_text_is_refused_without_a_word_of_it(credentials: Path, content: bytes) -> None:
    (credentials / "licence").write_bytes(content)
    with pytest.raises(InvalidSettings) as caught:
        find_secret("licence")
    assert "hush" not in "".join(traceback.format_exception(caught.value))


def test_a_credential_that_leads_nowhere_is_not_passed_over(credentials: Path) -> None:
    (credentials / "licence").symlink_to(credentials / "elsewhere")
    with pytest.raises(InvalidSettings, match="cannot be read"):
        find_secret("licence")


def test_a_secret_that_is_not_there(tmp_path: Path) -> None:
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(InvalidSettings, match="cannot be read"):
            read_secret(path)
