from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import OwnerKeyError
from confide.packages import trusted_owners as trust_module
from confide.packages.trusted_owners import parse_owners, trust, trusted_owners, trusted_path
from owners import OWNER, STRANGER


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home of this test's own, not made yet."""
    folder = tmp_path / "home"
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    return folder


def test_nobody_is_trusted_at_first(home: Path) -> None:
    assert trusted_owners() == {}
    assert not home.exists()


def test_owners_are_added_and_renamed(home: Path) -> None:
    trust(OWNER.public)
    trust(STRANGER.public, "Ada & Søn")
    assert trusted_owners() == {OWNER.public: "", STRANGER.public: "Ada & Søn"}
    assert home.stat().st_mode & 0o777 == 0o700
    trust(OWNER.public, "me")
    trust(STRANGER.public)
    assert trusted_owners() == {OWNER.public: "me", STRANGER.public: "Ada & Søn"}
    assert trusted_path().read_text() == f"{OWNER.public} me\n{STRANGER.public} Ada & Søn\n"


@pytest.mark.parametrize("name", ["two\nlines", "\x1b[31m", "x" * 101, "tab\there", "a\u2028b"])
def test_a_name_stands_on_its_line(name: str) -> None:
    with pytest.raises(OwnerKeyError, match="name"):
        trust(OWNER.public, name)
    assert trusted_owners() == {}


@pytest.mark.parametrize(
    "line", [b"nonsense", str(OWNER.public)[:-1].encode(), b"\xff" * 64, f"{OWNER.public} a\x00b".encode()]
)
def test_an_odd_line_is_named(line: bytes) -> None:
    with pytest.raises(OwnerKeyError, match="Line 2"):
        parse_owners(f"{STRANGER.public} friend\n".encode() + line)


def test_people_may_edit_the_file() -> None:
    content = f"\n  {str(OWNER.public).upper()}\tmine \r\n\n{STRANGER.public}"
    assert parse_owners(content.encode()).trusted == {OWNER.public: "mine", STRANGER.public: ""}


def test_a_file_that_cannot_be_read_is_a_clear_error(home: Path) -> None:
    trusted_path().mkdir(parents=True)
    with pytest.raises(OwnerKeyError, match="readable"):
        trusted_owners()
    with pytest.raises(OwnerKeyError, match="too large"):
        parse_owners(b"\n" * (trust_module.MAX_FILE + 1))


LINES = st.lists(st.binary(max_size=80) | st.sampled_from([str(OWNER.public).encode(), b" name", b"\r", b""]))


@given(LINES)
def test_any_content_is_owners_or_refused(lines: list[bytes]) -> None:
    try:
        owners = parse_owners(b"\n".join(lines)).names
    except OwnerKeyError as error:
        assert str(error).isprintable()  # noqa: PT017
    else:
        assert all(len(key.raw) == 32 and name.isprintable() for key, name in owners.items())
