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

from confide.errors import InvalidPackage, SubstitutedContent, SurplusFile, WrongModelKey
from confide.packages.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Digest, Record, read_package_file
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import SUFFIX, KeyId, SealedFile, SealedSignature
from confide.packages.sealed.reader import SealedReader
from confide.packages.sealed.stream import chunk_count
from confide.packages.sealed.write import draft_folder, seal_file
from confide.packages.signing import (
    SIGNATURE_NAME,
    package_files,
    read_signature,
    require_signed,
    require_trusted,
    write_signature,
)

_FILE: Final = "task.jsonl"
_SIGNED_LABEL: Final = b"confide sealed data 1\0"


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
        content = read_package_file(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
        signature = read_signature(folder / SIGNATURE_NAME, SealedSignature)
        owner = OwnerPublicKey.parse(signature.owner)
        require_trusted(folder, owner, trusted)
        require_signed(folder, owner, _statement(content), signature.package)
        manifest = parse_data_manifest(content)
        if surplus := sorted(set(package_files(folder)) - {_FILE + SUFFIX}):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the dataset that its owner sealed; remove it.")
        return cls(folder, manifest, owner)

    def require_key(self, key: ModelKey) -> None:
        """WrongModelKey unless it was sealed with this key."""
        if key.id != self.manifest.key:
            raise WrongModelKey(f"{self.folder} was sealed with the key {self.manifest.key}, and not with {key.id}.")

    def read(self, key: ModelKey) -> bytes:
        """The file, in memory. WrongModelKey; TruncatedFile, DamagedFile, SubstitutedContent for what was changed."""
        self.require_key(key)
        manifest = self.manifest
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
        written = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
        (draft / MANIFEST_NAME).write_bytes(written)
        write_signature(draft, SealedSignature(str(owner.public), owner.sign(_statement(written)).hex()))
        draft.rename(out)
    return manifest


def _statement(manifest: bytes) -> bytes:
    return _SIGNED_LABEL + hashlib.sha256(manifest).digest()
