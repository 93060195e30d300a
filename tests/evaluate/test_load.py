"""Recorded requests: all of them are answered, or it is said why not."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from confide.errors import ServerFault
from confide.evaluate.load import Player, hello, record, replay
from confide.hybrid.server.limits import Limits
from hybrid.server.world import Served, model, service, serving

MANIFEST = model().signed.manifest


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(service(tmp_path / "state")) as running:
        yield running


def players(served: Served, count: int, tokens: int = 2) -> list[tuple[str, Player]]:
    recording = record(MANIFEST, tokens)
    return [(served.url, Player(recording, hello(MANIFEST, ""))) for _ in range(count)]


def test_every_request_is_answered(served: Served) -> None:
    begun: list[int] = []
    load = asyncio.run(replay(players(served, 5), settle=0.01, on_begin=lambda: begun.append(1)))
    assert len(load.latencies) == 5 * 2 * len(MANIFEST.groups)
    assert begun == [1]
    assert 0 < load.percentile(0.5) <= load.percentile(0.99) <= load.seconds
    assert load.throughput == len(load.latencies) / load.seconds


def test_a_server_without_room_for_p0_gets_it_with_the_request(tmp_path: Path) -> None:
    with serving(service(tmp_path / "state"), Limits(all_ahead_bytes=0)) as served:
        load = asyncio.run(replay(players(served, 2)))
    assert len(load.latencies) == 2 * 2 * len(MANIFEST.groups)


def test_a_server_that_refuses_is_no_answer_and_no_endless_wait(tmp_path: Path) -> None:
    with serving(service(tmp_path / "state", insecure_no_licences=False)) as served:
        with pytest.raises(ServerFault, match="licence-refused"):
            asyncio.run(replay(players(served, 1)))


def test_a_server_that_ends_in_between_is_no_endless_wait(served: Served) -> None:
    async def main() -> None:
        some = players(served, 3, tokens=100)
        waiting = asyncio.create_task(replay(some))
        while not (some[0][1].latencies or waiting.done()):
            await asyncio.sleep(0.001)
        served.stop()
        async with asyncio.timeout(30):
            with pytest.raises(ServerFault):
                await waiting

    asyncio.run(main())


@contextmanager
def impostor(said: bytes) -> Iterator[str]:
    """The address of something that says this to whoever connects, after a handshake of WebSocket."""
    from picows import WSListener, WSMsgType, WSTransport, ws_create_server

    ready, stop = threading.Event(), asyncio.Event()
    found: list[tuple[str, asyncio.AbstractEventLoop]] = []

    class Speaker(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            transport.send(WSMsgType.BINARY, said)

    async def main() -> None:
        server = await ws_create_server(lambda _: Speaker(), "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        found.append((f"ws://127.0.0.1:{port}", asyncio.get_running_loop()))
        ready.set()
        await stop.wait()
        server.close()

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    ready.wait(60)
    url, loop = found[0]
    try:
        yield url
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


@pytest.mark.parametrize("said", [b"", b"\xff" * 40, b"\x91" * 5000], ids=["nothing", "noise", "deep"])
def test_what_is_no_message_ends_it(said: bytes) -> None:
    with impostor(said) as url, pytest.raises(ServerFault, match="recorded requests"):
        asyncio.run(replay([(url, Player(record(MANIFEST, 1), hello(MANIFEST, "")))]))


def test_nobody_there_is_an_error_of_the_system() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(OSError):  # noqa: PT011 - the kernel's
        asyncio.run(replay([(f"ws://127.0.0.1:{port}", Player(record(MANIFEST, 1), hello(MANIFEST, "")))]))
