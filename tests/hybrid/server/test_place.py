"""A package has one ledger, whoever asks for it: licences made in it are those that are served."""

import os
from pathlib import Path

import pytest

from confide.errors import LedgerElsewhere
from confide.ledger.licences import licence_book
from confide.ledger.place import choose_state, state_of


@pytest.fixture
def package(tmp_path: Path) -> Path:
    folder = tmp_path / "server"
    folder.mkdir()
    (folder / "manifest.json").write_text("{}")
    return folder


def test_a_package_has_its_ledger_in_it_or_where_it_was_served_from(package: Path, tmp_path: Path) -> None:
    assert state_of(package) == choose_state(package, None) == package / "state"
    assert choose_state(package, tmp_path / "ledger") == tmp_path / "ledger"
    for asked in (None, tmp_path / "ledger", tmp_path / "server" / ".." / "ledger"):
        assert choose_state(package, asked).resolve() == tmp_path / "ledger"
    assert state_of(package) == tmp_path / "ledger"
    assert state_of(tmp_path / "ledger") == tmp_path / "ledger"


def test_licences_made_in_the_package_are_not_left_behind(package: Path, tmp_path: Path) -> None:
    with licence_book(state_of(package)) as book:
        book.create("alice")
    with pytest.raises(LedgerElsewhere, match=r"leave --state out, or move that folder"):
        choose_state(package, tmp_path / "ledger")
    assert choose_state(package, None) == choose_state(package, package / "state") == package / "state"
    (package / "state").rename(tmp_path / "ledger")  # what it says to do
    assert choose_state(package, tmp_path / "ledger") == tmp_path / "ledger"
    with licence_book(state_of(package)) as book:
        assert book.find("alice")


def test_what_was_answered_from_one_place_is_not_forgotten_in_another(package: Path, tmp_path: Path) -> None:
    choose_state(package, tmp_path / "ledger")
    with pytest.raises(LedgerElsewhere, match="remove the file"):
        choose_state(package, tmp_path / "another")
    (tmp_path / "ledger").rmdir()
    with pytest.raises(LedgerElsewhere, match="which is not there"):
        choose_state(package, None)


@pytest.mark.parametrize("content", [b"", b"relative/path\n", b"/a\0b", b"/" + b"x" * 5000])
def test_an_odd_file_in_the_folders_place(package: Path, content: bytes) -> None:
    (package / "state").write_bytes(content)
    for ask in (state_of, lambda folder: choose_state(folder, None)):
        with pytest.raises(LedgerElsewhere, match="does not hold the path"):
            ask(package)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_package_on_a_read_only_disk_is_served_from_where_the_operator_says(package: Path, tmp_path: Path) -> None:
    package.chmod(0o500)
    assert choose_state(package, tmp_path / "ledger") == tmp_path / "ledger"
    package.chmod(0o700)
