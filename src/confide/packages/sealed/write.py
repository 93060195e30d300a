"""Writing a sealed package.

The folder gets its name at the end, so that an interrupted run leaves nothing that looks whole.
"""

import hashlib
import io
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO, Final

import msgspec

from confide.errors import ConfideError
from confide.packages.manifest import PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import FILE_NAME, KnownAnswers
from confide.packages.sealed.manifest import FORMAT, SUFFIX, SealedFile, SealedManifest, model_digest, write_signed
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.reader import OnChunk
from confide.packages.sealed.stream import ChunkCipher, chunk_count

_SALT_BYTES: Final = 32


Examine = Callable[[UnlockedPackage], KnownAnswers | None]
"""Has a sealed model answer; see `confide.enclave.self_test.examine`. Models know nothing of what runs them."""


def seal_model(
    contents: Contents,
    out: Path | str,
    *,
    key: ModelKey,
    owner: OwnerKey,
    examine: Examine | None = None,
    on_chunk: OnChunk | None = None,
) -> SealedManifest:
    """Encrypt a model into the folder `out` and sign it.

    examine: what it then answers becomes part of the package; without, `confide serve` refuses it.
    Raises ConfideError where the folder exists, and where a file changes meanwhile, and what `examine` raises.
    """
    out = Path(out)
    salt = os.urandom(_SALT_BYTES)
    with draft_folder(out) as draft:
        files = tuple(
            _seal_path(path, draft, name, key.file_key(salt, index, name), on_chunk)
            for index, (name, path) in enumerate(contents.files.items())
        )
        manifest = SealedManifest(
            FORMAT,
            PackageKind.SEALED.value,
            contents.name,
            contents.architecture,
            contents.weights,
            contents.quantization,
            key.id,
            salt.hex(),
            model_digest(files),
            files,
        )
        write_signed(draft, manifest, owner)
        if examine and (answers := examine(SealedPackage.open(draft).unlock(key))):
            content, file_key = answers.encode(), key.file_key(salt, len(files), FILE_NAME)
            sealed = seal_file(io.BytesIO(content), len(content), Path(FILE_NAME), draft, FILE_NAME, file_key)
            manifest = msgspec.structs.replace(manifest, known_answers=sealed)
            write_signed(draft, manifest, owner)
        draft.rename(out)
    return manifest


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


def _seal_path(path: Path, draft: Path, name: str, key: bytes, on_chunk: OnChunk | None) -> SealedFile:
    with path.open("rb") as source:
        return seal_file(source, os.fstat(source.fileno()).st_size, path, draft, name, key, on_chunk)


def seal_file(
    source: BinaryIO, size: int, path: Path, draft: Path, name: str, key: bytes, on_chunk: OnChunk | None = None
) -> SealedFile:
    """path: of the source, for an error."""
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
