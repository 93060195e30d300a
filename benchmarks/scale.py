"""More than one layer server, GPT-2-small's shape: throughput, failover, idle sessions, and what a shared ledger costs.

Each server has one core, and all of them a PostgreSQL database that is started for this. The load comes from frames
that were made beforehand, so that the generator takes little; its own share is told, and counts where it has no core of
its own. What `confide plan --users` would say of two servers and 64 clients stands beside what was measured. Takes four
minutes.
"""

import asyncio
import os
import shutil
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from urllib.parse import urlsplit

import msgspec
import torch
import uvloop
from tests.postgres import PASSWORD, Postgres

from benchmarks.measure import Figure, proportional_bytes, write
from benchmarks.shapes import SplitModel, split_shape
from confide import HybridModel
from confide.disk.secrets import LEDGER_PASSWORD, variable
from confide.evaluate.calibrate import calibrate
from confide.evaluate.cost_model import ClientRates, Cut, GroupRate, GroupShape, Network, SkeletonTimes
from confide.evaluate.fleet import Machine, Simulated, simulate
from confide.evaluate.fleet_plan import FleetTimes, Percentiles
from confide.evaluate.load import Load, Player, hello, record, replay
from confide.evaluate.shapes import GPT2_SMALL
from confide.evaluate.trace import Arrival
from confide.ledger.address import DatabaseAddress, Place
from confide.ledger.ledger import Ledger
from confide.ledger.licences import licence_book
from confide.packages.manifest import Manifest, read_manifest

GROUPS = 48
SPENT_TOKENS = 3000
ROUNDS = 5
SERVERS = (1, 2)
TOKENS = {16: 8, 64: 3}
"""Of each client, by how many clients there are."""
LOAD_ROUNDS = 5
SESSIONS = 1000
SESSIONS_A_LICENCE = 25
PASSES, KILLED_AT = 40, 12
"""Tokens of the client whose server is killed, and after which one."""
NOTHING = GroupRate(0, 0, 0, 0)


def main() -> list[Figure]:
    with closing(_Database()) as postgres, split_shape(GPT2_SMALL) as model:
        shutil.rmtree(model.server / "state")  # the ledger is in the database
        figures = [*_throughput(model, postgres.database()), _failover(model, postgres.database())]
        figures += [_idle(model, postgres.database()), _ledger(postgres.database())]
    write("scale", figures)
    return figures


class _Database(Postgres):
    def __init__(self) -> None:
        os.environ[variable(LEDGER_PASSWORD)] = PASSWORD
        super().__init__()

    def close(self) -> None:
        self.stop()


@dataclass(frozen=True)
class _Server:
    url: str
    process: "subprocess.Popen[str]"


@contextmanager
def _server(package: Path, database: DatabaseAddress, core: int, *options: str) -> Iterator[_Server]:
    """A layer server on one core."""
    arguments = ["serve", str(package), "--port", "0", "--ledger", str(database), "--json", *options]
    process = subprocess.Popen(
        ["taskset", "-c", str(core), sys.executable, "-m", "confide", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        assert process.stdout is not None
        yield _Server(msgspec.json.decode(process.stdout.readline())["url"], process)
    finally:
        process.terminate()
        process.wait()


@contextmanager
def _servers(package: Path, database: DatabaseAddress, count: int) -> Iterator[list[_Server]]:
    """So many, on the first cores there are."""
    with ExitStack() as stack:
        yield [stack.enter_context(_server(package, database, core)) for core in _cores()[:count]]


def _cores() -> list[int]:
    return sorted(os.sched_getaffinity(0))


def _keys(database: DatabaseAddress, count: int) -> list[str]:
    with licence_book(database) as book:
        return [book.create(os.urandom(8).hex(), disclosure=None)[1] for _ in range(count)]


# -- throughput, and the same by simulation ----------------------------------------------------------------------------


def _throughput(model: SplitModel, database: DatabaseAddress) -> list[Figure]:
    manifest = read_manifest(model.server)
    keys = _keys(database, max(TOKENS))
    loads: dict[tuple[int, int], Load] = {}
    for count in SERVERS:
        with _servers(model.server, database, count) as servers:
            for clients in TOKENS:
                loads[count, clients] = _median_load(manifest, [one.url for one in servers], keys[:clients])
    few, many = SERVERS
    figures = []
    for clients in TOKENS:
        one, several = loads[few, clients], loads[many, clients]
        detail = "; ".join(f"{count}: {_said(loads[count, clients])}" for count in SERVERS)
        figures.append(
            Figure(
                f"{many} layer servers' throughput / {few}'s, {clients} clients",
                several.throughput / one.throughput,
                "ratio",
                1.6,
                1.9,
                detail,
                higher_is_better=True,
            )
        )
    return figures + _prediction(manifest, many, loads)


def _said(load: Load) -> str:
    return (
        f"{load.throughput:,.0f}/s, p50 {load.percentile(0.5) * 1e3:.1f} ms, p99 {load.percentile(0.99) * 1e3:.1f} ms, "
        f"the generator {load.generator / load.seconds:.0%} of a core"
    )


def _median_load(manifest: Manifest, urls: Sequence[str], keys: Sequence[str]) -> Load:
    """The run of median throughput. Clients take turns with the servers.

    There is one before, for which each licence gets its first lease.
    """
    recording = record(manifest, TOKENS[len(keys)])
    runs = []
    for _ in range(1 + LOAD_ROUNDS):
        players = [
            (urls[number % len(urls)], Player(recording, hello(manifest, key))) for number, key in enumerate(keys)
        ]
        runs.append(uvloop.run(replay(players)))
    return sorted(runs[1:], key=lambda run: run.throughput)[LOAD_ROUNDS // 2]


def _prediction(manifest: Manifest, servers: int, loads: dict[tuple[int, int], Load]) -> list[Figure]:
    """Of the most clients, from the calibration and what the generator took for a request. That is measured, too."""
    clients = max(TOKENS)
    measured = loads[servers, clients]
    generator = measured.generator / len(measured.latencies)
    found = simulated(manifest, clients, servers, generator, shared=len(_cores()) <= servers)
    trips = Percentiles.of(found.trips)
    throughput = len(found.trips) / found.seconds
    p99 = measured.percentile(0.99)
    return [
        _difference(
            f"{servers} servers, {clients} clients: throughput, simulated",
            throughput / measured.throughput,
            f"{throughput:,.0f}/s simulated, {measured.throughput:,.0f}/s measured",
        ),
        _difference(
            f"{servers} servers, {clients} clients: p99, simulated",
            trips.p99 / p99,
            f"{trips.p99 * 1e3:.1f} ms simulated, {p99 * 1e3:.1f} ms measured",
        ),
    ]


def simulated(manifest: Manifest, clients: int, servers: int, generator: float, *, shared: bool) -> Simulated:
    """The same run by simulation. generator: seconds for each request. shared: whether it works on a server's core."""
    rates = calibrate()
    each = GroupRate(generator, 0, 0, 0)
    server = rates.server
    if shared:
        server = replace(server, request=replace(server.request, fixed=server.request.fixed + generator))
    rates = replace(rates, server=server, client=ClientRates(token=each, prompt_token=each, pads=NOTHING))
    cut = Cut(tuple(GroupShape(group.rows, group.columns) for group in manifest.groups), ())
    times = FleetTimes(cut, rates, SkeletonTimes(0.0, 0.0, 1), Network(), cores=1, stages=len(cut.protected))
    arrivals = [Arrival(0.0, 1, TOKENS[clients])] * clients
    machine = Machine(1, times.batching)
    return simulate(times, arrivals, machines=servers, machine=machine, warm=False, one_thread=True)


def _difference(what: str, ratio: float, detail: str) -> Figure:
    return Figure(what, 100 * abs(ratio - 1), "% off", 25, 10, detail)


# -- a server that is killed -------------------------------------------------------------------------------------------


def _failover(model: SplitModel, database: DatabaseAddress) -> Figure:
    """How long a client waits whose server is killed between two tokens, behind an address that leads to both."""
    (key,) = _keys(database, 1)
    with _servers(model.server, database, 2) as (first, second), _relay([first.url, second.url]) as url:
        with HybridModel.from_shell(
            model.client, server=url, owner=model.owner, licence=key, progress=False
        ) as private:
            undisturbed, _ = _decode(private, lambda _: None)
            disturbed, gaps = _decode(private, lambda token: first.process.kill() if token == KILLED_AT else None)
    assert disturbed == undisturbed, "another text"
    usual = statistics.median(gaps)
    recorded, lost = _billed(database, key, bytes.fromhex(read_manifest(model.server).model_digest))
    asked = 2 * PASSES
    assert recorded <= asked <= recorded + lost, "a token that was billed twice or not at all"
    return Figure(
        "failover: a token's wait when its server is killed, beyond the usual",
        max(gaps[KILLED_AT:]) - usual,
        "s",
        1,
        0.2,
        f"the same text; usually {usual * 1e3:.0f} ms; of {asked} tokens asked for {recorded} are recorded, and {lost} "
        "are counted for the lease that died with the server",
    )


@torch.inference_mode()
def _decode(private: HybridModel, on_token: Callable[[int], object]) -> tuple[list[int], list[float]]:
    """Tokens, and seconds to each of them."""
    step = private.model(torch.full((1, 1), 11), use_cache=True)
    tokens, gaps = [], []
    for number in range(1, PASSES):
        on_token(number)
        started = time.perf_counter()
        tokens.append(int(step.logits[0, -1].argmax()))
        step = private.model(torch.tensor([tokens[-1:]]), past_key_values=step.past_key_values, use_cache=True)
        gaps.append(time.perf_counter() - started)
    return tokens, gaps


def _billed(database: DatabaseAddress, key: str, model: bytes) -> tuple[int, int]:
    """Tokens that are billed to a licence because servers recorded them, and for leases of servers that died.

    The dead server's are counted once another one, which this opens, has seen that it is silent.
    """
    with closing(Ledger(database)) as ledger:
        deadline = time.monotonic() + 60
        while True:
            ledger.checkpoint()
            licence = ledger.licences.of_key(key)
            assert licence is not None
            lost = ledger.licences.lost(licence.id, model)
            if lost or time.monotonic() > deadline:
                break
            time.sleep(1)
        recorded = sum(usage.tokens for usage in ledger.licences.usage(licence))
    return recorded - lost, lost


@contextmanager
def _relay(urls: Sequence[str]) -> Iterator[str]:
    """An address behind which the first server that takes a connection gets it; yields it."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()

    async def join(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for url in urls:
            with suppress(OSError):
                there = await asyncio.open_connection(urlsplit(url).hostname, urlsplit(url).port)
                await asyncio.gather(_pass_on(reader, there[1]), _pass_on(there[0], writer))
                return
        writer.close()

    async def listen() -> asyncio.Server:
        return await asyncio.start_server(join, "127.0.0.1", 0)

    listener = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield f"ws://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(listener.close)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


async def _pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(OSError):
        while content := await reader.read(1 << 18):
            writer.write(content)
            await writer.drain()
    writer.close()


# -- sessions that ask for nothing -------------------------------------------------------------------------------------


def _idle(model: SplitModel, database: DatabaseAddress) -> Figure:
    keys = _keys(database, SESSIONS // SESSIONS_A_LICENCE)
    manifest = read_manifest(model.server)
    options = ("--connections", str(SESSIONS + 1))
    with _server(model.server, database, _cores()[0], *options) as server:
        before, after = uvloop.run(_greeted(server, manifest, keys))
    return Figure(
        f"memory of a server for {SESSIONS:,} idle sessions",
        (after - before) / 1e6,
        "MB",
        300,
        100,
        f"{SESSIONS_A_LICENCE} of each licence, greeted; the server without them takes {before / 1e6:,.0f} MB",
    )


async def _greeted(server: _Server, manifest: Manifest, keys: Sequence[str]) -> tuple[int, int]:
    process = str(server.process.pid)
    before = proportional_bytes(process)
    recording = record(manifest, 1)
    players = [Player(recording, hello(manifest, key)) for key in keys for _ in range(SESSIONS_A_LICENCE)]
    for player in players:
        await player.connect(server.url)
    after = proportional_bytes(process)
    for player in players:
        player.leave()
    return before, after


# -- the ledger --------------------------------------------------------------------------------------------------------


def _ledger(database: DatabaseAddress) -> Figure:
    """As in the server, one thread counts answers and another renews leases."""
    with TemporaryDirectory() as folder:
        pairs = [(_spent_seconds(Path(folder)), _spent_seconds(database)) for _ in range(ROUNDS)]
    sqlite, postgres = (statistics.median(of_one) for of_one in zip(*pairs, strict=True))
    return Figure(
        "a spent token's record on PostgreSQL, beyond SQLite",
        1e6 * statistics.median(there - here for here, there in pairs),
        "us",
        20,
        5,
        f"{GROUPS} answers each: {1e6 * postgres:.0f} us and {1e6 * sqlite:.0f} us",
    )


def _spent_seconds(place: Place) -> float:
    """For each token, of all that is done for it."""
    with ThreadPoolExecutor(1) as worker, closing(Ledger(place)) as ledger:
        account = ledger.authenticate(ledger.licences.create(os.urandom(8).hex(), disclosure=None)[1], bytes(32))
        ledger.charge(account, 0, 1, None)
        renewing: Future[None] | None = None
        started = time.perf_counter()
        for _ in range(SPENT_TOKENS):
            for group in range(GROUPS):
                low = ledger.charge(account, group, 1, None)
                if low and (renewing is None or renewing.done()):
                    renewing = worker.submit(ledger.renew, account)
        return (time.perf_counter() - started) / SPENT_TOKENS
