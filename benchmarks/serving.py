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

from benchmarks.measure import Figure, children, proportional_bytes, write
from benchmarks.shapes import GPT2_SMALL, SplitModel, serving, split_shape
from confide.errors import UnknownBlock
from confide.hybrid import wire
from confide.hybrid.server.limits import Limits
from confide.ledger.licences import licence_book
from confide.packages.manifest import Manifest, read_manifest
from confide.rlwe.parameters import PLANES, RING_DEGREE

CLIENTS = (1, 4, 16)
TOKENS = {1: 40, 4: 30, 16: 24}
ROUNDS = 3
SECONDS_STILL = 5


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
    players = [_Player(_recording(manifest, 1), _hello(manifest, key), asyncio.Event()) for key in keys]
    for player in players:
        await _connect(url, player)
        await player.greeted.wait()
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


def _hello(manifest: Manifest, key: str) -> bytes:
    return wire.encode(
        wire.Hello(
            wire.PROTOCOL_VERSION, wire.SCHEME, bytes.fromhex(manifest.model_digest), manifest.table_digest(), key
        )
    )


async def _connect(url: str, player: "_Player") -> None:
    await ws_connect(lambda: player, url + wire.PATH, max_frame_size=wire.MAX_FRAME)


async def _replay(url: str, manifest: Manifest, key: str, recordings: list[_Recording]) -> Load:
    start = asyncio.Event()
    players = [_Player(recording, _hello(manifest, key), start) for recording in recordings]
    for player in players:
        await _connect(url, player)
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
            self._ahead_tokens = message.ahead_tokens
            self.greeted.set()

    def begin(self) -> None:
        self._transport.send(WSMsgType.BINARY, self._recording.ahead)
        self._send_next()

    def send_ahead(self, most: int) -> None:
        """Zeros for p0, of as many tokens as the server works for ahead."""
        p0 = bytes(min(most, self._ahead_tokens) * PLANES * RING_DEGREE)
        self._transport.send(WSMsgType.BINARY, wire.encode(wire.Ahead(0, p0)))

    def leave(self) -> None:
        self._transport.disconnect()

    def _send_next(self) -> None:
        bare, self._whole = next(self._requests, (None, b""))
        if bare is None:
            self.done.set()
            self.leave()
            return
        self._sent = time.perf_counter()
        self._transport.send(WSMsgType.BINARY, bare)
