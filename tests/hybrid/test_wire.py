import contextlib

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide import errors
from confide.hybrid import wire

DIGEST = bytes(range(32))
FROM_CLIENT = [
    wire.Hello(3, "rlwe-3", DIGEST, DIGEST),
    wire.Ahead(7, memoryview(b"keys")),
    wire.Online(3, 7, 60, 4, memoryview(b"\0" * 16)),
    wire.Online(3, (1 << 32) - 1, 65535, wire.MAX_REQUEST_TOKENS, memoryview(b"planes"), memoryview(b"keys")),
]
FROM_SERVER = [
    wire.Welcome(
        3, wire.Allowance(5, 3, 0.25, 0.5, 1000, 1 << 31, 60), DIGEST, DIGEST * 2, 1 << 24, 256, ((0, 3), (5, 65535))
    ),
    wire.Welcome(3, wire.Allowance(), DIGEST, DIGEST * 2, 0, 0, ((0, 0),)),
    wire.Answer(memoryview(b"values")),
    wire.Failure("unknown-block", "Send it with p0."),
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
        [4, -1, 0, 0, 1, b""],
        [4, 1 << 16, 0, 0, 1, b""],
        [4, 0, 1 << 32, 0, 1, b""],
        [4, 0, 0, 1 << 16, 1, b""],
        [4, 0, 0, 0, 0, b""],
        [4, 0, 0, 0, wire.MAX_REQUEST_TOKENS + 1, b""],
        [4, 0, 0, 0, 1, bytes(wire.MAX_FRAME + 1)],
        [4, 0, 0, 0, 1, b"", bytes(wire.MAX_FRAME + 1)],
        [4, 0, 0, 0, 1, b"", b"", "surplus"],
        [4, 0, 0, 0, 1, "text"],
        [4, 0.5, 0, 0, 1, b""],
        [3, 0],
        [3, -1, b""],
        [99, DIGEST],
        [],
        {"tag": 4},
        None,
    ],
    ids=lambda fields: repr(fields)[:60],  # not the megabytes of those that are too long
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


@pytest.mark.parametrize("kind", [errors.UnknownBlock, errors.RateLimited, errors.ModelMismatch, errors.ServerFault])
def test_a_failure_arrives_as_the_error_it_was(kind: type[errors.ConfideError]) -> None:
    with pytest.raises(kind, match="Do this instead"):
        wire.raise_failure(wire.failure(kind("Do this instead.")))


@pytest.mark.parametrize("code", ["from-the-future", "untrusted-owner", "integrity", "error", ""])
def test_what_no_server_has_to_report_is_a_protocol_error(code: str) -> None:
    """A server must not make a client believe that it found something out by itself."""
    with pytest.raises(errors.ProtocolError, match="no server has to") as raised:
        wire.raise_failure(wire.Failure(code, "Update."))
    assert type(raised.value) is errors.ProtocolError


@pytest.mark.parametrize("code", ["server-busy", "from-the-future"])
def test_a_servers_words_are_shown_without_what_a_terminal_would_obey(code: str) -> None:
    with pytest.raises(errors.ProtocolError) as raised:
        wire.raise_failure(wire.Failure(code, "\x1b[2J\r\nAll is well.\u202e" + 900 * "x"))
    assert str(raised.value).isprintable()
    assert "All is well." in str(raised.value)
    assert len(str(raised.value)) < 500
