"""A sealed package on its way: a folder that gets its name at the end, and the files that are encrypted into it.

An interrupted run leaves nothing that looks whole. Needs neither torch nor transformers.
"""

import hashlib
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from confide.errors import ConfideError
from confide.packages.sealed.manifest import SUFFIX, SealedFile
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.reader import OnChunk
from confide.packages.sealed.stream import ChunkCipher, chunk_count


def require_absent(out: Path) -> None:
    """ConfideError where something is in the place of a package to be written."""
    if out.exists():
        raise ConfideError(f"{out} exists already; choose another folder, or remove it first.")


@contextmanager
def draft_folder(out: Path) -> Iterator[Path]:
    """A folder beside the final one, to be renamed to it; otherwise gone in the end."""
    require_absent(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    room = Path(tempfile.mkdtemp(prefix=".unfinished-seal-", dir=out.parent))
    try:
        draft = room / out.name
        draft.mkdir()
        yield draft
    finally:
        shutil.rmtree(room)


def seal_file(
    source: BinaryIO, size: int, path: Path, draft: Path, name: str, key: bytes, on_chunk: OnChunk | None = None
) -> SealedFile:
    """Encrypt a file into a draft, as `name`. path: of the source, for an error. ConfideError where it changes."""
    digest, leaves, cipher = hashlib.sha256(), [], ChunkCipher(key, size)
    with (draft / (name + SUFFIX)).open("xb") as target:
        for index in range(chunk_count(size)):
            plaintext = source.read(cipher.span(index).length)
            if len(plaintext) != cipher.span(index).length:
                raise _changed(path)
            sealed = cipher.seal(index, plaintext)
            digest.update(sealed)
            target.write(sealed)
            leaves.append(leaf_hash(plaintext))
            if on_chunk:
                on_chunk(len(plaintext))
        if source.read(1):
            raise _changed(path)
    return SealedFile(name, size, chunk_count(size), digest.hexdigest(), root_hash(leaves).hex())


def _changed(path: Path) -> ConfideError:
    return ConfideError(f"{path} changed while it was sealed; wait until it is whole, and seal again.")
