"""Servers that share a ledger: limits hold over all of them, and each token is billed once, whatever dies or breaks."""

import logging
import math
import os
import random
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import (
    BudgetExhausted,
    ConfideError,
    DisclosureLimit,
    InvalidSettings,
    LedgerCopied,
    LedgerUnavailable,
    LicenceRefused,
    ServerBusy,
)
from confide.ledger import ledger as module
from confide.ledger.address import DatabaseAddress, Place, parse_place
from confide.ledger.ledger import ENDED, LEAST_LEASE, Ledger
from confide.ledger.licences import licence_book
from confide.ledger.opening import open_store
from confide.ledger.usage import Account, licensed_tokens
from confide.net.tls import make_certificates
from confide.packages.manifest import Group, Layer

from ..flaky import flaky_road
from .world import kill, outlast_the_dead, store_classes

if TYPE_CHECKING:
    from postgres import Postgres

MODEL = bytes(32)
GROUP = Group("g", (Layer("l", 64),), 768, 15, 30, 768 * 8.0)
SEED = 7
Result = TypeVar("Result")


class Replicas:
    """Two servers' ledgers of one database, and a licence's account at each."""

    def __init__(self, database: DatabaseAddress, stack: ExitStack, **limits: int | float | None) -> None:
        self.database = database
        with licence_book(database) as book:
            self.licence, self.key = book.create("Example Ltd", **({"disclosure": None} | limits))  # type: ignore[arg-type]
        self.ledgers = [stack.enter_context(closing(Ledger(database))) for _ in range(2)]
        self.accounts = [self.account(ledger) for ledger in self.ledgers]

    def account(self, ledger: Ledger) -> Account:
        return ledger.authenticate(self.key, MODEL)

    def charge(self, server: int, group: int = 0, count: int = 1) -> None:
        """As a client does that comes back when it is told that others hold what is left."""
        for _ in range(600):
            try:
                self.ledgers[server].charge(self.accounts[server], group, count, GROUP)
                return
            except ServerBusy:
                time.sleep(0.1)
        raise AssertionError("the other server gives nothing back")

    def billed(self) -> int:
        with licence_book(self.database) as book:
            return sum(usage.tokens for usage in book.usage(self.licence))

    def recorded(self) -> dict[int, int]:
        with licence_book(self.database) as book:
            return book.disclosed(self.licence.id, MODEL)


@pytest.fixture
def replicas(database: DatabaseAddress) -> Iterator[Callable[..., Replicas]]:
    with ExitStack() as stack:
        yield lambda **limits: Replicas(database, stack, **limits)


def eventually(condition: Callable[[], bool]) -> None:
    for _ in range(600):
        if condition():
            return
        time.sleep(0.1)
    raise AssertionError("it did not come about within a minute")


# -- limits ------------------------------------------------------------------------------------------------------


def test_a_budget_is_one_for_all_servers_and_used_to_the_last_token(replicas: Callable[..., Replicas]) -> None:
    both = replicas(tokens=40)
    for answered in range(40):
        both.charge(answered % 2)
    for server in range(2):
        with pytest.raises(BudgetExhausted):
            both.charge(server)
    for ledger in both.ledgers:
        ledger.close()
    assert both.billed() == 40


def test_what_another_server_has_leased_is_nobody_elses_to_spend(
    replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without what they say to each other, which only makes it faster."""
    for store in store_classes():
        monkeypatch.setattr(store, "announce", lambda store, licence: None)
    both = replicas(tokens=LEAST_LEASE + 4)
    first, second = both.ledgers
    first.charge(both.accounts[0], 0, 1, GROUP)  # which leases 16 of 20
    second.charge(both.accounts[1], 0, 4, GROUP)
    with pytest.raises(ServerBusy, match="Other servers hold the last tokens"):
        second.charge(both.accounts[1], 0, 1, GROUP)
    for _ in range(LEAST_LEASE - 1):
        first.charge(both.accounts[0], 0, 1, GROUP)
    first.checkpoint()
    with pytest.raises(BudgetExhausted):
        second.charge(both.accounts[1], 0, 1, GROUP)
    second.checkpoint()
    assert both.billed() == LEAST_LEASE + 4


def test_disclosure_is_not_spent_twice_at_once(
    replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    for store in store_classes():
        monkeypatch.setattr(store, "announce", lambda store, licence: None)
    both = replicas(disclosure=0.25)
    most = licensed_tokens(0.25, GROUP)
    both.ledgers[0].charge(both.accounts[0], 0, most - 1, GROUP)
    with pytest.raises(ServerBusy):
        both.ledgers[1].charge(both.accounts[1], 0, 2, GROUP)
    both.ledgers[0].checkpoint()
    both.ledgers[0].checkpoint()
    with pytest.raises(DisclosureLimit):
        both.ledgers[1].charge(both.accounts[1], 0, 2, GROUP)
    both.ledgers[1].charge(both.accounts[1], 0, 1, GROUP)


def test_disclosure_is_one_for_all_servers(replicas: Callable[..., Replicas]) -> None:
    both = replicas(disclosure=0.25)
    most = licensed_tokens(0.25, GROUP)
    for answered in range(most):
        both.charge(answered % 2)
    for server in range(2):
        with pytest.raises(DisclosureLimit):
            both.charge(server)
    both.charge(0, group=1)  # of which nothing is disclosed yet


def test_a_token_whose_groups_are_answered_by_different_servers_is_billed_once(
    replicas: Callable[..., Replicas],
) -> None:
    both = replicas(tokens=100)
    for group in range(6):
        both.charge(group % 2, group, 10)
    for ledger in both.ledgers:
        ledger.checkpoint()
    assert both.billed() == 10
    for server in range(2):
        both.charge(server, 0, 5)
    for ledger in both.ledgers:
        ledger.close()
    assert both.recorded() == {0: 20} | dict.fromkeys(range(1, 6), 10)
    assert both.billed() == 20


@pytest.mark.parametrize("by", ["announcement", "poll"])
def test_a_revocation_reaches_every_server(
    replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch, by: str
) -> None:
    """By what the database sends, or without that, by looking; either is enough. What is older is not believed."""
    monkeypatch.setattr(module, "LICENCE_SECONDS", math.inf)
    if by == "poll":
        for store in store_classes():
            monkeypatch.setattr(store, "announce", lambda store, licence: None)
    else:
        monkeypatch.setattr(module, "POLL_SECONDS", 50.0)
    both = replicas()
    for server in range(2):
        both.charge(server)
    with licence_book(both.database) as book:
        book.change(both.licence, revoked=int(time.time()))

    def refused(server: int) -> bool:
        with suppress(LicenceRefused):
            both.charge(server)
            return False
        return True

    for server in range(2):
        eventually(lambda server=server: refused(server))  # type: ignore[misc]
    if by == "announcement":
        monkeypatch.setattr(module, "POLL_SECONDS", 0.1)
        with licence_book(both.database) as book:
            book.change(both.licence, revoked=None)  # wakes them, so that they close without waiting


# -- owners ------------------------------------------------------------------------------------------------------


def test_two_servers_that_believe_they_own_a_lease(replicas: Callable[..., Replicas]) -> None:
    """One is silent for so long that another counts its lease as answered; then it goes on, and knows nothing of it."""
    both = replicas(tokens=1000)
    first, second = both.ledgers
    both.charge(0, count=3)
    outlast_the_dead(both.database)
    third = Ledger(both.database)
    assert (both.account(third).used, both.account(third).lost) == (LEAST_LEASE, LEAST_LEASE)
    both.charge(0, count=5)  # of a lease that is counted already
    first.checkpoint()  # where it learns of that
    assert both.billed() == LEAST_LEASE
    assert both.recorded() == {}
    both.charge(0, count=2)
    both.charge(1, count=1)
    for ledger in (first, second, third):
        ledger.close()
    assert both.billed() == LEAST_LEASE + 3
    assert both.recorded() == {0: 3}
    with closing(open_store(both.database)) as store:
        assert store.rows("leases") == []
        assert [owner["fence"] for owner in store.rows("owners")] == [ENDED, ENDED]  # the third left by itself


def test_a_server_that_is_dead_is_ended_by_the_others(
    replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "HEARD_SECONDS", 0.1)
    both = replicas()
    both.charge(0)
    both.charge(1)
    kill(both.ledgers[0])
    assert both.billed() == 0
    monkeypatch.setattr(module, "OWNER_SECONDS", 0.5)  # long for one that is heard of ten times in it
    eventually(lambda: both.billed() == LEAST_LEASE)
    both.ledgers[1].close()
    assert both.billed() == LEAST_LEASE + 1


def test_a_lease_that_another_process_writes_under_our_name_is_not_written_over(
    replicas: Callable[..., Replicas],
) -> None:
    """As a copy of this process would, if a machine is put to sleep and woken twice."""
    both = replicas()
    both.charge(0, count=3)
    with closing(open_store(both.database)) as store, store.transaction():
        (lease,) = store.rows("leases")
        (owner,) = store.rows("owners", id=lease["owner"])
        store.put("owners", **(owner | {"fence": owner["fence"] + 1}))
    both.ledgers[0].checkpoint()
    assert both.recorded() == {0: 3}  # by another name, and the lease of the first one is left to be counted
    with closing(open_store(both.database)) as store:
        assert len(store.rows("owners")) == 3


@pytest.mark.parametrize("before", ["a write", "its start"])
def test_a_database_that_was_put_back_is_not_gone_on_with(replicas: Callable[..., Replicas], before: str) -> None:
    both = replicas()
    both.charge(0, count=3)
    with closing(open_store(both.database)) as store:
        owners = store.rows("owners") if before == "a write" else []
        both.ledgers[0].renew(both.accounts[0])
        both.charge(0)
        with store.transaction():
            store.delete("owners")
            store.put_all("owners", owners)
    with pytest.raises(LedgerCopied, match="earlier state"):
        both.ledgers[0].renew(both.accounts[0])
    with suppress(LedgerCopied):
        both.ledgers[0].close()


# -- what breaks -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cuts", [25, pytest.param(1000, marks=pytest.mark.slow)])
def test_nothing_is_lost_or_doubled_wherever_a_connection_is_cut(
    database: DatabaseAddress, monkeypatch: pytest.MonkeyPatch, cuts: int
) -> None:
    """Each connection carries some bytes, and breaks within a query, a commit, or the answer to one."""
    monkeypatch.setattr(module, "OWNER_SECONDS", math.inf)  # nobody is taken for dead, however slow this machine is
    randomly = random.Random(SEED)
    broken = 0

    def allowance() -> tuple[float, float]:
        nonlocal broken
        broken += 1
        whole = broken > cuts or not running
        return math.inf, math.inf if whole else randomly.choice(
            (randomly.randint(0, 3000), randomly.randint(0, 60_000))
        )

    running = True
    answered: Counter[tuple[int, int]] = Counter()
    with flaky_road(f"127.0.0.1:{database.port}", allowance) as road:
        far = DatabaseAddress(database.host, int(road.url.rpartition(":")[2]), database.database, database.user)
        with licence_book(database) as book:
            made = [book.create(name, disclosure=None) for name in ("one", "two")]
        ledger = _insist(lambda: Ledger(far))
        accounts = [_insist(lambda key=key: ledger.authenticate(key, MODEL)) for _, key in made]  # type: ignore[misc]
        while broken <= cuts:
            which, group, count = randomly.randrange(2), randomly.randrange(3), randomly.randint(1, 20)
            try:
                low = ledger.charge(accounts[which], group, count, None)
                answered[which, group] += count
                if low:
                    ledger.renew(accounts[which])
                if randomly.random() < 0.1:
                    ledger.checkpoint()
            except LedgerUnavailable:
                continue
        running = False
        _insist(ledger.checkpoint)
        with suppress(LedgerUnavailable):  # where a connection is left that breaks
            ledger.close()
    with licence_book(database) as book:
        for which, (licence, _) in enumerate(made):
            totals = {group: tokens for (owner, group), tokens in answered.items() if owner == which}
            assert book.disclosed(licence.id, MODEL) == totals
            assert book.lost(licence.id, MODEL) == 0
            assert sum(usage.tokens for usage in book.usage(licence)) == max(totals.values())


def _insist(act: Callable[[], Result]) -> Result:
    for _ in range(600):
        with suppress(LedgerUnavailable):
            return act()
        time.sleep(0.05)
    raise AssertionError("the database does not come back")


@pytest.mark.parametrize("kills", [1, pytest.param(100, marks=pytest.mark.slow)])
def test_what_postgresql_said_it_has_survives_its_death(
    postgres: "Postgres", replicas: Callable[..., Replicas], monkeypatch: pytest.MonkeyPatch, kills: int
) -> None:
    monkeypatch.setattr(module, "OWNER_SECONDS", math.inf)
    both = replicas()
    answered = 0
    for _ in range(kills):
        for server in (0, 1, 0):
            both.charge(server)
            answered += 1
        postgres.kill()
        with suppress(LedgerUnavailable):
            for _ in range(LEAST_LEASE * 20):
                both.ledgers[0].charge(both.accounts[0], 0, 1, None)
                answered += 1
        assert answered % (LEAST_LEASE * 20), "a dead database was answered from"
        postgres.start()
        for server in range(2):
            _insist(lambda server=server: both.charge(server))  # type: ignore[misc]
            answered += 1
    for ledger in both.ledgers:
        _insist(ledger.checkpoint)
        ledger.close()
    assert both.recorded() == {0: answered}
    assert both.billed() == answered


# -- the connection ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["synchronous_commit", "fsync", "full_page_writes"])
def test_a_database_that_does_not_wait_for_its_disk_is_refused(
    postgres: "Postgres", database: DatabaseAddress, setting: str
) -> None:
    _alter(postgres, setting, "off")
    try:
        with pytest.raises(LedgerUnavailable, match=f'does not wait for its disk: {setting} is "off"'):
            Ledger(database)
    finally:
        _alter(postgres, setting, "on")


def test_a_connection_goes_on_waiting_for_the_disk(postgres: "Postgres", database: DatabaseAddress) -> None:
    """Whatever the database is told meanwhile; new connections are refused then."""
    with closing(open_store(database)) as store:
        store.query("SELECT 1", ())
        try:
            _alter(postgres, "synchronous_commit", "off")
            assert store.query("SHOW synchronous_commit", ())[0]["synchronous_commit"] == "on"
            with postgres.connect() as admin:
                admin.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name='confide'")
            with pytest.raises(LedgerUnavailable, match="synchronous_commit"):
                store.query("SELECT 1", ())
        finally:
            _alter(postgres, "synchronous_commit", "on")


def _alter(postgres: "Postgres", setting: str, value: str) -> None:
    with postgres.connect() as admin:
        admin.execute(f"ALTER SYSTEM SET {setting} = {value}".encode())
        admin.execute("SELECT pg_reload_conf()")
    eventually(lambda: _shown(postgres, setting) == value)


def _shown(postgres: "Postgres", setting: str) -> str:
    with postgres.connect() as admin:
        row = admin.execute("SELECT current_setting(%s)", (setting,)).fetchone()
        assert row is not None
        return str(row[0])


def test_no_password_is_shown(
    postgres: "Postgres", database: DatabaseAddress, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    secret = os.environ["CONFIDE_LEDGER_PASSWORD"]
    caplog.set_level(logging.DEBUG)
    with closing(Ledger(database)) as ledger, closing(open_store(database)) as store:
        shown = [repr(one) for one in (ledger, ledger.licences, store, database, vars(store))]
    assert secret not in "".join((*shown[:-1], caplog.text))
    monkeypatch.setenv("CONFIDE_LEDGER_PASSWORD", secret[::-1])
    with pytest.raises(LedgerUnavailable, match="password authentication failed") as refused:
        Ledger(database)
    whole = repr((refused.value, refused.value.__cause__)) + caplog.text
    assert secret not in whole
    assert secret[::-1] not in whole


def test_what_the_environment_says_to_libpq_is_refused(
    database: DatabaseAddress, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("PGHOSTADDR", "PGSSLMODE", "PGOPTIONS", "PGSERVICE"):
        with monkeypatch.context() as patch:
            patch.setenv(name, "x")
            with pytest.raises(InvalidSettings, match=f"{name} in the environment"):
                open_store(database)


def test_a_server_proves_who_it_is(postgres: "Postgres", database: DatabaseAddress, tmp_path: Path) -> None:
    certificates, others = make_certificates([]), make_certificates([])
    certificates.write(postgres.folder / "tls")
    others.write(tmp_path)
    owner = (postgres.folder / "data").stat()
    for path in (postgres.folder / "tls").iterdir():
        os.chown(path, owner.st_uid, owner.st_gid)
    with postgres.connect() as admin:
        admin.execute(f"ALTER SYSTEM SET ssl_cert_file = '{postgres.folder}/tls/server.pem'".encode())
        admin.execute(f"ALTER SYSTEM SET ssl_key_file = '{postgres.folder}/tls/server.key'".encode())
    _alter(postgres, "ssl", "on")
    trusting = parse_place(f"{database}?sslrootcert={postgres.folder}/tls/ca.pem")
    with closing(open_store(trusting)) as store:
        (found,) = store.query("SELECT ssl FROM pg_stat_ssl WHERE pid = pg_backend_pid()", ())
        assert found["ssl"] is True
    with pytest.raises(LedgerUnavailable, match="certificate verify failed"):
        open_store(parse_place(f"{database}?sslrootcert={tmp_path}/ca.pem"))
    _alter(postgres, "ssl", "off")
    with pytest.raises(LedgerUnavailable, match="does not support SSL"):
        open_store(trusting)


def test_tables_of_another_version_are_left_alone(database: DatabaseAddress) -> None:
    with closing(open_store(database)) as store:
        store.query("UPDATE version SET number = 9", ())
    with pytest.raises(LedgerUnavailable, match="another version"):
        open_store(database)


def test_a_database_that_is_not_there_says_so(database: DatabaseAddress) -> None:
    with pytest.raises(LedgerUnavailable, match="cannot be used"):
        open_store(DatabaseAddress(database.host, 1, database.database, database.user))
    with pytest.raises(ConfideError, match="database 'nothing' does not exist"):
        open_store(DatabaseAddress(database.host, database.port, "nothing", database.user))


# -- addresses ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://keeper@127.0.0.1:5432/ledger",
        "postgresql://keeper@[::1]:5433/ledger",
        "postgresql://keeper@db.example:5432/ledger?sslrootcert=/etc/ca.pem",
        "postgresql://keeper@:5432/ledger?host=/run/postgresql",
    ],
    ids=["v4", "v6", "tls", "socket"],
)
def test_an_address_is_written_as_it_is_read(text: str) -> None:
    assert str(DatabaseAddress.parse(text)) == text
    assert parse_place(text) == DatabaseAddress.parse(text)


@pytest.mark.parametrize(
    "text",
    [
        "postgresql://",
        "postgresql://keeper@127.0.0.1",
        "postgresql://127.0.0.1/ledger",
        "postgresql://keeper@127.0.0.1,db.example/ledger",
        "postgresql://keeper@127.0.0.1:x/ledger",
        "postgresql://keeper@127.0.0.1:99999/ledger",
        "postgresql://keeper@127.0.0.1/ledger?sslmode=disable",
        "postgresql://keeper@127.0.0.1/ledger?host=/run/postgresql",
        "postgresql://keeper@/ledger?host=db.example",
        "postgresql://keeper@127.0.0.1/ledger?sslrootcert=ca.pem",
        "postgresql://keeper@127.0.0.1/ledger#x",
        "postgresql://keeper@127.0.0.1/led ger",
        "postgresql://keeper@127.0.0.1/ledger%27%20options%3d",
        "postgresql://keeper@[::1/ledger",
        "postgresql://keeper@127.0.0.1/" + "x" * 3000,
        "postgres://keeper@127.0.0.1/ledger",
        "postgresql:/keeper@127.0.0.1/ledger",
    ],
    ids=range(17),
)
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(InvalidSettings, match="Write it so"):
        parse_place(text)


@given(
    st.text(max_size=60) | st.text("@:/?&=%[].#", max_size=60),
    st.sampled_from(["postgresql://", "postgresql://a@", "postgresql://a@127.0.0.1/", "postgresql://a@127.0.0.1/b?"]),
)
def test_any_text_is_an_address_or_refused(text: str, before: str) -> None:
    with suppress(InvalidSettings):
        address = DatabaseAddress.parse(before + text)
        assert DatabaseAddress.parse(str(address)) == address


def test_a_password_in_an_address_is_refused_and_not_repeated() -> None:
    with pytest.raises(InvalidSettings, match="CONFIDE_LEDGER_PASSWORD") as refused:
        parse_place("postgresql://keeper:hunter2@127.0.0.1/ledger")
    assert "hunter2" not in str(refused.value)


@pytest.mark.parametrize("host", ["db.example", "10.0.0.1", "192.0.2.1", "[fe80::1]"])
def test_a_server_elsewhere_needs_tls(host: str) -> None:
    with pytest.raises(InvalidSettings, match="sslrootcert"):
        parse_place(f"postgresql://keeper@{host}/ledger")


def test_a_folder_is_a_place_too() -> None:
    found: Place = parse_place("some/postgresql")
    assert found == Path("some/postgresql")
