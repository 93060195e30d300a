import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide import errors
from confide.hybrid import wire

PACK, DIGEST = bytes(range(16)), bytes(range(32))
FROM_CLIENT = [
    wire.Hello(1, "rlwe-1", DIGEST, DIGEST),
    wire.OpenPack(PACK),
    wire.OfflineBegin(PACK, 3, DIGEST, DIGEST, b"p0"),
    wire.OfflineRows(128, memoryview(b"rows")),
    wire.Online(PACK, 3, 4095, 1, memoryview(b"\0" * 16)),
]
FROM_SERVER = [
    wire.Welcome(2, DIGEST, 5, DIGEST, DIGEST * 2),
    wire.PackState(PACK, 17, 48),
    wire.OfflineBlock(0, memoryview(b"high"), memoryview(b"low")),
    wire.Answer(memoryview(b"values")),
    wire.Failure("index-used", "Prepare another pack."),
]


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_what_a_client_sends_arrives(message: wire.FromClient) -> None:
    assert wire.decode_from_client(wire.encode(message)) == message


@pytest.mark.parametrize("message", FROM_SERVER, ids=lambda message: type(message).__name__)
def test_what_a_server_sends_arrives(message: wire.FromServer) -> None:
    assert wire.decode_from_server(wire.encode(message)) == message


@pytest.mark.parametrize("message", FROM_CLIENT, ids=lambda message: type(message).__name__)
def test_every_truncation_is_malformed(message: wire.FromClient) -> None:
    frame = wire.encode(message)
    for length in range(len(frame)):
        with pytest.raises(errors.MalformedMessage):
            wire.decode_from_client(frame[:length])


@pytest.mark.parametrize(
    "fields",
    [
        [8, PACK, -1, 0, 1, b""],
        [8, PACK, 1 << 16, 0, 1, b""],
        [8, PACK, 0, 0, 0, b""],
        [8, PACK, 0, 1 << 16, 1, b""],
        [8, PACK[:15], 0, 0, 1, b""],
        [8, PACK, 0, 0, 1, bytes(wire.MAX_FRAME + 1)],
        [8, PACK, 0, 0, 1, b"", "surplus"],
        [8, PACK, 0, 0, 1, "text"],
        [8, PACK, 0.5, 0, 1, b""],
        [99, PACK],
        [],
        {"tag": 8},
        None,
    ],
    ids=repr,
)
def test_fields_out_of_bounds_are_malformed(fields: object) -> None:
    with pytest.raises(errors.MalformedMessage):
        wire.decode_from_client(msgspec.msgpack.encode(fields))


@given(st.binary(max_size=300))
def test_any_bytes_are_a_message_or_malformed(frame: bytes) -> None:
    for decode in (wire.decode_from_client, wire.decode_from_server):
        with contextlib.suppress(errors.MalformedMessage):
            decode(frame)


@given(st.sampled_from([wire.encode(message) for message in FROM_CLIENT]), st.data())
def test_mutated_messages_are_messages_or_malformed(frame: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(frame) - 1))
    mutated = frame[:place] + bytes([data.draw(st.integers(0, 255))]) + frame[place + 1 :]
    with contextlib.suppress(errors.MalformedMessage):
        wire.decode_from_client(mutated)


def test_deep_nesting_is_malformed() -> None:
    with pytest.raises(errors.MalformedMessage):
        wire.decode_from_client(b"\x91" * 100_000)


def test_the_p1_seed_depends_on_both_sides_and_the_pack() -> None:
    seeds = {
        wire.p1_seed(server, client, pack)
        for server in (DIGEST, bytes(32))
        for client in (DIGEST, bytes(32))
        for pack in (PACK, bytes(16))
    }
    assert len(seeds) == 8


def test_the_request_digest_depends_on_every_part() -> None:
    def digest(
        model: bytes = DIGEST,
        table: bytes = DIGEST,
        licence: bytes = b"licence1",
        seed: bytes = DIGEST,
        rows: bytes = b"r",
        **changes: object,
    ) -> bytes:
        fields: dict[str, object] = {
            "pack": PACK, "group": 1, "client_nonce": DIGEST, "mask_seed": DIGEST, "public_key": b"p0"
        }  # fmt: skip
        request = wire.RequestDigest(model, table, licence, seed, wire.OfflineBegin(**(fields | changes)))  # type: ignore[arg-type]
        request.add_rows(memoryview(rows))
        return request.digest()

    other = bytes(32)
    digests = [
        digest(),
        digest(model=other),
        digest(table=other),
        digest(licence=b"licence2"),
        digest(seed=other),
        digest(rows=b"s"),
        digest(pack=bytes(16)),
        digest(group=2),
        digest(client_nonce=other),
        digest(mask_seed=other),
        digest(public_key=b"p1"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest() == digests[0]


@pytest.mark.parametrize("kind", [errors.IndexUsed, errors.UnknownPack, errors.ModelMismatch, errors.ServerFault])
def test_a_failure_arrives_as_the_error_it_was(kind: type[errors.ConfideError]) -> None:
    with pytest.raises(kind, match="Do this instead"):
        wire.raise_failure(wire.failure(kind("Do this instead.")))


def test_an_unknown_failure_code_is_still_a_protocol_error() -> None:
    with pytest.raises(errors.ProtocolError):
        wire.raise_failure(wire.Failure("from-the-future", "Update."))
