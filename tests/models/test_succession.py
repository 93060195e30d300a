"""Owner keys that take another's place, and keys that are withdrawn: who decides, and that nothing goes back."""

from pathlib import Path

import msgspec
import pytest

from confide.errors import OwnerKeyError, UntrustedOwner
from confide.packages.succession import (
    MAX_STATEMENTS,
    Succession,
    Withdrawal,
    parse_statements,
    publish_statement,
    read_statements,
)
from confide.packages.trusted_owners import (
    accept,
    accepted_owners,
    distrust,
    find_owner,
    other_keys,
    read_owners,
    trust,
    trusted_owners,
)
from owners import OWNER, STRANGER, owner_key

NEW, LATEST, THIEF = owner_key(3), owner_key(4), owner_key(5)


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    trust(OWNER.public, "Ada")
    return tmp_path / "home"


def test_a_successor_is_trusted_by_those_who_trusted_the_old_key() -> None:
    assert accept([Succession.make(OWNER, NEW), Succession.make(NEW, LATEST)])
    assert trusted_owners() == dict.fromkeys([OWNER.public, NEW.public, LATEST.public], "Ada")
    assert other_keys(NEW.public) == {OWNER.public, LATEST.public}
    assert accept([Succession.make(OWNER, NEW)]) == []


def test_successors_of_strangers_are_not_trusted() -> None:
    assert accept([Succession.make(STRANGER, NEW)]) == []
    assert trusted_owners() == {OWNER.public: "Ada"}
    # Nor does a trusted key make a stranger's key its own the other way round.
    assert accept([Succession.make(STRANGER, OWNER)]) == []
    assert other_keys(OWNER.public) == set()


def test_a_key_names_one_successor() -> None:
    accept([Succession.make(OWNER, NEW)])
    with pytest.raises(OwnerKeyError, match="two successors"):
        accept([Succession.make(OWNER, THIEF)])
    assert THIEF.public not in trusted_owners()


def test_a_withdrawn_key_counts_no_more_and_its_successor_does() -> None:
    accept([Succession.make(OWNER, NEW), Withdrawal.make(OWNER.public, NEW)])
    assert trusted_owners() == {NEW.public: "Ada"}
    assert other_keys(NEW.public) == set()
    with pytest.raises(UntrustedOwner, match=NEW.public.fingerprint):
        trust(OWNER.public)
    with pytest.raises(UntrustedOwner, match="withdrawn"):
        accepted_owners(str(OWNER.public))
    assert accepted_owners(str(NEW.public)) == {NEW.public: "Ada"}


def test_what_a_stolen_key_says_after_its_withdrawal_is_not_heard() -> None:
    accept([Withdrawal.make(OWNER.public, OWNER)])
    assert accept([Succession.make(OWNER, THIEF)]) == []
    assert trusted_owners() == {}


def test_only_the_key_itself_or_a_later_one_withdraws_it() -> None:
    trust(STRANGER.public)
    accept([Succession.make(OWNER, NEW)])
    assert accept([Withdrawal.make(OWNER.public, STRANGER), Withdrawal.make(NEW.public, OWNER)]) == []
    assert {OWNER.public, NEW.public} <= trusted_owners().keys()
    # A withdrawn key has no say about earlier ones either.
    assert accept([Withdrawal.make(NEW.public, NEW), Withdrawal.make(OWNER.public, NEW)]) == [
        Withdrawal.make(NEW.public, NEW)
    ]
    assert OWNER.public in trusted_owners()


def test_a_key_is_withdrawn_before_anybody_trusts_it() -> None:
    accept([Withdrawal.make(STRANGER.public, STRANGER)])
    with pytest.raises(UntrustedOwner, match="ask the owner"):
        trust(STRANGER.public)


def test_distrust_is_the_persons_own_and_no_statement_takes_it_back() -> None:
    distrust(find_owner("Ada"))
    assert trusted_owners() == {}
    assert accept([Succession.make(OWNER, NEW)]) == []
    trust(NEW.public)
    accept([Succession.make(NEW, OWNER)])
    assert trusted_owners().keys() == {NEW.public}
    trust(OWNER.public)
    assert OWNER.public in trusted_owners()
    with pytest.raises(OwnerKeyError, match="not trusted"):
        distrust(STRANGER.public)


def test_owners_are_found_by_key_fingerprint_or_name_but_not_by_a_name_of_two() -> None:
    assert find_owner(str(OWNER.public)) == find_owner(OWNER.public.fingerprint) == find_owner("Ada") == OWNER.public
    trust(STRANGER.public, "Ada")
    for named in ("Ada", "nobody", ""):
        with pytest.raises(OwnerKeyError, match="owner list"):
            find_owner(named)


def test_no_ring_of_keys() -> None:
    accept([Succession.make(OWNER, NEW), Succession.make(NEW, OWNER)])
    book = read_owners()
    assert book.later(OWNER.public) == [NEW.public]
    book.successors[NEW.public] = OWNER.public  # by hand, in the file
    assert book.later(OWNER.public) == [NEW.public, OWNER.public]


@pytest.mark.parametrize(
    "forged",
    [
        msgspec.structs.replace(Succession.make(OWNER, NEW), successor=str(THIEF.public)),
        msgspec.structs.replace(
            Succession.make(OWNER, NEW), owner_signature=Succession.make(THIEF, NEW).owner_signature
        ),
        # A key that did not agree to it: whoever holds OWNER could claim another owner's key as its own.
        msgspec.structs.replace(
            Succession.make(OWNER, STRANGER), successor_signature=Succession.make(OWNER, NEW).successor_signature
        ),
        msgspec.structs.replace(Withdrawal.make(STRANGER.public, OWNER), owner=str(OWNER.public)),
        msgspec.structs.replace(Withdrawal.make(OWNER.public, NEW), signer=str(OWNER.public)),
    ],
)
def test_forged_statements_are_refused_with_their_whole_file(forged: Succession | Withdrawal, tmp_path: Path) -> None:
    path = tmp_path / "statements.json"
    publish_statement(path, Succession.make(OWNER, NEW))
    assert read_statements(path) == (Succession.make(OWNER, NEW),)
    content = msgspec.json.encode({"format": 1, "statements": [Succession.make(OWNER, NEW), forged]})
    with pytest.raises(OwnerKeyError, match="not signed by those it names"):
        parse_statements(content)


@pytest.mark.parametrize("content", [b"", b"[]", b"\xff", b"[" * 100_000, b" " * (1 << 17), b'{"format":2}'])
def test_what_is_no_statement_is_refused(content: bytes) -> None:
    with pytest.raises(OwnerKeyError):
        parse_statements(content)


def test_a_file_is_bounded(tmp_path: Path) -> None:
    path = tmp_path / "statements.json"
    one = Withdrawal.make(OWNER.public, OWNER)
    path.write_bytes(msgspec.json.encode({"format": 1, "statements": [one] * MAX_STATEMENTS}))
    with pytest.raises(OwnerKeyError, match="another file"):
        publish_statement(path, one)
    with pytest.raises(OwnerKeyError, match="cannot be read"):
        read_statements(tmp_path / "nowhere")
