"""Key derivation and streams against independent implementations, and against pinned bytes."""

import hashlib
import hmac

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe.streams import KEY_BYTES, Stream, derive_key, fresh_key

KEY = bytes(range(32))
LABELS = ["a", "p1", "secret key", "public key error", "mask error", "ciphertext seed", "request"]
LABELS += ["u", "e1", "e2", "share", "share, low byte"]


def keystream(key: bytes, count: int) -> bytes:
    """AES-256 in counter mode by its definition: the encryptions of 0, 1, 2..., big-endian."""
    encryptor = Cipher(algorithms.AES(key), modes.ECB()).encryptor()  # noqa: S305
    blocks = -(-count // 16)
    return encryptor.update(b"".join(block.to_bytes(16, "big") for block in range(blocks)))[:count]


def expand(key: bytes, label: str, context: bytes = b"") -> bytes:
    """HKDF-Expand (RFC 5869) for one block of output."""
    return hmac.new(key, b"confide/1 " + label.encode() + b"\0" + context + b"\1", hashlib.sha256).digest()


@pytest.mark.parametrize("label", LABELS)
@pytest.mark.parametrize("context", [b"", b"\0\0\0\7", bytes(32)])
def test_derived_keys_are_hkdf_expand(label, context):
    assert derive_key(KEY, label, context) == expand(KEY, label, context)


@given(st.binary(min_size=32, max_size=64), st.text(max_size=20), st.binary(max_size=40))
def test_derived_keys_are_hkdf_expand_for_any_input(key, label, context):
    assert derive_key(key, label, context) == expand(key, label, context)


def test_derived_keys_are_pinned():
    assert derive_key(KEY, "a").hex() == "49579ea85c3c481920cd5530574f9c0960aa67b9b3f573c5a6550f99c6462465"
    assert (
        derive_key(KEY, "ciphertext seed", bytes(4)).hex()
        == "7fca208f94d0d6406a159142f69f96880ce7f87c41c630af45e79f0d951c68e6"
    )


def test_labels_and_contexts_separate():
    keys = {derive_key(KEY, label, context) for label in LABELS for context in (b"", b"\0", b"\1")}
    assert len(keys) == 3 * len(LABELS)


@pytest.mark.parametrize("length", [0, 1, 31])
def test_short_keys_are_refused(length):
    with pytest.raises(ValueError, match="too short"):
        derive_key(bytes(length), "a")


@pytest.mark.parametrize("count", [1, 15, 16, 17, 4096, (1 << 18) - 1, (1 << 18) + 33])
def test_the_stream_is_aes_in_counter_mode(count):
    assert Stream(KEY).bytes(count).tobytes() == keystream(KEY, count)


def test_the_stream_is_pinned():
    assert Stream(KEY).bytes(32).tobytes().hex() == "f29000b62a499fd0a9f39a6add2e7780f05d76ae4ab99fe5a6f69b3148c2363d"


@given(st.integers(0, 1000), st.integers(1, 1000))
def test_reading_from_an_offset_is_the_tail(offset, count):
    assert Stream(KEY, offset=offset).bytes(count).tobytes() == keystream(KEY, offset + count)[offset:]


@pytest.mark.parametrize("offset", [(1 << 18) - 1, 1 << 18, (1 << 18) + 5, (3 << 17) + 16])
def test_far_offsets_are_the_tail(offset):
    assert Stream(KEY, offset=offset).bytes(100).tobytes() == keystream(KEY, offset + 100)[offset:]


def test_offsets_beyond_32_bit_counters_work():
    offset = (1 << 40) + 3
    encryptor = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()  # noqa: S305
    block = encryptor.update((1 << 36).to_bytes(16, "big"))
    assert Stream(KEY, offset=offset).bytes(13).tobytes() == block[3:]


@given(st.lists(st.integers(0, 200), min_size=1, max_size=8))
def test_reads_continue_each_other(counts):
    stream = Stream(KEY)
    assert b"".join(stream.bytes(count).tobytes() for count in counts) == keystream(KEY, sum(counts))


def test_words_are_little_endian_and_row_major():
    expected = np.frombuffer(keystream(KEY, 4 * 6), "<i4").reshape(2, 3)
    assert np.array_equal(Stream(KEY).words(2, 3), expected)


def test_fill_overwrites_the_array_it_is_given():
    array = np.full((3, 5), -1, np.int64)
    Stream(KEY).fill(array)
    assert array.tobytes() == keystream(KEY, 120)


def test_fresh_keys_are_long_and_differ():
    keys = {fresh_key() for _ in range(100)}
    assert len(keys) == 100
    assert {len(key) for key in keys} == {KEY_BYTES}
