"""Single frames, and the record that is made of them."""

from collections.abc import Callable

from confide.errors import ConfideError
from confide.hybrid import wire
from confide.hybrid.server.record import read_record

from .bench import scratch

DIGEST = bytes(range(32))
FROM_CLIENT: list[wire.FromClient] = [
    wire.Hello(wire.PROTOCOL_VERSION, wire.SCHEME, DIGEST, DIGEST, "confide-key"),
    wire.Ahead(7, memoryview(bytes(range(24)))),
    wire.Online(3, 7, 60, 1, memoryview(bytes(16)), memoryview(bytes(range(24)))),
    wire.Online(3, 7, 60, 1, memoryview(bytes(16))),
]
FROM_SERVER: list[wire.FromServer] = [
    wire.Welcome(
        wire.PROTOCOL_VERSION,
        wire.Allowance(5, 3, 0.25, 0.5, 1000, 1 << 31, 60),
        DIGEST,
        DIGEST * 2,
        1 << 24,
        256,
        ((0, 3), (5, 65535)),
    ),
    wire.Welcome(wire.PROTOCOL_VERSION, wire.Allowance(), DIGEST, DIGEST * 2, 0, 0, ((0, 0),)),
    wire.Answer(memoryview(b"values")),
    wire.Failure("unknown-block", "Send it with p0."),
    wire.Failure("untrusted-owner", "\x1b[2J"),
]


def from_client(data: bytes) -> None:
    """A frame as the server gets it; what is a message is one again when it is sent on."""
    message = wire.decode_from_client(data)
    if wire.decode_from_client(wire.encode(message)) != message:
        raise AssertionError("a message changed on its way")


def from_server(data: bytes) -> None:
    """A frame as the client gets it."""
    message = wire.decode_from_server(data)
    if isinstance(message, wire.Failure):
        try:
            wire.raise_failure(message)
        except ConfideError as error:
            if not str(error).isprintable():
                raise AssertionError("a server's words could command a terminal") from error
            raise


def record(data: bytes) -> None:
    """A record of online messages."""
    path = scratch("record") / "record"
    path.write_bytes(data)
    for _ in read_record(path):
        pass


def _seeds_of_record() -> list[bytes]:
    frame = wire.encode(FROM_CLIENT[-1])
    entry = len(frame).to_bytes(4, "little") + frame
    return [entry, entry * 3 + entry[:9]]


TARGETS: dict[str, Callable[[bytes], None]] = {"from-client": from_client, "from-server": from_server, "record": record}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "from-client": lambda: [wire.encode(message) for message in FROM_CLIENT],
    "from-server": lambda: [wire.encode(message) for message in FROM_SERVER],
    "record": _seeds_of_record,
}
