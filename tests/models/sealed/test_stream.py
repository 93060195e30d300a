"""Chunks, and where they are put together again."""

from itertools import pairwise

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import DamagedFile
from confide.packages.sealed.regions import Regions
from confide.packages.sealed.stream import CHUNK_BYTES, TAG_BYTES, ChunkCipher, chunk_count, sealed_size

KEY = bytes(32)


@pytest.mark.parametrize(
    ("size", "chunks"),
    [(0, 1), (1, 1), (CHUNK_BYTES - 1, 1), (CHUNK_BYTES, 1), (CHUNK_BYTES + 1, 2), (5 * CHUNK_BYTES, 5)],
)
def test_chunks_cover_a_file_back_to_back(size: int, chunks: int) -> None:
    spans = [ChunkCipher(KEY, size).span(index) for index in range(chunk_count(size))]
    assert len(spans) == chunks
    assert [span.start for span in spans] == [0, *(span.end for span in spans[:-1])]
    assert spans[-1].end == size
    assert spans[-1].sealed_start + spans[-1].sealed_length == sealed_size(size)


def test_the_nonce_counts_chunks_and_marks_the_last() -> None:
    """The format, spelled out: 11 bytes big-endian, then 1 for the last chunk."""
    cipher = ChunkCipher(KEY, 2 * CHUNK_BYTES + 3)
    assert cipher.seal(1, b"middle") == AESGCM(KEY).encrypt(bytes(10) + b"\1\0", b"middle", None)
    assert cipher.seal(2, b"end") == AESGCM(KEY).encrypt(bytes(10) + b"\2\1", b"end", None)


def test_a_chunk_opens_alone_and_nowhere_else() -> None:
    cipher, longer = ChunkCipher(KEY, 3 * CHUNK_BYTES), ChunkCipher(KEY, 4 * CHUNK_BYTES)
    room = memoryview(bytearray(4))
    for index in range(3):
        sealed = memoryview(cipher.seal(index, b"%04d" % index))
        assert len(sealed) == 4 + TAG_BYTES
        cipher.open_into(index, sealed, room)
        assert bytes(room) == b"%04d" % index
        for other in {0, 1, 2} - {index}:
            with pytest.raises(DamagedFile, match=f"chunk {other}"):
                cipher.open_into(other, sealed, room)
    with pytest.raises(DamagedFile):  # the last chunk of a shorter file is not the third of a longer one
        longer.open_into(2, memoryview(cipher.seal(2, b"last")), room)


@given(
    lengths=st.lists(st.integers(0, 9), max_size=9),
    cuts=st.lists(st.integers(0, 80), max_size=6),
)
def test_content_written_in_any_pieces_lies_back_to_back(lengths: list[int], cuts: list[int]) -> None:
    buffers = [bytearray(length) for length in lengths]
    regions = Regions([memoryview(buffer) for buffer in buffers])
    content = bytes(range(1, 1 + sum(lengths)))
    assert regions.size == len(content)
    places = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    for start, end in pairwise(places):
        whole = regions.whole(start, end)
        if whole is None:
            regions.scatter(start, memoryview(content[start:end]))
        else:
            whole[:] = content[start:end]
    assert b"".join(buffers) == content


def test_a_piece_inside_one_buffer_is_that_buffer() -> None:
    first, second = bytearray(4), bytearray(4)
    regions = Regions([memoryview(first), memoryview(second)])
    inside = regions.whole(5, 7)
    assert inside is not None
    inside[:] = b"xy"
    assert bytes(second) == b"\0xy\0"
    assert regions.whole(3, 5) is None
