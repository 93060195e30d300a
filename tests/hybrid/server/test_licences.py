"""A licence allows what it says and not a token more; what is refused costs nothing."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from confide.errors import (
    BudgetExhausted,
    ConfideError,
    DisclosureLimit,
    LedgerCorrupted,
    LicenceRefused,
    RateLimited,
    RequestConflict,
    UnknownPack,
)
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger import ledger as module
from confide.hybrid.server.ledger.licences import KEY_PREFIX, SECONDS_PER_DAY, Usage, licence_book
from confide.hybrid.server.ledger.usage import CHECK_VECTOR_TOKENS, Account, Answerable, solving_tokens

from .records import LIMIT, OPEN, OTHER, PACK, entry, kill


class Clock:
    """Stands until it is moved; the wall clock follows the monotonic one."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monotonic, self._wall = time.monotonic(), time.time()
        self.passed = 0.0
        monkeypatch.setattr(time, "monotonic", lambda: self._monotonic + self.passed)
        monkeypatch.setattr(time, "time", lambda: self._wall + self.passed)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger(tmp_path)
    yield made
    made.close()


def licensed(ledger: Ledger, name: str = "reader", pack: bytes = PACK, **limits: float | None) -> Account:
    """The account of a new licence, with a pack of two layer groups."""
    _, key = ledger.licences.create(name, **limits)
    account = ledger.authenticate(key)
    for group in range(2):
        ledger.bind_request(account, pack, group, b"d" * 32)
    return account


def spend(ledger: Ledger, account: Account, first: int, count: int = 1, group: int = 0, secret: float = 0) -> None:
    ledger.spend(account, entry(first, count, group=group), Answerable(LIMIT, secret) if secret else OPEN)


def state(ledger: Ledger, account: Account) -> object:
    """All that spending changes."""
    return account.used, dict(account.days), account.disclosed[0], ledger.mark(account, PACK), ledger._journal.position


def test_a_licence_is_found_by_name_id_and_key(ledger: Ledger) -> None:
    book = ledger.licences
    licence, key = book.create("reader", tokens=5)
    assert key.startswith(KEY_PREFIX)
    assert book.find("reader") == book.find(licence.id.hex()) == book.of_key(key) == book.by_id(licence.id) == licence
    assert book.of_key(key + "x") is None
    assert book.all() == [licence]
    with pytest.raises(ConfideError, match="licence list"):
        book.find("writer")
    with pytest.raises(ConfideError, match="already"):
        book.create("reader")
    assert len(book.all()) == 1


def test_two_licences_never_share_a_key(ledger: Ledger) -> None:
    made = [ledger.licences.create(f"reader {number}") for number in range(20)]
    assert len({key for _, key in made}) == len({licence.id for licence, _ in made}) == 20


def test_a_key_is_nowhere_in_the_folder(ledger: Ledger, tmp_path: Path) -> None:
    account = licensed(ledger)
    _, key = ledger.licences.create("another")
    ledger.authenticate(key)
    spend(ledger, account, 0)
    ledger.checkpoint()

    def found() -> list[str]:
        secret = key.removeprefix(KEY_PREFIX).encode()
        return [path.name for path in tmp_path.iterdir() if secret in path.read_bytes()]

    assert {"ledger.sqlite", "ledger.sqlite-wal", "journal-0"} <= {path.name for path in tmp_path.iterdir()}
    assert found() == []
    ledger.close()
    assert found() == []


@pytest.mark.parametrize("trouble", ["unknown", "revoked", "expired"])
def test_a_key_that_is_not_good_is_refused_with_one_error(ledger: Ledger, clock: Clock, trouble: str) -> None:
    licence, key = ledger.licences.create("reader", expires=int(time.time()) + 60)
    if trouble == "unknown":
        key = KEY_PREFIX + "A" * 43
    elif trouble == "revoked":
        ledger.licences.change(licence, revoked=int(time.time()))
    else:
        clock.passed += 61
    with pytest.raises(LicenceRefused, match="another") as refused:
        ledger.authenticate(key)
    assert type(refused.value) is LicenceRefused
    assert key not in str(refused.value)


def test_the_last_token_is_granted_and_the_next_is_not(ledger: Ledger) -> None:
    account = licensed(ledger, tokens=3)
    spend(ledger, account, 0, 2)
    before = state(ledger, account)
    with pytest.raises(BudgetExhausted, match="has 1 tokens left and 2 are needed"):
        spend(ledger, account, 2, 2)
    assert state(ledger, account) == before
    spend(ledger, account, 2)
    assert account.tokens_left == 0
    before = state(ledger, account)
    with pytest.raises(BudgetExhausted):
        spend(ledger, account, 3)
    assert state(ledger, account) == before


def test_the_last_token_passes_all_layers_and_its_retries_stay_free(ledger: Ledger) -> None:
    account = licensed(ledger, tokens=1)
    spend(ledger, account, 0)
    spend(ledger, account, 0, group=1)
    for group in range(2):
        spend(ledger, account, 0, group=group)
    assert account.used == 1


def test_a_retry_is_answered_after_a_licence_ends(ledger: Ledger, clock: Clock) -> None:
    account = licensed(ledger)
    spend(ledger, account, 0)
    ledger.licences.change(account.licence, revoked=int(time.time()))
    clock.passed += 2
    spend(ledger, account, 0)
    with pytest.raises(LicenceRefused):
        spend(ledger, account, 1)
    spend(ledger, account, 0)
    assert account.used == 1


def test_the_rate_allows_a_minutes_worth_and_then_waits(ledger: Ledger, clock: Clock) -> None:
    account = licensed(ledger, tokens_per_minute=60)
    spend(ledger, account, 0, 60)
    before = state(ledger, account)
    with pytest.raises(RateLimited, match="60 tokens a minute; try again in 1 s"):
        spend(ledger, account, 60)
    assert state(ledger, account) == before
    clock.passed += 0.5
    with pytest.raises(RateLimited):
        spend(ledger, account, 60)
    clock.passed += 0.75
    spend(ledger, account, 60)
    spend(ledger, account, 60, group=1)  # the same token's next layer
    with pytest.raises(RateLimited):
        spend(ledger, account, 61)


def test_a_prompt_longer_than_a_minutes_worth_waits_for_a_full_minute_and_is_paid_off(
    ledger: Ledger, clock: Clock
) -> None:
    account = licensed(ledger, tokens_per_minute=60)
    spend(ledger, account, 0)
    with pytest.raises(RateLimited):
        spend(ledger, account, 1, 180)
    clock.passed += 1.5
    spend(ledger, account, 1, 180)
    clock.passed += 119
    with pytest.raises(RateLimited):
        spend(ledger, account, 181)
    clock.passed += 3
    spend(ledger, account, 181)


def test_unused_minutes_do_not_add_up(ledger: Ledger, clock: Clock) -> None:
    account = licensed(ledger, tokens_per_minute=60)
    spend(ledger, account, 0)
    clock.passed += 3600
    spend(ledger, account, 1, 60)
    with pytest.raises(RateLimited):
        spend(ledger, account, 61)


def test_packs_of_a_day_are_counted_by_licence(ledger: Ledger, clock: Clock) -> None:
    account = licensed(ledger, packs_per_day=2)
    ledger.bind_request(account, b"2" * 16, 0, b"d" * 32)
    with pytest.raises(BudgetExhausted, match="2 packs a day"):
        ledger.bind_request(account, b"3" * 16, 0, b"d" * 32)
    assert ledger.prepared_groups(account, b"3" * 16) == 0
    ledger.bind_request(account, b"2" * 16, 1, b"d" * 32)  # a pack that is begun goes on
    licensed(ledger, "another", pack=b"4" * 16, packs_per_day=1)
    clock.passed += SECONDS_PER_DAY
    ledger.bind_request(account, b"3" * 16, 0, b"d" * 32)


def test_disclosure_warns_once_at_half_and_ends_at_all(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    solving = solving_tokens(64)
    assert solving == 16
    account = licensed(ledger)
    with caplog.at_level(logging.WARNING):
        for index in range(5):
            spend(ledger, account, index, secret=solving)
        assert caplog.messages == []
        for index in range(5, 14):
            spend(ledger, account, index, secret=solving)
    (warning,) = caplog.messages
    assert warning == f"The licence {account.licence.label} has seen 50% of what solves layer group 0."
    assert account.share_disclosed(0, Answerable(LIMIT, solving)) == 1
    assert account.disclosed[0] + CHECK_VECTOR_TOKENS == solving
    before = state(ledger, account)
    with pytest.raises(DisclosureLimit, match="lift-disclosure"):
        spend(ledger, account, 14, secret=solving)
    assert state(ledger, account) == before
    spend(ledger, account, 13, secret=solving)  # a retry says nothing new
    spend(ledger, account, 13, group=1, secret=solving)  # the other group's own account


@pytest.mark.parametrize("limit", [None, 2.0])
def test_the_owner_may_allow_more_disclosure(ledger: Ledger, limit: float | None) -> None:
    account = licensed(ledger, disclosure=limit)
    spend(ledger, account, 0, 30, secret=16)
    if limit is None:
        spend(ledger, account, 30, 100, secret=16)
    else:
        with pytest.raises(DisclosureLimit):
            spend(ledger, account, 30, secret=16)


def test_open_weights_have_nothing_to_disclose(ledger: Ledger, caplog: pytest.LogCaptureFixture) -> None:
    account = licensed(ledger)
    spend(ledger, account, 0, LIMIT)
    assert account.share_disclosed(0, OPEN) == 0
    assert caplog.messages == []


@pytest.mark.parametrize(
    ("change", "error"),
    [({"revoked": 1}, LicenceRefused), ({"expires": 1}, LicenceRefused), ({"tokens": 1}, BudgetExhausted)],
)
def test_changes_are_noticed_while_running(
    ledger: Ledger, tmp_path: Path, clock: Clock, change: dict[str, int], error: type[Exception]
) -> None:
    account = licensed(ledger)
    spend(ledger, account, 0)
    clock.passed += 2
    spend(ledger, account, 1)
    with licence_book(tmp_path) as book:
        book.change(book.find("reader"), **change)
    clock.passed += module.LICENCE_SECONDS + 0.1
    with pytest.raises(error):
        spend(ledger, account, 2)
    if error is LicenceRefused:
        with pytest.raises(LicenceRefused):
            ledger.bind_request(account, b"n" * 16, 0, b"d" * 32)


def test_more_tokens_help_at_once(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    account = licensed(ledger, tokens=1)
    spend(ledger, account, 0)
    with pytest.raises(BudgetExhausted):
        spend(ledger, account, 1)
    with licence_book(tmp_path) as book:
        book.change(book.find("reader"), tokens=2)
    clock.passed += module.LICENCE_SECONDS + 0.1
    spend(ledger, account, 1)


def test_a_change_never_revives_what_was_revoked_meanwhile(ledger: Ledger, tmp_path: Path) -> None:
    seen, _ = ledger.licences.create("reader")
    with licence_book(tmp_path) as book:
        book.change(book.find("reader"), revoked=5)
    assert ledger.licences.change(seen, tokens=9).revoked == 5


def test_usage_is_counted_by_day(ledger: Ledger, tmp_path: Path, clock: Clock) -> None:
    account = licensed(ledger)
    today = int(ledger.now() // SECONDS_PER_DAY)
    to_midnight = (today + 1) * SECONDS_PER_DAY - ledger.now()
    clock.passed += to_midnight - 1
    spend(ledger, account, 0, 3)
    clock.passed += 2
    spend(ledger, account, 3, 4)
    ledger.checkpoint()
    with licence_book(tmp_path) as book:
        assert book.usage(account.licence) == [Usage(account.licence.id, today + day, 3 + day) for day in range(2)]
    assert Usage(b"", 20_000, 1).date == "2024-10-04"


def test_another_licences_pack_is_nobodys(ledger: Ledger) -> None:
    account = licensed(ledger)
    _, key = ledger.licences.create("thief")
    thief = ledger.authenticate(key)
    spend(ledger, account, 0)
    with pytest.raises(RequestConflict):
        ledger.bind_request(thief, PACK, 0, b"d" * 32)
    with pytest.raises(RequestConflict):
        ledger.bind_request(thief, PACK, 5, b"d" * 32)
    assert ledger.prepared_groups(account, PACK) == 2
    assert ledger.prepared_groups(thief, PACK) == 0
    for attempt in (lambda: ledger.mark(thief, PACK), lambda: spend(ledger, thief, 1), lambda: spend(ledger, thief, 0)):
        with pytest.raises(UnknownPack):
            attempt()
    assert (thief.used, account.used) == (0, 1)


@pytest.mark.parametrize("end", [Ledger.close, kill])
def test_accounts_are_what_they_were_after_a_restart(
    ledger: Ledger, tmp_path: Path, end: Callable[[Ledger], None]
) -> None:
    licence, key = ledger.licences.create("reader", tokens=10)
    account = ledger.authenticate(key)
    for group in range(2):
        ledger.bind_request(account, PACK, group, b"d" * 32)
        spend(ledger, account, 0, 7, group=group)
    end(ledger)
    again = Ledger(tmp_path)
    account = again.authenticate(key)
    assert (account.tokens_left, dict(account.disclosed)) == (3, {0: 7, 1: 7})
    with pytest.raises(BudgetExhausted):
        spend(again, account, 7, 4)
    spend(again, account, 0, 7)
    with pytest.raises(ConfideError):
        again.spend(account, entry(0, 7, OTHER), OPEN)
    assert again.licences.find(licence.id.hex()) == licence
    again.close()
    if end is kill:
        ledger._lock = again._lock  # so that the fixture finds it closed


def test_no_licence_is_made_where_the_record_of_answers_is_lost(ledger: Ledger, tmp_path: Path) -> None:
    ledger.close()
    (tmp_path / "ledger.sqlite").unlink()
    with pytest.raises(LedgerCorrupted, match="restore"), licence_book(tmp_path):
        pass
    assert not (tmp_path / "ledger.sqlite").exists()


def test_licences_may_be_made_before_the_server_ever_ran(tmp_path: Path) -> None:
    with licence_book(tmp_path / "new") as book:
        _, key = book.create("early", tokens=1)
    made = Ledger(tmp_path / "new")
    assert made.authenticate(key).tokens_left == 1
    made.close()
