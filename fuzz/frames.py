"""Single frames, and the record that is made of them."""

from collections.abc import Callable

from confide.hybrid import wire
from confide.hybrid.server.record import read_record

from .bench import scratch

PACK, DIGEST = bytes(range(16)), bytes(range(32))
FROM_CLIENT: list[wire.FromClient] = [
    wire.Hello(wire.PROTOCOL_VERSION, "rlwe-1", DIGEST, DIGEST, "confide-key"),
    wire.OpenPack(PACK),
    wire.OfflineBegin(PACK, 3, DIGEST, DIGEST, b"p0"),
    wire.OfflineRows(128, memoryview(b"rows")),
    wire.Online(PACK, 3, 4095, 1, memoryview(bytes(16))),
]
FROM_SERVER: list[wire.FromServer] = [
    wire.Welcome(wire.PROTOCOL_VERSION, DIGEST, 5, DIGEST, DIGEST * 2),
    wire.Welcome(wire.PROTOCOL_VERSION, DIGEST, None, DIGEST, DIGEST * 2),
    wire.PackState(PACK, 17, 48),
    wire.OfflineBlock(0, memoryview(b"high"), memoryview(b"low")),
    wire.Answer(memoryview(b"values")),
    wire.Failure("index-used", "Prepare another pack."),
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
        wire.raise_failure(message)


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
