import math
import sqlite3
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from pathlib import Path

import pytest

from confide.errors import (
    BudgetExhausted,
    DisclosureLimit,
    LedgerCopied,
    LedgerInUse,
    LedgerUnavailable,
    LicenceRefused,
    RateLimited,
)
from confide.ledger import ledger as module
from confide.ledger.address import Place
from confide.ledger.ledger import LEAST_LEASE, MOST_LEASE, Ledger
from confide.ledger.licences import Licence, LicenceBook, licence_book
from confide.ledger.opening import open_store
from confide.ledger.sqlite import DATABASE
from confide.ledger.store import INPUT, OUTPUT, Row, Store
from confide.ledger.usage import Account, licensed_tokens, share_disclosed
from confide.packages.manifest import Group, Layer

from .world import break_transactions, kill, outlast_the_dead, store_classes

PutAll = Callable[[Store, str, Iterable[Row]], None]
MODEL, OTHER = bytes(32), bytes([1]) * 32
GROUP = Group("g", (Layer("l", 64),), 768, 15, 30, 768 * 8.0)


def licence_key(ledger: Ledger, **limits: int | float | None) -> str:
    return ledger.licences.create("Example Ltd", **({"disclosure": None} | limits))[1]


def licensed(ledger: Ledger, **limits: int | float | None) -> Account:
    return ledger.authenticate(licence_key(ledger, **limits), MODEL)


def charge(ledger: Ledger, account: Account, group: int = 0, count: int = 1) -> bool:
    return ledger.charge(account, group, count, GROUP)


def on_disk(place: Place, account: Account) -> tuple[int, int, dict[int, int]]:
    """Leased and lost tokens, and those recorded of each group, as another process reads them."""
    with closing(open_store(place)) as store:
        return in_database(store, account)


def in_database(store: Store, account: Account) -> tuple[int, int, dict[int, int]]:
    """The same of an open one."""
    with store.snapshot():
        of_account = {"licence": account.licence.id, "model": account.model}
        leased = sum(lease["tokens"] for lease in store.rows("leases", **of_account))
        lost = sum(row["tokens"] for row in store.rows("lost", **of_account))
        return leased, lost, {row["layer_group"]: row["tokens"] for row in store.rows("disclosed", **of_account)}


def keep_charging(ledger: Ledger, account: Account) -> None:
    """For a minute at most; in a lease that would last for longer."""
    for group in range(600):
        charge(ledger, account, group)
        time.sleep(0.1)


def billed(place: Place) -> dict[bytes, int]:
    """Tokens by licence, as another process reads them."""
    totals: Counter[bytes] = Counter()
    with licence_book(place) as book:
        for usage in book.usage():
            totals[usage.licence] += usage.tokens
    return dict(totals)


def refuse(*_: object) -> list[Row]:
    raise LedgerUnavailable("The cable was cut.")


@pytest.fixture
def ledger(place: Place) -> Iterator[Ledger]:
    with closing(Ledger(place)) as opened:
        yield opened


def test_a_lease_is_durable_before_the_first_answer(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    assert on_disk(place, account) == (0, 0, {})
    charge(ledger, account)
    assert on_disk(place, account) == (LEAST_LEASE, 0, {})


def test_at_every_moment_the_disk_covers_what_is_answered(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    with closing(open_store(place)) as store:
        for step in range(300):
            group = step % 3
            if charge(ledger, account, group, 1 + 7 * step % 20) and step % 2:
                ledger.renew(account)
            if step % 50 == 49:
                ledger.checkpoint()
            leased, lost, recorded = in_database(store, account)
            assert lost == 0
            for answered_group, answered in account.answered.items():
                assert answered <= recorded.get(answered_group, 0) + leased


def test_the_disk_covers_what_is_answered_while_another_thread_writes(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    stop = threading.Event()

    def write() -> None:
        while not stop.is_set():
            ledger.renew(account)
            ledger.checkpoint()

    thread = threading.Thread(target=write)
    thread.start()
    try:
        with closing(open_store(place)) as store:
            for step in range(300):
                charge(ledger, account, step % 2, 5)
                answered = dict(account.answered)
                leased, _, recorded = in_database(store, account)
                assert all(tokens <= recorded.get(group, 0) + leased for group, tokens in answered.items())
    finally:
        stop.set()
        thread.join()


def test_a_request_within_the_lease_asks_the_database_nothing(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    account = licensed(ledger)
    charge(ledger, account)
    monkeypatch.setattr("confide.ledger.ledger.LICENCE_SECONDS", math.inf)
    for store in store_classes():
        monkeypatch.setattr(store, "query", refuse)
    for group in range(10):
        assert ledger.ready(account, group, 1, GROUP)
        charge(ledger, account, group)
    with pytest.raises(LedgerUnavailable):
        charge(ledger, account, count=LEAST_LEASE)
    monkeypatch.undo()


def test_it_is_time_to_renew_when_half_is_used(ledger: Ledger) -> None:
    account = licensed(ledger)
    low = [charge(ledger, account) for _ in range(LEAST_LEASE)]
    assert not any(low[: LEAST_LEASE // 2])
    assert all(low[LEAST_LEASE // 2 + 1 :])
    ledger.renew(account)
    assert not charge(ledger, account)


def test_leases_grow_with_use_up_to_a_limit(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    sizes = []
    for _ in range(10):
        ledger.renew(account)
        sizes.append(on_disk(place, account)[0])
    assert sizes == [16, 32, 64, 128, 256, 256, 256, 256, 256, 256]
    assert max(sizes) == MOST_LEASE


def test_tokens_are_the_most_that_any_group_answered(ledger: Ledger) -> None:
    account = licensed(ledger)
    for group in range(3):
        charge(ledger, account, group, 5)
    assert account.used == 5
    charge(ledger, account, 1, 2)  # a retry counts again
    assert account.used == 7
    charge(ledger, account, 0, 2)
    assert account.used == 7


def test_a_clean_stop_gives_the_lease_back(place: Place) -> None:
    with closing(Ledger(place)) as ledger:
        key = licence_key(ledger)
        account = ledger.authenticate(key, MODEL)
        charge(ledger, account, 0, 3)
        charge(ledger, account, 1, 2)
    assert on_disk(place, account) == (0, 0, {0: 3, 1: 2})
    with closing(Ledger(place)) as ledger:
        again = ledger.authenticate(key, MODEL)
        assert (again.used, again.lost, dict(again.answered), again.peak) == (3, 0, {0: 3, 1: 2}, 3)


def test_after_a_crash_the_lease_counts_as_answered_by_every_group(place: Place) -> None:
    ledger = Ledger(place)
    key = licence_key(ledger)
    account = ledger.authenticate(key, MODEL)
    charge(ledger, account, 0, 3)
    kill(ledger)
    outlast_the_dead(place)
    for _ in range(2):  # once, however often it starts again
        with closing(Ledger(place)) as ledger:
            again = ledger.authenticate(key, MODEL)
            assert (again.used, again.lost) == (LEAST_LEASE, LEAST_LEASE)
            assert sum(usage.tokens for usage in ledger.licences.usage(account.licence)) == LEAST_LEASE
            assert again.share_disclosed(7, GROUP) == share_disclosed(GROUP, LEAST_LEASE)


def test_an_idle_licence_has_no_lease_to_lose(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    charge(ledger, account)
    ledger.checkpoint()
    assert on_disk(place, account)[0] == LEAST_LEASE
    ledger.checkpoint()
    assert on_disk(place, account) == (0, 0, {0: 1})
    charge(ledger, account)
    assert on_disk(place, account)[0] == LEAST_LEASE


def test_a_lease_is_no_larger_than_what_the_licence_has_left(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger, tokens=5)
    charge(ledger, account, 0, 2)
    assert on_disk(place, account)[0] == 5


def test_a_budget_is_kept_to_the_token(ledger: Ledger) -> None:
    account = licensed(ledger, tokens=5)
    charge(ledger, account, 0, 4)
    with pytest.raises(BudgetExhausted, match="has 1 tokens left and 2 are needed"):
        charge(ledger, account, 0, 2)
    assert account.used == 4
    charge(ledger, account, 0, 1)
    with pytest.raises(BudgetExhausted):
        charge(ledger, account, 0, 1)
    charge(ledger, account, 1, 5)  # the other groups of the same tokens


@pytest.mark.parametrize("limit", [0.25, 0.5, 1.0])
def test_disclosure_ends_a_licence(ledger: Ledger, limit: float) -> None:
    account = licensed(ledger, disclosure=limit)
    allowed = licensed_tokens(limit, GROUP)
    # 6,144 bits a row; check vectors have 61 * 768 / 64 of them, an answer 32.
    assert allowed == int((limit * 6144 - 732) / 32)
    for _ in range(allowed):
        charge(ledger, account)
    with pytest.raises(DisclosureLimit):
        charge(ledger, account)
    ledger.charge(account, 0, 1, None)  # public weights


def test_more_check_sets_leave_fewer_tokens(ledger: Ledger) -> None:
    account = licensed(ledger, disclosure=0.5, check_sets=4)
    with pytest.raises(DisclosureLimit):
        charge(ledger, account, 0, licensed_tokens(0.5, GROUP, 4) + 1)
    charge(ledger, account, 0, licensed_tokens(0.5, GROUP, 4))
    assert licensed_tokens(0.5, GROUP, 4) < licensed_tokens(0.5, GROUP)


def test_few_valued_weights_are_solved_sooner() -> None:
    ternary = Group("g", (Layer("l", 64),), 256, 15, 30, 256 * 1.585)
    assert share_disclosed(ternary, 13, 0) > 1


def test_what_a_crash_lost_counts_as_disclosed(place: Place) -> None:
    ledger = Ledger(place)
    key = licence_key(ledger, disclosure=0.5)
    account = ledger.authenticate(key, MODEL)
    charge(ledger, account)
    kill(ledger)
    outlast_the_dead(place)
    with closing(Ledger(place)) as ledger:
        again = ledger.authenticate(key, MODEL)
        left = licensed_tokens(0.5, GROUP) - LEAST_LEASE
        with pytest.raises(DisclosureLimit):
            charge(ledger, again, 3, left + 1)
        charge(ledger, again, 3, left)


def test_a_rate_is_kept(ledger: Ledger) -> None:
    account = licensed(ledger, tokens_per_minute=10)
    charge(ledger, account, 0, 10)
    with pytest.raises(RateLimited, match="try again in 6 s"):
        charge(ledger, account)
    for group in range(1, 4):
        charge(ledger, account, group, 10)  # the same tokens


def test_a_running_server_notices_what_others_change(ledger: Ledger, place: Place) -> None:
    account = licensed(ledger)
    charge(ledger, account)
    with licence_book(place) as book:
        book.change(book.find("Example Ltd"), revoked=int(time.time()))
    with pytest.raises(LicenceRefused, match="revoked"):
        keep_charging(ledger, account)


def test_no_licence_is_believed_that_was_read_more_than_a_second_ago(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = licensed(ledger)
    charge(ledger, account)
    for store in store_classes():
        monkeypatch.setattr(store, "query", refuse)
    with pytest.raises(LedgerUnavailable):
        keep_charging(ledger, account)
    with pytest.raises(LedgerUnavailable):
        ledger.require_key(account, account.licence.key_hash)
    monkeypatch.undo()
    charge(ledger, account)


def test_a_licence_is_read_again_where_it_was_changed_while_a_client_was_greeted(
    ledger: Ledger, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The row was read before the change; that it is older than what is known of must not be forgotten."""
    key = licence_key(ledger)
    of_key = LicenceBook.of_key

    def slowly(book: LicenceBook, given: str) -> Licence | None:
        found = of_key(book, given)
        with licence_book(place) as other:
            other.change(other.find("Example Ltd"), revoked=int(time.time()))
        return found

    monkeypatch.setattr(LicenceBook, "of_key", slowly)
    account = ledger.authenticate(key, MODEL)
    ledger.refresh()
    with pytest.raises(LicenceRefused, match="revoked"):
        charge(ledger, account)


@pytest.mark.parametrize("expires", [-1, 0])
def test_an_expired_licence_answers_nothing(ledger: Ledger, expires: int) -> None:
    key = ledger.licences.create("Example Ltd", expires=int(time.time()) + expires)[1]
    with pytest.raises(LicenceRefused, match="expired"):
        ledger.authenticate(key, MODEL)
    with pytest.raises(LicenceRefused, match="does not know"):
        ledger.authenticate(key + "x", MODEL)


@pytest.mark.parametrize("moment", ["before", "rolled back", "committed"])
def test_where_no_lease_can_be_written_nothing_is_counted(
    ledger: Ledger, place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    account = licensed(ledger)
    with monkeypatch.context() as patch:
        break_transactions(patch, moment)
        with pytest.raises(LedgerUnavailable):
            charge(ledger, account)
    assert (account.used, account.answered) == (0, {})
    charge(ledger, account)
    assert on_disk(place, account) == (LEAST_LEASE * (1 if moment == "before" else 2), 0, {})


@pytest.mark.parametrize("moment", ["rolled back", "committed"])
def test_a_write_of_which_nobody_knows_leaves_nothing_to_answer_from_and_is_counted_once(
    ledger: Ledger, place: Place, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    """It may have been written all the same, and the lease on the disk be smaller than the one before."""
    account = licensed(ledger, tokens=100)
    other = ledger.authenticate(ledger.licences.create("Other Ltd", disclosure=None)[1], MODEL)
    charge(ledger, other, 0, 2)
    charge(ledger, account, 0, 5)
    charge(ledger, account, 1, 3)
    with monkeypatch.context() as patch:
        break_transactions(patch, moment)
        for _ in range(2):
            with pytest.raises(LedgerUnavailable):
                ledger.checkpoint()
        assert not ledger.ready(account, 0, 1, GROUP)
        with pytest.raises(LedgerUnavailable):
            charge(ledger, account)
    assert (account.used, other.used) == (5, 2)
    charge(ledger, account, 2, 1)
    assert on_disk(place, account)[2] == {0: 5, 1: 3}
    assert (account.used, dict(account.answered)) == (5, {0: 5, 1: 3, 2: 1})
    assert billed(place) == {account.licence.id: 5} | ({other.licence.id: 2} if moment == "committed" else {})
    ledger.close()
    assert on_disk(place, account) == (0, 0, {0: 5, 1: 3, 2: 1})
    assert on_disk(place, other) == (0, 0, {0: 2})
    assert billed(place) == {account.licence.id: 5, other.licence.id: 2}


def test_a_lease_that_is_being_written_counts_as_the_present_one_does(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either may be what a crash leaves: here the next one is smaller, because the budget nears its end."""
    account = licensed(ledger, tokens=LEAST_LEASE + 4)
    for _ in range(10):
        charge(ledger, account)
    ready: list[bool] = []
    for store in store_classes():
        put_all = store.put_all

        def watched(self: Store, table: str, rows: Iterable[Row], put_all: PutAll = put_all) -> None:
            if table == "leases":  # of 10 tokens, where the present one has 6 left
                (row,) = rows
                ready.extend(ledger.ready(account, 0, count, None) for count in (6, 7, row["tokens"] + 1))
                other = account.answered[1]
                ready.append(ledger.ready(account, 1, row["tokens"], None))
                ready.append(ledger.ready(account, 1, row["tokens"] + 1, None))
                assert other == 0
                rows = [row]
            put_all(self, table, rows)

        monkeypatch.setattr(store, "put_all", watched)
    ledger.renew(account)
    assert ready == [True, False, False, True, False]


def test_a_file_that_another_process_holds_is_unavailable(databases: list[sqlite3.Connection], tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        account = licensed(ledger)
        databases[0].execute("PRAGMA busy_timeout=0")
        with closing(sqlite3.connect(tmp_path / DATABASE, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(LedgerUnavailable, match="Nothing was answered"):
                charge(ledger, account)
            other.execute("ROLLBACK")
        charge(ledger, account)


def test_a_folder_has_one_server_at_a_time(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)), pytest.raises(LedgerInUse):
        Ledger(tmp_path)


def test_a_copy_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path / "one").close()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / DATABASE).write_bytes((tmp_path / "one" / DATABASE).read_bytes())
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        Ledger(tmp_path / "two")


def test_disclosure_is_each_models_own_and_the_budget_is_one(place: Place) -> None:
    with closing(Ledger(place)) as ledger:
        key = ledger.licences.create("Example Ltd", tokens=10, disclosure=None)[1]
        one, other = ledger.authenticate(key, MODEL), ledger.authenticate(key, OTHER)
        charge(ledger, one, count=6)
        # Not what the first one's layers have answered already: these are other weights, and answers all the same.
        charge(ledger, other, count=3)
        assert (one.used, other.used) == (9, 9)
        assert (one.share_disclosed(0, GROUP), other.share_disclosed(0, GROUP)) == (
            share_disclosed(GROUP, 6),
            share_disclosed(GROUP, 3),
        )
        with pytest.raises(BudgetExhausted):
            charge(ledger, other, count=2)
    with closing(Ledger(place)) as ledger:
        one, other = ledger.authenticate(key, MODEL), ledger.authenticate(key, OTHER)
        assert (one.used, dict(one.answered), dict(other.answered)) == (9, {0: 6}, {0: 3})


def test_all_accounts_of_a_licence_are_recorded_together(place: Place, ledger: Ledger) -> None:
    """They share a row of usage for each unit; what one has put there is not another's once more."""
    key = ledger.licences.create("Example Ltd", tokens=1000, disclosure=None)[1]
    one, other = ledger.authenticate(key, MODEL), ledger.authenticate(key, OTHER)
    made = ledger.account(one.budget, MODEL, OUTPUT)
    for turn in range(1, 4):
        for account, tokens in ((one, 6), (other, 3), (made, 2)):
            charge(ledger, account, count=tokens)
        ledger.checkpoint()
        with licence_book(place) as book:
            assert {usage.unit: usage.tokens for usage in book.usage()} == {"layers": 9 * turn, OUTPUT: 2 * turn}
        assert one.used == 11 * turn
    ledger.renew(one)  # which reads it all again
    assert one.used == 33
    charge(ledger, other)
    ledger.checkpoint()  # the others were not used since
    for account, lease in ((one, 0), (other, LEAST_LEASE), (made, 0)):
        with closing(open_store(place)) as store:
            where = {"licence": one.licence.id, "model": account.model, "unit": account.unit}
            assert sum(row["tokens"] for row in store.rows("leases", **where)) == lease


def test_many_accounts_are_recorded_some_at_a_time(
    place: Place, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITTEN_TOGETHER", 2)
    accounts = several(ledger, 5)
    for tokens, account in enumerate(accounts, start=1):
        charge(ledger, account, count=tokens)
    begun = count_transactions(monkeypatch)
    ledger.checkpoint()
    assert len(begun) == 3
    assert billed(place) == {account.licence.id: tokens for tokens, account in enumerate(accounts, start=1)}


def test_leases_that_are_due_while_one_is_written_are_written_together(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    accounts = several(ledger, 6)
    for account in accounts:
        charge(ledger, account)
    inside, go_on = threading.Event(), threading.Event()

    def wait() -> None:
        inside.set()
        go_on.wait()

    begun = count_transactions(monkeypatch, wait)
    renewing = [threading.Thread(target=ledger.renew, args=(account,)) for account in accounts]
    renewing[0].start()
    inside.wait()
    for thread in renewing[1:]:
        thread.start()
    due = vars(ledger)["_due"]
    while len(due) < 5:  # the others wait for the first
        time.sleep(0.01)
    go_on.set()
    for thread in renewing:
        thread.join()
    assert len(begun) == 2
    for account in accounts:
        assert ledger.ready(account, 0, 2 * LEAST_LEASE, None)


def several(ledger: Ledger, count: int) -> list[Account]:
    """Of different licences."""
    keys = [ledger.licences.create(f"Example {number}", disclosure=None)[1] for number in range(count)]
    return [ledger.authenticate(key, MODEL) for key in keys]


def count_transactions(patch: pytest.MonkeyPatch, first: Callable[[], object] = lambda: None) -> list[object]:
    """A list that grows by one for each transaction with licences that begins. first: done in the first of them."""
    begun: list[object] = []

    def counted(transaction: Callable[..., AbstractContextManager[None]]) -> Callable[..., object]:
        @contextmanager
        def counting(store: Store, licences: object = None) -> Iterator[None]:
            if licences:
                begun.append(licences)
            with transaction(store, licences):
                if licences and len(begun) == 1:
                    first()
                yield

        return counting

    for kind in store_classes():
        patch.setattr(kind, "transaction", counted(kind.transaction))
    return begun


def test_a_licence_ends_at_a_model_and_not_at_another(ledger: Ledger) -> None:
    key = ledger.licences.create("Example Ltd", disclosure=0.5)[1]
    one, other = ledger.authenticate(key, MODEL), ledger.authenticate(key, OTHER)
    most = licensed_tokens(0.5, GROUP)
    charge(ledger, one, count=most)
    with pytest.raises(DisclosureLimit):
        charge(ledger, one)
    charge(ledger, other, count=most)


def test_what_a_crash_lost_is_the_models_that_was_answering(place: Place) -> None:
    ledger = Ledger(place)
    key = ledger.licences.create("Example Ltd", disclosure=None)[1]
    charge(ledger, ledger.authenticate(key, MODEL))
    kill(ledger)
    outlast_the_dead(place)
    with closing(Ledger(place)) as again:
        one, other = again.authenticate(key, MODEL), again.authenticate(key, OTHER)
        assert (one.used, one.lost, other.lost) == (LEAST_LEASE, LEAST_LEASE, 0)


def test_another_key_keeps_what_was_counted(ledger: Ledger, place: Place) -> None:
    licence, old = ledger.licences.create("Example Ltd", tokens=10, disclosure=None)
    account = ledger.authenticate(old, MODEL)
    held = account.licence.key_hash
    charge(ledger, account, count=4)
    with licence_book(place) as book:
        renewed, new = book.rekey(licence)
    assert (renewed.id, renewed.tokens, renewed.key_hash != held) == (licence.id, 10, True)
    with pytest.raises(LicenceRefused):
        ledger.authenticate(old, MODEL)
    again = ledger.authenticate(new, MODEL)
    assert again.tokens_left == 6
    ledger.require_key(again, renewed.key_hash)
    with pytest.raises(LicenceRefused, match="another key"):
        ledger.require_key(again, held)


# -- units -------------------------------------------------------------------------------------------------------


def both(ledger: Ledger, key: str) -> tuple[Account, Account]:
    """What an enclave counts by: tokens of prompts and tokens of answers."""
    read = ledger.authenticate(key, MODEL, INPUT)
    return read, ledger.account(read.budget, MODEL, OUTPUT)


def test_units_are_counted_apart_and_draw_on_one_budget(place: Place) -> None:
    with closing(Ledger(place)) as ledger:
        key = licence_key(ledger, tokens=100)
        read, made = both(ledger, key)
        ledger.charge(read, 0, 60, None)
        ledger.charge(made, 0, 30, None)
        for _ in range(2):
            ledger.checkpoint()
            assert (read.used, made.used, read.tokens_left) == (90, 90, 10)
        with pytest.raises(BudgetExhausted):
            ledger.charge(read, 0, 11, None)
        ledger.charge(made, 0, 10, None)
    with closing(Ledger(place)) as ledger:
        read, made = both(ledger, key)
        assert (read.used, dict(read.answered), dict(made.answered)) == (100, {0: 60}, {0: 40})
        used = {(usage.unit, usage.tokens) for usage in ledger.licences.usage()}
    assert used == {("input", 60), ("output", 40)}


def test_a_crash_counts_what_was_leased_in_its_unit(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    key = licence_key(ledger)
    read, made = both(ledger, key)
    ledger.charge(read, 0, 100, None)
    ledger.charge(made, 0, 1, None)
    kill(ledger)
    with closing(Ledger(tmp_path)) as ledger:
        used = {usage.unit: usage.tokens for usage in ledger.licences.usage()}
        assert used == {"input": 100, "output": LEAST_LEASE}
        read, made = both(ledger, key)
        assert (read.lost, made.lost, read.used) == (100, LEAST_LEASE, 100 + LEAST_LEASE)


def test_what_is_held_is_nobody_elses_and_comes_back(tmp_path: Path) -> None:
    with closing(Ledger(tmp_path)) as ledger:
        budget = both(ledger, licence_key(ledger, tokens=100, tokens_per_minute=80))[0].budget
        with budget.holding(60):
            assert budget.tokens_left == 40
            with pytest.raises(BudgetExhausted), budget.holding(41):
                pass
            with pytest.raises(RateLimited) as limited, budget.holding(40):
                pass
            assert 10 < limited.value.retry_seconds <= 15  # 20 tokens, at 80 a minute
        assert (budget.tokens_left, budget.held, budget.used) == (100, 0, 0)


def test_tokens_of_a_request_that_was_let_in_are_not_too_many_for_the_minute(tmp_path: Path) -> None:
    """An answer that has begun is not broken off for its pace: the next request waits for that."""
    with closing(Ledger(tmp_path)) as ledger:
        _, made = both(ledger, licence_key(ledger, tokens_per_minute=60))
        with made.budget.holding(1):
            pass
        for _ in range(4):
            ledger.charge(made, 0, 30, None, admitted=True)
        with pytest.raises(RateLimited) as limited, made.budget.holding(1):
            pass
        assert limited.value.retry_seconds > 55
        with pytest.raises(RateLimited):
            ledger.charge(made, 0, 30, None)


def test_a_ledger_that_cannot_be_followed_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def away(_: LicenceBook) -> int:
        raise LedgerUnavailable("The cable was cut.")

    monkeypatch.setattr(module, "TOUCH_SECONDS", 0.5)
    with closing(Ledger(tmp_path)) as ledger:
        eventually(lambda: ledger.in_touch)
        with monkeypatch.context() as patch:
            patch.setattr(LicenceBook, "changes", property(away))
            eventually(lambda: not ledger.in_touch)
        eventually(lambda: ledger.in_touch)


def eventually(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)
