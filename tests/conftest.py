"""What all tests share."""

import logging
import os
import sqlite3
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from confide.ledger.address import DatabaseAddress
    from postgres import Postgres

# How long an example takes is this machine's affair, and what else runs there.
settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

if "PYTEST_XDIST_WORKER" in os.environ:
    # Each worker has a core. Threads of several would spin in each other's way, for longer than they work.
    for threads in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(threads, "1")


# Where tests start programs and wait for them. They come first, so that a run does not end with one worker that waits
# beside idle ones: what only computes fills the gaps.
WAITING = ("cli", "proxy", "examples", "enclave", "client", "hybrid", "models")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    def turn(item: pytest.Item) -> int:
        folder = item.path.relative_to(Path(__file__).parent).parts[0]
        return WAITING.index(folder) if folder in WAITING else len(WAITING)

    items.sort(key=turn)


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A test that leaves logging's own lock taken fails, and no later one waits for it for ever.

    Python 3.11 lets go of it without `finally` where levels are set, so that an error there, such as one out of a
    finalizer, would stop a whole run: seen once, at the end of one.
    """
    lock: Any = vars(logging)["_lock"]
    if f"owner={threading.get_ident()} " in repr(lock):
        lock.release()
        pytest.fail(f"{item.nodeid} left logging's lock taken.")


@pytest.fixture(scope="session", autouse=True)
def confide_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home for owner keys that is nobody's; the processes that tests start inherit it."""
    folder = tmp_path_factory.mktemp("confide-home")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(folder))
        patch.delenv("CONFIDE_OWNER_PASSPHRASE", raising=False)
        yield folder


@pytest.fixture(scope="session", autouse=True)
def no_proxy() -> Iterator[None]:
    """Tests ask servers on this machine, by httpx and curl too, which would go to a proxy that the environment names.

    That Confide itself takes none has tests of its own: see `tests.net`.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy"):
            patch.delenv(name, raising=False)
            patch.delenv(name.upper(), raising=False)
        yield


@pytest.fixture(autouse=True)
def no_handlers_left() -> Iterator[None]:
    """A command that runs in a test's own process sets up logging, to a stream that ends with the test."""
    before = list(logging.root.handlers)
    yield
    for handler in logging.root.handlers[:]:
        if type(handler) is logging.StreamHandler and handler not in before:
            logging.root.removeHandler(handler)


@pytest.fixture
def databases(monkeypatch: pytest.MonkeyPatch) -> list[sqlite3.Connection]:
    """The connections to SQLite that are opened from here on, first to last."""
    opened: list[sqlite3.Connection] = []
    connect = sqlite3.connect

    def noted(*where: Any, **options: Any) -> sqlite3.Connection:
        opened.append(connect(*where, **options))
        return opened[-1]

    monkeypatch.setattr(sqlite3, "connect", noted)
    return opened


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of real data: CONFIDE_TEST_DATA, or `shared` beside the repository."""
    beside = Path(__file__).parents[2] / "shared"
    folder = Path(os.environ.get("CONFIDE_TEST_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there; set CONFIDE_TEST_DATA to the folder of test data")
    return folder


@pytest.fixture(scope="session")
def postgres() -> Iterator["Postgres"]:
    """A database server that all tests of this process share; skips where none is installed."""
    pytest.importorskip("psycopg_pool")
    from postgres import PASSWORD, Postgres

    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("PG")]:
            patch.delenv(name)
        patch.setenv("CONFIDE_LEDGER_PASSWORD", PASSWORD)
        server = Postgres()
        try:
            yield server
        finally:
            server.stop()


@pytest.fixture
def database(postgres: "Postgres") -> "DatabaseAddress":
    """An empty database."""
    return postgres.database()
