"""Several users at one layer server, GPT-2-small's shape: throughput and latency of decoding, work ahead included.

A load generator sends uniform d and p0, which cost a server what real ones do. Each client sends p0 of its tokens first
and then asks for the next layer group when it has the answer to the last one, and does nothing in between.
"""

import asyncio
import statistics
import time
from dataclasses import dataclass, field

import numpy as np
import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from benchmarks.measure import Figure, write
from benchmarks.shapes import GPT2_SMALL, serving, split_shape
from confide.errors import UnknownBlock
from confide.hybrid import wire
from confide.packages.manifest import Manifest, read_manifest
from confide.rlwe.parameters import PLANES, RING_DEGREE

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
        manifest = read_manifest(model.server)
        with serving(model.server) as url:
            loads = [_rounds(url, manifest, model.licence, clients) for clients in CLIENTS]
    figures = _figures(loads)
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


def _rounds(url: str, manifest: Manifest, key: str, clients: int) -> Load:
    """The round of median throughput."""
    runs = []
    for _ in range(ROUNDS):
        recordings = [_recording(manifest, TOKENS[clients]) for _ in range(clients)]
        runs.append(uvloop.run(_replay(url, manifest, key, recordings)))
    middle = statistics.median_low(run.throughput for run in runs)
    return next(run for run in runs if run.throughput == middle)


@dataclass(frozen=True, repr=False)
class _Recording:
    """What one client that decodes sends. requests: each without p0 and, for a server that does not have it, with."""

    ahead: bytes
    requests: list[tuple[bytes, bytes]]


def _recording(manifest: Manifest, tokens: int) -> _Recording:
    rng = np.random.default_rng()
    p0 = rng.integers(-128, 128, (tokens, PLANES, RING_DEGREE), dtype=np.int8)
    requests = []
    for token in range(tokens):
        for index, group in enumerate(manifest.groups):
            planes = wire.payload(rng.integers(-128, 128, (PLANES, 1, group.columns), dtype=np.int8))
            bare = wire.Online(index, 0, token, 1, planes)
            whole = wire.Online(index, 0, token, 1, planes, wire.payload(p0[token]))
            requests.append((wire.encode(bare), wire.encode(whole)))
    return _Recording(wire.encode(wire.Ahead(0, wire.payload(p0))), requests)


async def _replay(url: str, manifest: Manifest, key: str, recordings: list[_Recording]) -> Load:
    hello = wire.encode(
        wire.Hello(
            wire.PROTOCOL_VERSION, wire.SCHEME, bytes.fromhex(manifest.model_digest), manifest.table_digest(), key
        )
    )
    start = asyncio.Event()
    players = [_Player(recording, hello, start) for recording in recordings]
    for player in players:
        await ws_connect(lambda player=player: player, url + wire.PATH, max_frame_size=wire.MAX_FRAME)  # type: ignore[misc]
    await asyncio.gather(*(player.greeted.wait() for player in players))
    started = time.perf_counter()
    start.set()
    for player in players:
        player.begin()
    await asyncio.gather(*(player.done.wait() for player in players))
    seconds = time.perf_counter() - started
    return Load(seconds, [latency for player in players for latency in player.latencies])


class _Player(WSListener):
    """Sends one request after another, each when the last one's answer is here."""

    def __init__(self, recording: _Recording, hello: bytes, start: asyncio.Event) -> None:
        self._recording = recording
        self._requests = iter(recording.requests)
        self._hello = hello
        self._start = start
        self._whole = b""
        self._sent = 0.0
        self.greeted, self.done = asyncio.Event(), asyncio.Event()
        self.latencies: list[float] = []

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        transport.send(WSMsgType.BINARY, self._hello)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        message = wire.decode_from_server(frame.get_payload_as_bytes())
        if isinstance(message, wire.Failure):
            assert message.code == UnknownBlock.code, message
            transport.send(WSMsgType.BINARY, self._whole)
        elif self._start.is_set():
            self.latencies.append(time.perf_counter() - self._sent)
            self._send_next()
        else:
            assert isinstance(message, wire.Welcome)
            self.greeted.set()

    def begin(self) -> None:
        self._transport.send(WSMsgType.BINARY, self._recording.ahead)
        self._send_next()

    def _send_next(self) -> None:
        bare, self._whole = next(self._requests, (None, b""))
        if bare is None:
            self.done.set()
            self._transport.disconnect()
            return
        self._sent = time.perf_counter()
        self._transport.send(WSMsgType.BINARY, bare)
