"""Servers that break, restart, forget and report: what is sent again, and that generations come out the same."""

import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec
import pytest
import torch
from tests.hybrid.server import world
from websockets.frames import Frame, Opcode
from websockets.http11 import Request
from websockets.server import ServerProtocol

from confide.errors import (
    BudgetExhausted,
    ConnectionLost,
    InsecureConnection,
    MalformedMessage,
    ModelClosed,
    ProtocolError,
    ServerBusy,
    ServerFault,
    StaleHint,
    UnknownBlock,
    UntrustedOwner,
    WrongShape,
)
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial, websocket_url
from confide.hybrid.client.link import Link
from confide.hybrid.model import HybridModel
from confide.models.clear import load_clear
from confide.models.split import SplitSummary
from owners import STRANGER

from .conftest import Open
from .fake import FakeServer, serving
from .test_generation import PROMPT, generate


class Once:
    """Does something before the request of this number, counted from 0, and never again."""

    def __init__(self, frame: int, act: object) -> None:
        self._left = frame
        self._act = act
        self.requests: list[wire.Online] = []

    def __call__(self, message: wire.Online) -> None:
        self.requests.append(
            wire.Online(
                message.group, message.block, message.first, message.count,
                memoryview(bytes(message.planes)), memoryview(bytes(message.p0)),
            )
        )  # fmt: skip
        self._left -= 1
        if self._left == -1:
            if isinstance(self._act, BaseException):
                raise self._act
            self._act()  # type: ignore[operator]


@pytest.fixture
def expected(parts: SplitSummary) -> list[int]:
    result: list[int] = generate(load_clear(parts.client, parts.server))[0].tolist()
    return result


@pytest.mark.parametrize("frame", [0, 1, 4, 30])
@pytest.mark.parametrize("problem", [ConnectionAbortedError(), ServerBusy("wait")], ids=["break", "busy"])
def test_what_is_sent_again_is_the_same_bytes(
    model: HybridModel, server: FakeServer, expected: list[int], frame: int, problem: Exception
) -> None:
    server.before = watch = Once(frame, problem)
    assert generate(model)[0].tolist() == expected
    broken, again = watch.requests[frame : frame + 2]
    assert (again.block, again.first, again.group) == (broken.block, broken.first, broken.group)
    assert bytes(again.planes) == bytes(broken.planes)
    assert len(again.p0) == 12288 * again.count
    # And no later request uses a secret of before.
    later = watch.requests[frame + 2 :]
    assert later
    assert all(request.block > broken.block for request in later)


def test_a_long_prompt_survives_a_break_in_its_middle(
    parts: SplitSummary, server: FakeServer, open_shell: Open
) -> None:
    prompt = torch.arange(1, 49)[None]
    expected = generate(load_clear(parts.client, parts.server), prompt)[0].tolist()
    model = open_shell(parts, server)
    server.before = Once(1, ConnectionAbortedError())
    assert generate(model, prompt)[0].tolist() == expected


def test_a_server_that_forgot_a_block_gets_it_with_the_same_bytes(
    model: HybridModel, server: FakeServer, expected: list[int]
) -> None:
    until = time.monotonic() + 20
    while not server.blocks and time.monotonic() < until:
        time.sleep(0.01)
    server.forget()
    server.before = watch = Once(-1, None)
    assert generate(model)[0].tolist() == expected
    bare, whole = watch.requests[:2]
    assert not len(bare.p0)
    assert len(whole.p0)
    assert bytes(bare.planes) == bytes(whole.planes)


def test_p0_goes_out_once_for_all_groups_also_of_prompts_across_blocks(model: HybridModel, server: FakeServer) -> None:
    prompt = torch.full((4, 25), 5)
    for _ in range(8):
        until = time.monotonic() + 60
        while model.product.tokens_ready < 128:
            assert time.monotonic() < until
            time.sleep(0.01)
        with torch.inference_mode():
            model.model(prompt)
    assert {frame.block for frame in server.frames} > {0, 1, 2}
    assert not any(len(frame.p0) for frame in server.frames)


def test_a_server_that_keeps_nothing_is_asked_for_nothing(
    parts: SplitSummary, server: FakeServer, open_shell: Open, expected: list[int]
) -> None:
    server.ahead_tokens = 0
    model = open_shell(parts, server)
    server.before = watch = Once(-1, None)
    assert generate(model)[0].tolist() == expected
    assert not server.blocks
    assert all(len(request.p0) for request in watch.requests)


def test_a_server_that_never_has_a_block_is_an_error(model: HybridModel, server: FakeServer) -> None:
    def never(message: wire.Online) -> None:
        raise UnknownBlock("never heard of it")

    server.before = never
    with pytest.raises(UnknownBlock):
        generate(model)


def test_a_replica_takes_over(parts: SplitSummary, server: FakeServer, open_shell: Open, expected: list[int]) -> None:
    model = open_shell(parts, server)

    def replace() -> None:
        server.stop()
        server.start()

    for frame in (2, 9, 25):
        server.before = Once(frame, lambda: threading.Thread(target=replace).start())
        assert generate(model)[0].tolist() == expected


@pytest.mark.parametrize("error", [BudgetExhausted("no tokens"), ServerFault("oh"), WrongShape("no")])
def test_what_waiting_does_not_mend_is_raised(model: HybridModel, server: FakeServer, error: Exception) -> None:
    server.before = Once(5, error)
    with pytest.raises(type(error)):
        generate(model)
    generate(model)


def test_a_peers_words_are_printable_and_its_codes_are_the_wires(model: HybridModel, server: FakeServer) -> None:
    class Odd(ServerFault):
        code = "stale-hint"

    server.before = Once(0, Odd("\x1b[31mgive me your hint"))
    with pytest.raises(ProtocolError) as caught:
        generate(model)
    assert not isinstance(caught.value, StaleHint)
    assert "\x1b" not in str(caught.value)


def test_a_closed_link_makes_no_connection() -> None:
    """Not even between two attempts of an exchange that lost its connection."""
    made: list[int] = []

    def connect() -> LayerConnection:
        made.append(1)
        link.shut()
        raise ConnectionLost("away")

    link = Link(connect, patience=10)
    with pytest.raises(ModelClosed):
        link.run(lambda connection: None)
    assert len(made) == 1
    with pytest.raises(ModelClosed):
        link.run(lambda connection: None)
    assert len(made) == 1


@pytest.mark.parametrize("size", [0, 4, 4096])
def test_an_answer_of_the_wrong_size_is_refused(model: HybridModel, server: FakeServer, size: int) -> None:
    server.tamper = lambda message, answer: wire.Answer(memoryview(bytes(size)))
    with pytest.raises(WrongShape):
        generate(model)


def test_a_message_out_of_turn_is_refused(model: HybridModel, server: FakeServer) -> None:
    server.tamper = lambda message, answer: wire.Welcome(3, wire.Allowance(), bytes(32), bytes(64), 0, 0, ((0, 0),))  # type: ignore[return-value]
    with pytest.raises(MalformedMessage):
        generate(model)


def test_another_owners_server_is_refused(parts: SplitSummary, server: FakeServer, open_shell: Open) -> None:
    model = open_shell(parts, server)
    release = server.signed.release
    object.__setattr__(release, "owner", STRANGER.public)

    class Foreign:
        manifest, signature = server.signed.manifest, server.signed.signature
        release = server.signed.release

    Foreign.release = type(release)(STRANGER.public, release.model_digest, release.table_digest, release.profile)
    server.signed = Foreign()  # type: ignore[assignment]
    server.stop()
    server.start()
    with pytest.raises(UntrustedOwner):
        generate(model)
    assert not server.frames


def test_the_first_contact_does_not_wait(parts: SplitSummary, open_shell: Open) -> None:
    with serving(parts.server) as gone:
        pass
    started = time.monotonic()
    with pytest.raises(ConnectionLost, match="confide serve"):
        open_shell(parts, gone, patience=60)
    assert time.monotonic() - started < 30


def test_the_child_of_a_fork_sends_nothing(model: HybridModel, server: FakeServer) -> None:
    def asked() -> int:
        """Messages but those that announce pads, which the parent's own thread may send at any time."""
        return sum(msgspec.msgpack.decode(content)[0] != wire.Ahead.__struct_config__.tag for content in server.raw)

    generate(model)
    before = asked()
    child = os.fork()
    if not child:
        code = 1
        try:
            generate(model)
        except ModelClosed:
            model.close()
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert asked() == before
    generate(model)


def test_a_wrong_hint_is_named_before_a_server_is_asked(
    parts: SplitSummary, server: FakeServer, open_shell: Open, tmp_path: Path
) -> None:
    import shutil
    from dataclasses import replace

    copy = tmp_path / "client"
    shutil.copytree(parts.client, copy)
    path = sorted((copy / "hint").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    with pytest.raises(StaleHint, match="hint fetch"):
        open_shell(replace(parts, client=copy), server)
    assert not server.greetings


# -- whether it is still there -----------------------------------------------------------------------------------

PING = Frame(Opcode.PING, b"x").serialize(mask=False)
PONG = Frame(Opcode.PONG, b"there?").serialize(mask=False)
ANSWER = Frame(Opcode.BINARY, wire.encode(wire.Answer(memoryview(b"1234")))).serialize(mask=False)


@contextmanager
def scripted(said: bytes, *, over_and_over: bool = False) -> Iterator[str]:
    """A server that greets, and then says this when it is pinged."""
    listener = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with listener.accept()[0] as peer, suppress(OSError):
            protocol = ServerProtocol(max_size=None)
            pinged = False
            while not pinged:
                protocol.receive_data(peer.recv(1 << 16))
                for event in protocol.events_received():
                    if isinstance(event, Request):
                        protocol.send_response(protocol.accept(event))
                    elif isinstance(event, Frame) and event.opcode is Opcode.BINARY:
                        signed = world.model().signed
                        owner, release = signed.release.owner.raw, bytes.fromhex(signed.signature.release)
                        welcome = wire.Welcome(
                            wire.PROTOCOL_VERSION, wire.Allowance(), owner, release, 1 << 20, 0, ((0, 2),)
                        )
                        protocol.send_binary(wire.encode(welcome))
                    else:
                        pinged = True
                for data in () if pinged else protocol.data_to_send():
                    peer.sendall(data)
            peer.sendall(said)
            while over_and_over:
                time.sleep(0.02)
                peer.sendall(said)
            while said and peer.recv(1 << 16):
                pass  # what answers it

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    with listener:
        yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
    thread.join(10)


def pinged(url: str, silence: float = 5) -> None:
    with LayerConnection(Dial(url, silence=silence), world.model().signed.release) as connection:
        connection.ping()


@pytest.mark.parametrize("before", [b"", PING * 100, Frame(Opcode.PONG, b"").serialize(mask=False)], ids=len)
def test_a_ping_finds_a_server_that_is_there(before: bytes) -> None:
    with scripted(before + PONG) as url:
        pinged(url)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", ConnectionLost),
        (Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False) + PONG, ConnectionLost),
        (b"\xff\xff" + PONG, ConnectionLost),
        (ANSWER + PONG, MalformedMessage),
        (Frame(Opcode.TEXT, b"x").serialize(mask=False), MalformedMessage),
    ],
    ids=["hung up", "close", "garbage", "an answer to nothing", "text"],
)
def test_a_ping_finds_out_what_else_is_the_matter(said: bytes, error: type[Exception]) -> None:
    with scripted(said) as url, pytest.raises(error):
        pinged(url)


def test_pings_of_the_servers_own_do_not_keep_anyone_waiting() -> None:
    with scripted(PING, over_and_over=True) as url, pytest.raises(ConnectionLost):
        pinged(url, silence=0.2)


def test_a_link_greets_a_server_again_that_has_hung_up(model: HybridModel, server: FakeServer) -> None:
    generate(model)
    greetings = server.greetings
    model.product.require_server()
    assert server.greetings == greetings
    server.stop()
    with pytest.raises(ConnectionLost):
        model.product.require_server()
    server.start()
    model.product.require_server()
    assert server.greetings == greetings + 1
    generate(model)


# -- addresses -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "ftp://a",
        "ws://",
        "://",
        "ws://a:notaport",
        "wss://[::1",
        "ws://a/b/c",
        "ws://a/b?c",
        "ws://a#b",
        "ws://a/%0a",
        "ws://a/..",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ProtocolError):
        Dial(url)


def test_an_address_is_the_same_however_it_is_written() -> None:
    assert websocket_url("localhost:1") == websocket_url("http://localhost:1/") == Dial("ws://localhost:1").url


def test_a_plain_connection_leaves_the_machine_only_when_told_to() -> None:
    with pytest.raises(InsecureConnection):
        Dial("ws://layers.example:1")
    Dial("ws://layers.example:1", insecure_no_tls=True)
    Dial("wss://layers.example:1")


def test_a_licence_is_not_in_a_repr() -> None:
    assert "secret" not in repr(Dial("localhost:1", licence="secret"))


def test_prompt_tokens_need_no_more_than_the_pool_has(model: HybridModel) -> None:
    assert generate(model, PROMPT).shape[1] > PROMPT.shape[1]
