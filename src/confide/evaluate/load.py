"""Many clients of layer servers, at little cost: frames that were made beforehand are sent again and again.

They have uniform d and p0, as encryptions have, and cost a server what real ones do. Each client sends p0 of its tokens
first and then asks for the next layer group when it has the answer to the last one, and does nothing in between.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_connect

from confide.errors import MalformedMessage, ServerFault, UnknownBlock
from confide.hybrid import wire
from confide.packages.manifest import Manifest
from confide.printable import quoted
from confide.rlwe.parameters import PLANES, RING_DEGREE


@dataclass
class Load:
    """What one run measured. generator: of its seconds, those of this process's own work."""

    seconds: float
    generator: float
    latencies: list[float] = field(repr=False)

    @property
    def throughput(self) -> float:
        """Requests a second."""
        return len(self.latencies) / self.seconds

    def percentile(self, share: float) -> float:
        """Seconds."""
        return float(np.percentile(self.latencies, 100 * share))


@dataclass(frozen=True, repr=False)
class Recording:
    """What one client that decodes sends. requests: each without p0 and, for a server that does not have it, with."""

    ahead: bytes
    requests: list[tuple[bytes, bytes]]


def record(manifest: Manifest, tokens: int) -> Recording:
    """The frames of so many tokens."""
    rng = np.random.default_rng()
    p0 = rng.integers(-128, 128, (tokens, PLANES, RING_DEGREE), dtype=np.int8)
    requests = []
    for token in range(tokens):
        for index, group in enumerate(manifest.groups):
            planes = wire.payload(rng.integers(-128, 128, (PLANES, 1, group.columns), dtype=np.int8))
            bare = wire.Online(index, 0, token, 1, planes)
            whole = wire.Online(index, 0, token, 1, planes, wire.payload(p0[token]))
            requests.append((wire.encode(bare), wire.encode(whole)))
    return Recording(wire.encode(wire.Ahead(0, wire.payload(p0))), requests)


def hello(manifest: Manifest, key: str) -> bytes:
    """The greeting's frame."""
    return wire.encode(
        wire.Hello(
            wire.PROTOCOL_VERSION, wire.SCHEME, bytes.fromhex(manifest.model_digest), manifest.table_digest(), key
        )
    )


class Player(WSListener):
    """Sends one request after another, each when the last one's answer is here. It ends early where there is none."""

    def __init__(self, recording: Recording, hello: bytes) -> None:
        self._recording = recording
        self._requests = iter(recording.requests)
        self._hello = hello
        self._begun = False
        self._whole = b""
        self._sent = 0.0
        self.greeted, self.done = asyncio.Event(), asyncio.Event()
        self.latencies: list[float] = []
        self._ahead_tokens: int | None = None
        self._trouble = ""

    async def connect(self, url: str) -> None:
        """Returns once the server has greeted. ServerFault where it does not, OSError where there is none."""
        await ws_connect(lambda: self, url + wire.PATH, max_frame_size=wire.MAX_FRAME)
        await self.greeted.wait()
        self.require_well()

    def require_well(self) -> None:
        """ServerFault where the server did not answer, and said why."""
        if self._trouble:
            raise ServerFault(f"The layer server does not answer recorded requests ({quoted(self._trouble, 200)}).")

    def on_ws_connected(self, transport: WSTransport) -> None:
        self._transport = transport
        transport.send(WSMsgType.BINARY, self._hello)

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        if frame.msg_type is not WSMsgType.BINARY:
            transport.disconnect()
            return
        try:
            message = wire.decode_from_server(frame.get_payload_as_bytes())
        except MalformedMessage as error:
            self._end(str(error))
            return
        match message:
            case wire.Failure(code=UnknownBlock.code):
                transport.send(WSMsgType.BINARY, self._whole)
            case wire.Failure():
                self._end(message.code)
            case wire.Answer() if self._begun:
                self.latencies.append(time.perf_counter() - self._sent)
                self._send_next()
            case wire.Welcome() if self._ahead_tokens is None:
                self._ahead_tokens = message.ahead_tokens
                self.greeted.set()
            case _:
                self._end("out of turn")

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        if not self.done.is_set():
            self._end(self._trouble or "connection lost")

    def _end(self, trouble: str = "") -> None:
        self._trouble = trouble
        self.greeted.set()
        self.done.set()
        self._transport.disconnect()

    def send_block(self) -> None:
        """p0 of all tokens, which the server works for while nobody asks."""
        self._transport.send(WSMsgType.BINARY, self._recording.ahead)

    def begin(self) -> None:
        """Send the first request."""
        self._begun = True
        self._send_next()

    def send_ahead(self, most: int) -> None:
        """Zeros for p0, of as many tokens as the server works for ahead."""
        p0 = bytes(min(most, self._ahead_tokens or 0) * PLANES * RING_DEGREE)
        self._transport.send(WSMsgType.BINARY, wire.encode(wire.Ahead(0, memoryview(p0))))

    def leave(self) -> None:
        """Ask for nothing more."""
        self._transport.disconnect()

    def _send_next(self) -> None:
        bare, self._whole = next(self._requests, (None, b""))
        if bare is None:
            self._end()
            return
        self._sent = time.perf_counter()
        self._transport.send(WSMsgType.BINARY, bare)


async def replay(
    players: Sequence[tuple[str, Player]], *, settle: float = 0.0, on_begin: Callable[[], object] = lambda: None
) -> Load:
    """Have each connect to its server, and then all of them begin at once. Raises what `Player.connect` does.

    settle: seconds to work ahead before that. on_begin: called then.
    """
    for url, player in players:
        await player.connect(url)
    for _, player in players:
        player.send_block()
    await asyncio.sleep(settle)
    on_begin()
    started, worked = time.perf_counter(), time.process_time()
    for _, player in players:
        player.begin()
    await asyncio.gather(*(player.done.wait() for _, player in players))
    seconds, generator = time.perf_counter() - started, time.process_time() - worked
    for _, player in players:
        player.require_well()
    return Load(seconds, generator, [latency for _, player in players for latency in player.latencies])
