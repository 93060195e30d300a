"""Several users at one layer server, GPT-2-small's shape: throughput and latency of decoding, alone and beside packs.

A load generator replays frames such as `confide serve --record` keeps: uniform d, so random ones are as good. Each
client asks for the next layer group when it has the answer to the last one, and does nothing in between. Offline, a
client in another process prepares packs meanwhile.
"""

import asyncio
import gc
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect
from transformers import GPT2Config, GPT2LMHeadModel

from benchmarks.measure import Figure, write
from benchmarks.whole_model import server
from confide.hybrid import wire
from confide.hybrid.ledger import Ledger
from confide.hybrid.ledger.licences import licence_book
from confide.models.owner import OwnerKey
from confide.models.package import Manifest, read_manifest
from confide.models.source import open_model
from confide.models.split import split

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
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(Path(folder) / "model")
        owner = OwnerKey.generate()
        parts = split(open_model(str(Path(folder) / "model")), Path(folder) / "split", owner=owner)
        gc.collect()
        with licence_book(parts.server / "state") as book:
            _, key = book.create("benchmark", disclosure=None)
        packs = _register_packs(parts.server, key, ROUNDS * sum(CLIENTS) * 2)
        with server(parts.server) as url:
            manifest = read_manifest(parts.server)
            alone = [_rounds(url, manifest, key, clients, packs) for clients in CLIENTS]
            with _preparing(parts.client, url, key, str(owner.public)):
                beside = [_rounds(url, manifest, key, clients, packs) for clients in CLIENTS]
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
def _preparing(shell: Path, url: str, key: str, owner: str) -> Iterator[None]:
    """A client that prepares packs all the while, as the background refill does: with low priority."""
    command = ["nice", "-n", "19", sys.executable, "-m", "confide", "prepare", str(shell), "--server", url]
    options = ["--licence", key, "--owner", owner, "--tokens", "1000000"]
    process = subprocess.Popen([*command, *options], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        time.sleep(20)  # until it is past loading and in the midst of a layer group
        assert process.poll() is None
        yield
    finally:
        process.kill()
        process.wait()
