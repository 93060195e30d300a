"""A sealed dataset: one file, encrypted for a key of its owner's and signed, as a model is.

Its manifest is public and says the digest of the file in the clear, by which whoever guesses the file can tell that
they did. Needs neither torch nor transformers.
"""

import hashlib
import io
import os
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Literal, Self

import msgspec

from confide.errors import InvalidPackage, SubstitutedContent, SurplusFile
from confide.packages.manifest import Digest, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.draft import draft_folder, seal_file
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import SUFFIX, KeyId, SealedFile, read_signed_manifest, write_signed_manifest
from confide.packages.sealed.reader import SealedReader
from confide.packages.sealed.stream import chunk_count
from confide.packages.signing import package_files

_FILE: Final = "task.jsonl"
SIGNED_LABEL: Final = b"confide sealed data 1\0"


class DataManifest(Record, frozen=True):
    """What a sealed dataset is. key: the id of its key. dataset: SHA-256 of the file in the clear."""

    format: Literal[1]
    kind: Literal["sealed-data"]
    key: KeyId
    salt: Digest
    dataset: Digest
    file: SealedFile


@dataclass(frozen=True)
class SealedData:
    """A sealed dataset whose manifest its owner signed."""

    folder: Path
    manifest: DataManifest
    owner: OwnerPublicKey

    @classmethod
    def open(cls, folder: Path | str, trusted: Container[OwnerPublicKey] | None = None) -> Self:
        """Read the manifest and check who signed it. trusted: None for whoever did.

        Raises UntrustedOwner, SurplusFile, and InvalidPackage for whatever else is wrong.
        """
        folder = Path(folder)
        content, owner = read_signed_manifest(folder, SIGNED_LABEL, trusted)
        manifest = parse_data_manifest(content)
        if surplus := sorted(set(package_files(folder)) - {_FILE + SUFFIX}):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the dataset that its owner sealed; remove it.")
        return cls(folder, manifest, owner)

    def read(self, key: ModelKey) -> bytes:
        """The file, in memory. WrongModelKey; TruncatedFile, DamagedFile, SubstitutedContent for what was changed."""
        manifest = self.manifest
        key.require(manifest.key, self.folder)
        file_key = key.file_key(bytes.fromhex(manifest.salt), 0, _FILE)
        content = bytes(SealedReader(self.folder / (_FILE + SUFFIX), manifest.file, file_key).read())
        if hashlib.sha256(content).hexdigest() != manifest.dataset:
            raise SubstitutedContent(f"{self.folder} holds another dataset than its manifest says; seal it again.")
        return content


def parse_data_manifest(content: bytes) -> DataManifest:
    """The manifest in a file's bytes. InvalidPackage for anything else, and for one that contradicts itself."""
    try:
        manifest = msgspec.json.decode(content, type=DataManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidPackage("This is no manifest of a sealed dataset; seal it with `confide certify seal`.") from None
    if manifest.file.name != _FILE or manifest.file.chunks != chunk_count(manifest.file.size):
        raise InvalidPackage("The manifest of the dataset contradicts itself; seal it again.")
    return manifest


def seal_data(content: bytes, out: Path | str, *, key: ModelKey, owner: OwnerKey) -> DataManifest:
    """Encrypt a dataset into the folder `out` and sign it. ConfideError where the folder exists."""
    out, salt = Path(out), os.urandom(32)
    with draft_folder(out) as draft:
        file_key = key.file_key(salt, 0, _FILE)
        file = seal_file(io.BytesIO(content), len(content), Path(_FILE), draft, _FILE, file_key)
        manifest = DataManifest(1, "sealed-data", key.id, salt.hex(), hashlib.sha256(content).hexdigest(), file)
        write_signed_manifest(draft, manifest, SIGNED_LABEL, owner)
        draft.rename(out)
    return manifest
