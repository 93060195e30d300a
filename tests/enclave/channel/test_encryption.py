import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.channel.encryption import (
    MAX_FRAME,
    EncryptedExchange,
    FrameReader,
    RequestHead,
    ResponseHead,
    decode_head,
    encode_head,
    open_request,
)
from confide.channel.keys import PUBLIC_BYTES, ChannelKey, ChannelPublicKey
from confide.errors import ChannelBroken, ChannelError, ChannelRefused, KeyChanged

KEY = ChannelKey()
HEAD = RequestHead("POST", "/v1/chat/completions?a=b", (("content-type", "application/json"),))
BODIES = st.sampled_from([b"", b"x", b"y" * MAX_FRAME, b"z" * (MAX_FRAME + 1), b"w" * (3 * MAX_FRAME)])


def received(reader: FrameReader, data: bytes, portion: int = 1 << 20) -> list[bytes]:
    frames = [frame for at in range(0, len(data), portion) for frame in reader.feed(data[at : at + portion])]
    reader.require_end()
    return frames


@settings(deadline=None, max_examples=30)
@given(body=BODIES, answer=BODIES, portion=st.sampled_from([1000, 65536, 1 << 20]))
def test_a_request_and_its_answer(body: bytes, answer: bytes, portion: int) -> None:
    exchange = EncryptedExchange(KEY.public)
    opened = open_request(KEY, exchange.request(HEAD, body))
    assert (opened.head, opened.body) == (HEAD, body)
    head = ResponseHead(200, (("content-type", "text/event-stream"),))
    data = opened.writer.write(encode_head(head)) + opened.writer.write(answer, last=True)
    first, *rest = received(exchange.reader, data, portion)
    assert decode_head(first, ResponseHead) == head
    assert b"".join(rest) == answer


def test_nothing_of_it_travels_in_the_clear() -> None:
    sent = EncryptedExchange(KEY.public).request(HEAD, b"a secret prompt")
    assert b"secret" not in sent
    assert b"/v1" not in sent
    assert EncryptedExchange(KEY.public).request(HEAD, b"a secret prompt") != sent


@settings(deadline=None, max_examples=300)
@given(data=st.data())
def test_a_changed_request_is_refused(data: st.DataObject) -> None:
    sent = bytearray(EncryptedExchange(KEY.public).request(HEAD, b"body"))
    at = data.draw(st.integers(0, len(sent) - 1))
    sent[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ChannelError):
        open_request(KEY, bytes(sent))


@settings(deadline=None, max_examples=100)
@given(data=st.data())
def test_a_cut_request_is_refused(data: st.DataObject) -> None:
    sent = EncryptedExchange(KEY.public).request(HEAD, b"body")
    with pytest.raises(ChannelError):
        open_request(KEY, sent[: data.draw(st.integers(0, len(sent) - 1))])
    with pytest.raises(ChannelError):
        open_request(KEY, sent + b"\0")


def test_a_request_without_its_last_frame_is_refused() -> None:
    """Every frame that came is whole: only that the last one is missing tells."""
    sent = EncryptedExchange(KEY.public).request(HEAD, b"body")
    last = 4 + len(b"body") + 16  # length, ciphertext, tag
    with pytest.raises(ChannelError):
        open_request(KEY, sent[:-last])


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=200))
def test_noise_is_refused(noise: bytes) -> None:
    with pytest.raises(ChannelError):
        open_request(KEY, noise)


def test_a_request_for_another_key_says_so() -> None:
    with pytest.raises(KeyChanged):
        open_request(ChannelKey(), EncryptedExchange(KEY.public).request(HEAD))


def frames_of(answer: list[bytes]) -> tuple[EncryptedExchange, list[bytes]]:
    exchange = EncryptedExchange(KEY.public)
    writer = open_request(KEY, exchange.request(HEAD)).writer
    frames = [writer.write(part) for part in answer[:-1]]
    return exchange, [*frames, writer.write(answer[-1], last=True)]


@pytest.mark.parametrize(
    "order", [[0, 1, 2], [0, 2, 1, 3], [1, 0, 2, 3], [0, 0, 1, 2, 3], [0, 1, 3], [3], [], [0, 1, 2, 3, 3]]
)
def test_moved_repeated_and_missing_frames_are_noticed(order: list[int]) -> None:
    exchange, frames = frames_of([b"a", b"b", b"c", b"d"])
    with pytest.raises(ChannelBroken):
        received(exchange.reader, b"".join(frames[index] for index in order))


@settings(deadline=None, max_examples=200)
@given(data=st.data())
def test_a_changed_answer_is_noticed(data: st.DataObject) -> None:
    exchange, frames = frames_of([b"head", b"some text", b""])
    answer = bytearray(b"".join(frames))
    answer[data.draw(st.integers(0, len(answer) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(ChannelBroken):
        received(exchange.reader, bytes(answer))


def test_an_answer_to_another_request_is_noticed() -> None:
    _, frames = frames_of([b"head", b"text"])
    with pytest.raises(ChannelBroken):
        received(EncryptedExchange(KEY.public).reader, b"".join(frames))


@pytest.mark.parametrize("head", [b"", b"\x80", b"\xff", b"\x81\xa6status\x00"])
def test_an_odd_head_is_refused(head: bytes) -> None:
    with pytest.raises(ChannelBroken):
        decode_head(head, ResponseHead)


@pytest.mark.parametrize("raw", [b"", bytes(PUBLIC_BYTES - 1), bytes(PUBLIC_BYTES + 1), b"\xff" * PUBLIC_BYTES])
def test_an_odd_key_is_refused(raw: bytes) -> None:
    with pytest.raises(ChannelRefused):
        ChannelPublicKey(raw).encrypt(b"", b"")
    with pytest.raises(ChannelRefused):
        ChannelPublicKey.parse("zz")


def test_a_key_shows_nothing_of_itself() -> None:
    assert KEY.public.id.hex()[:16] in repr(KEY)
    opened = open_request(KEY, EncryptedExchange(KEY.public).request(HEAD, b"secret body"))
    assert "secret" not in repr(opened)
    assert repr(opened.writer) == object.__repr__(opened.writer)
