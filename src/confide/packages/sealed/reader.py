"""Decrypting one sealed file into memory, several chunks at a time, and checking that it is what its owner signed.

Two checks are needed. AES-GCM shows that a chunk was made by someone with the model key and belongs in its place. But
others than the owner may have that key, and whoever knows it can forge GCM tags, so the signature must reach the
content through a collision-resistant hash. That is the Merkle root over the plaintext: its leaves are hashed while a
chunk is still in the processor's cache, on all cores, and the root is compared before anything is handed out. The
digest of the ciphertext would say no more, at the price of hashing everything again; it serves those without the key.
"""

import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BufferedReader, RawIOBase
from pathlib import Path
from typing import TYPE_CHECKING

from confide.errors import DamagedFile, SubstitutedContent, TruncatedFile
from confide.packages.manifest import open_file
from confide.packages.sealed.manifest import SealedFile
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.regions import Regions
from confide.packages.sealed.stream import CHUNK_BYTES, TAG_BYTES, ChunkCipher, chunk_count, sealed_size

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

OnChunk = Callable[[int], None]
"""Told the bytes of each chunk that is done, in the thread that asked for them."""


class _Scratch(threading.local):
    """Each thread's room for a chunk, encrypted and decrypted."""

    def __init__(self) -> None:
        self.sealed = memoryview(bytearray(CHUNK_BYTES + TAG_BYTES))
        self.plain = memoryview(bytearray(CHUNK_BYTES))


class SealedReader:
    """A file of a package with its key. path: where its ciphertext lies. key: 32 bytes, of this file alone.

    Methods raise TruncatedFile, DamagedFile and SubstitutedContent.
    """

    def __init__(self, path: Path, file: SealedFile, key: bytes) -> None:
        self._path = path
        self._file = file
        self._cipher = ChunkCipher(key, file.size)
        self._scratch = _Scratch()
        self._threads = min(len(os.sched_getaffinity(0)), file.chunks)

    @property
    def size(self) -> int:
        """Bytes of plaintext."""
        return self._file.size

    def head(self, length: int) -> bytes:
        """The first bytes, decrypted but not yet compared with the root: compare them with what `read_into` gives."""
        content = bytearray()
        with open_ciphertext(self._path, self._file) as source:
            for index in range(chunk_count(min(length, self.size))):
                content += self._decrypt(source, index, self._scratch.plain)
        return bytes(content[:length])

    def read(self) -> bytearray:
        """The whole content, for small files."""
        content = bytearray(self.size)
        self.read_into(Regions([memoryview(content)]))
        return content

    def read_into(self, regions: Regions, on_chunk: OnChunk | None = None) -> None:
        """Decrypt everything into buffers of the file's size. What they hold is worth nothing if this raises."""
        if regions.size != self.size:
            raise ValueError("the buffers do not have the file's size")
        self._check(partial(self._place, regions), on_chunk)

    def open(self) -> BufferedReader:
        """The content from its beginning, to be read in order; what was read is compared with no root."""
        source = open_ciphertext(self._path, self._file)
        return BufferedReader(_Decrypted(source, self._file.chunks, self._decrypt), CHUNK_BYTES)

    def verify(self, on_chunk: OnChunk | None = None) -> None:
        """Decrypt everything, and keep nothing."""
        self._check(lambda source, index: self._decrypt(source, index, self._scratch.plain), on_chunk)

    def _check(self, decrypt: Callable[[BufferedReader, int], memoryview], on_chunk: OnChunk | None) -> None:
        """Decrypt every chunk, on all cores, and compare the root over all of them."""
        with open_ciphertext(self._path, self._file) as source, ThreadPoolExecutor(self._threads) as pool:
            found = pool.map(lambda index: leaf_hash(decrypt(source, index)), range(self._file.chunks))
            leaves = []
            try:
                for index, leaf in enumerate(found):
                    leaves.append(leaf)
                    if on_chunk:
                        on_chunk(self._cipher.span(index).length)
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)  # or leaving would first decrypt all the rest
                raise
        if root_hash(leaves).hex() != self._file.root:
            raise substituted(self._path)

    def _place(self, regions: Regions, source: BufferedReader, index: int) -> memoryview:
        span = self._cipher.span(index)
        if (target := regions.whole(span.start, span.end)) is not None:
            return self._decrypt(source, index, target)
        plaintext = self._decrypt(source, index, self._scratch.plain)
        regions.scatter(span.start, plaintext)
        return plaintext

    def _decrypt(self, source: BufferedReader, index: int, room: memoryview) -> memoryview:
        span = self._cipher.span(index)
        sealed, plaintext = self._scratch.sealed[: span.sealed_length], room[: span.length]
        # Not through a mapping of the file: whoever shortens that meanwhile would kill this process.
        if os.preadv(source.fileno(), [sealed], span.sealed_start) != len(sealed):
            raise truncated(self._path)
        try:
            self._cipher.open_into(index, sealed, plaintext)
        except DamagedFile as error:
            raise DamagedFile(f"{self._path}: {error}") from error
        return plaintext


class _Decrypted(RawIOBase):
    """A file of a package, chunk by chunk. decrypt: a chunk of the ciphertext, into room for it."""

    def __init__(
        self, source: BufferedReader, chunks: int, decrypt: Callable[[BufferedReader, int, memoryview], memoryview]
    ) -> None:
        self._source = source
        self._decrypt = decrypt
        self._chunks = iter(range(chunks))

    def readable(self) -> bool:
        return True

    def readinto(self, room: "WriteableBuffer") -> int:
        """The next chunk, or nothing after the last one. room: for a chunk at least."""
        index = next(self._chunks, None)
        return 0 if index is None else len(self._decrypt(self._source, index, memoryview(room)))

    def close(self) -> None:
        self._source.close()
        super().close()


def open_ciphertext(path: Path, file: SealedFile) -> BufferedReader:
    """A file of a package as it lies on disk. TruncatedFile where it is missing or has another length than signed."""
    try:
        source = open_file(path)
    except OSError as error:
        raise truncated(path) from error
    if os.fstat(source.fileno()).st_size != sealed_size(file.size):
        source.close()
        raise truncated(path)
    return source


def substituted(path: Path) -> SubstitutedContent:
    """What to raise about a file that somebody with the key, and no owner, encrypted."""
    return SubstitutedContent(
        f"{path} was encrypted with the right key, but is not what its owner signed; "
        "get the package from its owner again, and find out who else has the key."
    )


def truncated(path: Path) -> TruncatedFile:
    """What to raise about a file that is not whole."""
    return TruncatedFile(
        f"{path} is missing, or not as long as its owner signed it; get the package from its owner again."
    )
