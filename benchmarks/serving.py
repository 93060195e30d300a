"""Several users at one layer server, GPT-2-small's shape: throughput and latency of decoding, work ahead included.

Their frames are made beforehand; see `confide.evaluate.load`.
"""

import asyncio
import statistics

import uvloop

from benchmarks.measure import Figure, children, proportional_bytes, write
from benchmarks.shapes import SplitModel, serving, split_shape
from confide.evaluate.load import Load, Player, hello, record, replay
from confide.evaluate.shapes import GPT2_SMALL
from confide.hybrid import wire
from confide.hybrid.server.limits import Limits
from confide.ledger.licences import licence_book
from confide.packages.manifest import Manifest, read_manifest

CLIENTS = (1, 4, 16)
TOKENS = {1: 40, 4: 30, 16: 24}
ROUNDS = 3
SECONDS_STILL = 5


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model:
        manifest = read_manifest(model.server)
        with serving(model.server) as url:
            loads = [_rounds(url, manifest, model.licence, clients) for clients in CLIENTS]
        figures = [*_figures(loads), _memory(model, manifest)]
    write("serving", figures)
    return figures


def _figures(loads: list[Load]) -> list[Figure]:
    ratio = loads[-1].throughput / loads[0].throughput
    lines = [
        f"{clients}: {load.throughput:,.0f}/s, "
        f"p50 {load.percentile(0.5) * 1e3:.2f} ms, p99 {load.percentile(0.99) * 1e3:.2f} ms"
        for clients, load in zip(CLIENTS, loads, strict=True)
    ]
    return [
        Figure("16 clients' throughput / one client's", ratio, "ratio", 4, 8, "; ".join(lines), higher_is_better=True)
    ]


def _memory(model: SplitModel, manifest: Manifest) -> Figure:
    """What a server keeps for a client that has sent it p0 of as many tokens as it will work for ahead."""
    most = Limits()
    with licence_book(model.server / "state") as book:
        keys = [book.create(f"client {number}", disclosure=None)[1] for number in range(CLIENTS[-1])]
    with serving(model.server) as url:
        before, after = uvloop.run(_filled(url, manifest, keys))
    detail = (
        f"{CLIENTS[-1]} clients, each with all of its work ahead; granted are {most.ahead_bytes >> 20} MiB of that and "
        f"{most.bytes_in_flight >> 20} MiB in flight; the server without clients takes {before / 1e6:,.0f} MB"
    )
    return Figure("server memory for a connected client", (after - before) / len(keys) / 1e6, "MB", 40, 10, detail)


async def _filled(url: str, manifest: Manifest, keys: list[str]) -> tuple[int, int]:
    """Bytes of the server's process before its clients come, and once no more is made ahead for them."""
    (server,) = children()
    before = taken = proportional_bytes(server)
    players = [Player(record(manifest, 1), hello(manifest, key)) for key in keys]
    for player in players:
        await player.connect(url)
        player.send_ahead(wire.MAX_BLOCK_TOKENS)
    still = 0
    while still < SECONDS_STILL:
        await asyncio.sleep(1)
        now = proportional_bytes(server)
        still = 0 if abs(now - taken) > 1 << 20 else still + 1
        taken = now
    for player in players:
        player.leave()
    return before, taken


def _rounds(url: str, manifest: Manifest, key: str, clients: int) -> Load:
    """The round of median throughput."""
    runs = []
    for _ in range(ROUNDS):
        recordings = [record(manifest, TOKENS[clients]) for _ in range(clients)]
        players = [(url, Player(recording, hello(manifest, key))) for recording in recordings]
        runs.append(uvloop.run(replay(players)))
    middle = statistics.median_low(run.throughput for run in runs)
    return next(run for run in runs if run.throughput == middle)
