"""Several users at one layer server, GPT-2-small's shape: throughput and latency of decoding, alone and beside packs.

A load generator replays frames such as `confide serve --record` keeps: uniform d, so random ones are as good. Each
client asks for the next layer group when it has the answer to the last one, and does nothing in between. Offline, a
client in another process prepares packs meanwhile.
"""

import asyncio
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.measure import Figure, write
from benchmarks.shapes import GPT2_SMALL, SplitModel, serving, split_shape
from confide.hybrid import wire
from confide.hybrid.server.ledger import Ledger
from confide.packages.manifest import Manifest, read_manifest

CLIENTS = (1, 4, 16)
TOKENS = {1: 40, 4: 30, 16: 24}
ROUNDS = 3


@dataclass
class Load:
    """What one run measured."""

    seconds: float
    latencies: list[float] = field(repr=False)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds."""
        return float(np.percentile(self.latencies, 100 * share))


def main() -> list[Figure]:
    with split_shape(GPT2_SMALL) as model:
        packs = _register_packs(model.server, model.licence, ROUNDS * sum(CLIENTS) * 2)
        manifest = read_manifest(model.server)
        with serving(model.server) as url:
            alone = [_rounds(url, manifest, model.licence, clients, packs) for clients in CLIENTS]
            with _preparing(model, url):
                beside = [_rounds(url, manifest, model.licence, clients, packs) for clients in CLIENTS]
    figures = _figures(alone, beside)
    write("serving", figures)
    return figures


def _figures(alone: list[Load], beside: list[Load]) -> list[Figure]:
    ratio = alone[-1].throughput / alone[0].throughput
    lines = [
        f"{clients}: {load.throughput:,.0f}/s, "
        f"p50 {load.percentile(0.5) * 1e3:.2f} ms, p99 {load.percentile(0.99) * 1e3:.2f} ms"
        for clients, load in zip(CLIENTS, alone, strict=True)
    ]
    figures = [
        Figure("16 clients' throughput / one client's", ratio, "ratio", 4, 8, "; ".join(lines), higher_is_better=True)
    ]
    for clients, quiet, busy in zip(CLIENTS, alone, beside, strict=True):
        figures.append(
            Figure(
                f"p99 of {clients} client{'s' if clients > 1 else ''} while packs are made / without",
                busy.percentile(0.99) / quiet.percentile(0.99),
                "ratio",
                2,
                1.2,
                f"{busy.percentile(0.99) * 1e3:.2f} ms against {quiet.percentile(0.99) * 1e3:.2f} ms",
            )
        )
    return figures


def _rounds(url: str, manifest: Manifest, key: str, clients: int, packs: Iterator[bytes]) -> Load:
    """The round of median throughput."""
    runs = []
    for _ in range(ROUNDS):
        recordings = [_recording(manifest, next(packs), TOKENS[clients]) for _ in range(clients)]
        runs.append(uvloop.run(_replay(url, manifest, key, recordings)))
    middle = statistics.median_low(run.throughput for run in runs)
    return next(run for run in runs if run.throughput == middle)


def _recording(manifest: Manifest, pack: bytes, tokens: int) -> list[bytes]:
    """The frames of one client that decodes."""
    rng = np.random.default_rng()
    frames = []
    for token in range(tokens):
        for index, group in enumerate(manifest.groups):
            masked = rng.integers(0, 1 << 30, group.columns, dtype=np.int32)
            frames.append(wire.encode(wire.Online(pack, index, token, 1, wire.payload(masked))))
    return frames


async def _replay(url: str, manifest: Manifest, key: str, recordings: list[list[bytes]]) -> Load:
    hello = wire.encode(
        wire.Hello(wire.PROTOCOL_VERSION, "rlwe-1", bytes.fromhex(manifest.model_digest), manifest.table_digest(), key)
    )
    start = asyncio.Event()
    players = [_Player(frames, hello, start) for frames in recordings]
    for player in players:
        await ws_connect(lambda player=player: player, url + wire.PATH, max_frame_size=wire.MAX_FRAME)  # type: ignore[misc]
    await asyncio.gather(*(player.greeted.wait() for player in players))
    started = time.perf_counter()
    start.set()
    for player in players:
        player.send_next()
    await asyncio.gather(*(player.done.wait() for player in players))
    seconds = time.perf_counter() - started
    return Load(seconds, [latency for player in players for latency in player.latencies])


class _Player(WSListener):
    """Sends one frame after another, each when the last one's answer is here."""

    def __init__(self, frames: list[bytes], hello: bytes, start: asyncio.Event) -> None:
        self._frames = iter(frames)
        self._hello = hello
        self._start = start
        self.greeted, self.done = asyncio.Event(), asyncio.Event()
        self.latencies: list[float] = []
        self._sent = 0.0

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        transport.send(WSMsgType.BINARY, self._hello)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if self._start.is_set():
            self.latencies.append(time.perf_counter() - self._sent)
            self.send_next()
            return
        assert isinstance(wire.decode_from_server(frame.get_payload_as_bytes()), wire.Welcome)
        self.greeted.set()

    def send_next(self) -> None:
        frame = next(self._frames, None)
        if frame is None:
            self.done.set()
            self._transport.disconnect()
            return
        self._sent = time.perf_counter()
        self._transport.send(WSMsgType.BINARY, frame)


def _register_packs(package: Path, key: str, count: int) -> Iterator[bytes]:
    """Packs that the server takes for prepared: the replay needs their records and nothing else."""
    ledger = Ledger(package / "state")
    account = ledger.authenticate(key)
    packs = [os.urandom(16) for _ in range(count)]
    for pack in packs:
        for group in range(len(read_manifest(package).groups)):
            ledger.bind_request(account, pack, group, os.urandom(32))
    ledger.close()
    return iter(packs)


@contextmanager
def _preparing(model: SplitModel, url: str) -> Iterator[None]:
    """A client that prepares packs all the while, as the background refill does: with low priority."""
    command = ["nice", "-n", "19", sys.executable, "-m", "confide", "prepare", str(model.client), "--server", url]
    options = ["--licence", model.licence, "--owner", model.owner, "--tokens", "1000000"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        time.sleep(20)  # until it is past loading and in the midst of a layer group
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()
