"""Sealing a model, and sealing it anew for another key."""

import io
import os
from collections.abc import Callable
from pathlib import Path
from typing import Final

import msgspec

from confide.errors import ConfideError
from confide.packages.manifest import PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.draft import draft_folder, seal_file
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import FILE_NAME, KnownAnswers
from confide.packages.sealed.manifest import FORMAT, SealedFile, SealedManifest, model_digest, write_signed
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.reader import OnChunk, substituted

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


def reseal_model(
    package: UnlockedPackage, out: Path | str, *, key: ModelKey, owner: OwnerKey, on_chunk: OnChunk | None = None
) -> SealedManifest:
    """Encrypt a sealed model into the folder `out` for another key, and sign it: the same model, of the same digest.

    Nothing of it is on disk in the clear, nor more than a chunk in memory. Its known answers come along.
    Raises ConfideError where the folder exists and where the key is the one that the package has, DamagedFile,
    TruncatedFile and SubstitutedContent for a package that its owner did not seal so.
    """
    out, manifest, salt = Path(out), package.manifest, os.urandom(_SALT_BYTES)
    if key.id == manifest.key:
        raise ConfideError("The package has this key already; give a new one, or a file that is not there yet.")
    with draft_folder(out) as draft:
        sealed = []
        for index, file in enumerate(manifest.all_files):
            path = package.package.path(file)
            with package.file(file.name).open() as source:
                file_key = key.file_key(salt, index, file.name)
                sealed.append(seal_file(source, file.size, path, draft, file.name, file_key, on_chunk))
            if sealed[-1].root != file.root:
                raise substituted(path)
        files = tuple(sealed[: len(manifest.files)])
        answers = None if manifest.known_answers is None else sealed[-1]
        manifest = msgspec.structs.replace(manifest, key=key.id, salt=salt.hex(), files=files, known_answers=answers)
        write_signed(draft, manifest, owner)
        draft.rename(out)
    return manifest


def _seal_path(path: Path, draft: Path, name: str, key: bytes, on_chunk: OnChunk | None) -> SealedFile:
    with path.open("rb") as source:
        return seal_file(source, os.fstat(source.fileno()).st_size, path, draft, name, key, on_chunk)
