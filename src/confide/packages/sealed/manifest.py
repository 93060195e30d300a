"""The manifest of a sealed model: what it is, which key opens it, and what each of its files must be.

It is public, so it says nothing that a key would be needed for. But whoever guesses a file's content can tell from its
digest that they did. Needs neither torch nor transformers.
"""

import hashlib
import re
from collections.abc import Container, Iterable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from confide.errors import InvalidPackage
from confide.packages.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Digest,
    FileName,
    Name,
    Record,
    read_package_file,
)
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.sealed.known_answers import FILE_NAME, MAX_BYTES
from confide.packages.sealed.merkle import leaf_hash, root_hash
from confide.packages.sealed.stream import chunk_count
from confide.packages.signing import (
    SIGNATURE_NAME,
    Hex64,
    read_signature,
    require_signed,
    require_trusted,
    write_signature,
)

FORMAT: Final = 1
SUFFIX: Final = ".sealed"
"""What a file's name has on disk, after its own."""
MAX_FILES: Final = 1 << 10
_SIGNED_LABEL: Final = b"confide sealed model 1\0"
_MODEL_LABEL: Final = b"confide model digest 1\0"

KeyId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
Size = Annotated[int, msgspec.Meta(ge=0, le=1 << 50)]


class WeightsFormat(StrEnum):
    """How the weights are stored, which decides the engines that can run them."""

    SAFETENSORS = "safetensors"
    GGUF = "gguf"


class SealedFile(Record, frozen=True):
    """A file of the model. size: of its plaintext, in bytes. digest: SHA-256 of its ciphertext as it lies on disk.

    root: of the Merkle tree over its plaintext, a leaf for each chunk.
    """

    name: FileName
    size: Size
    chunks: Annotated[int, msgspec.Meta(ge=1)]
    digest: Digest
    root: Digest


class SealedManifest(Record, frozen=True):
    """What a sealed package holds. key: the id of the model key. salt: of its files' keys, fresh for each package.

    model_digest: see `model_digest`. architecture: as the weights' own metadata names it, such as gpt2.
    quantization: the type of most weights, such as f16 or q8_0. known_answers: the file of them, which is no part of
    the model and of its digest; None for a model that was sealed without.
    """

    format: Literal[1]
    kind: Literal["sealed-model"]
    name: Name
    architecture: Name
    weights: WeightsFormat
    quantization: Name
    key: KeyId
    salt: Digest
    model_digest: Digest
    files: Annotated[tuple[SealedFile, ...], msgspec.Meta(min_length=1, max_length=MAX_FILES)]
    known_answers: SealedFile | None = None

    @property
    def all_files(self) -> tuple[SealedFile, ...]:
        """Those of the model, and that of the known answers after them. The place of each is part of its key."""
        return self.files if self.known_answers is None else (*self.files, self.known_answers)

    @property
    def size(self) -> int:
        """Plaintext bytes of all files."""
        return sum(file.size for file in self.files)

    def weight_files(self) -> list[str]:
        """The names of the files that hold weights."""
        return [file.name for file in self.files if file.name.endswith(f".{self.weights}")]


class SealedSignature(Record, frozen=True):
    """Who signed a sealed package, and the signature, in hexadecimal."""

    owner: Digest
    package: Hex64


def model_digest(files: Iterable[SealedFile]) -> str:
    """The digest of a model's plaintext, in hexadecimal: the same whoever sealed it, when, and with which key.

    SHA-256 over a label and the root of a Merkle tree whose leaves are each file's name, size and own root, in order.
    """
    leaves = [leaf_hash(msgspec.json.encode([file.name, file.size, file.root])) for file in files]
    return hashlib.sha256(_MODEL_LABEL + root_hash(leaves)).hexdigest()


def write_signed(folder: Path, manifest: SealedManifest, owner: OwnerKey) -> None:
    """Write the manifest and its owner's signature over it."""
    write_signed_manifest(folder, manifest, _SIGNED_LABEL, owner)


def read_signed(
    folder: Path, trusted: Container[OwnerPublicKey] | None = None
) -> tuple[SealedManifest, OwnerPublicKey]:
    """The manifest and whose it is, once the signature holds.

    trusted: the owners whose models are wanted, None for whoever signed it. Raises UntrustedOwner for the package of
    another one, InvalidPackage for a signature that does not hold and for whatever else is wrong.
    """
    content, owner = read_signed_manifest(folder, _SIGNED_LABEL, trusted)
    return _parse(folder / MANIFEST_NAME, content), owner


def write_signed_manifest(folder: Path, manifest: Record, label: bytes, owner: OwnerKey) -> None:
    """The same for a manifest of any kind. label: what is signed as, so that one kind never passes for another."""
    content = msgspec.json.format(msgspec.json.encode(manifest), indent=1)
    (folder / MANIFEST_NAME).write_bytes(content)
    write_signature(folder, SealedSignature(str(owner.public), owner.sign(_statement(label, content)).hex()))


def read_signed_manifest(
    folder: Path, label: bytes, trusted: Container[OwnerPublicKey] | None = None
) -> tuple[bytes, OwnerPublicKey]:
    """The bytes that `write_signed_manifest` wrote, and whose they are. Raises as `read_signed` does."""
    content = read_package_file(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    signature = read_signature(folder / SIGNATURE_NAME, SealedSignature)
    owner = OwnerPublicKey.parse(signature.owner)
    require_trusted(folder, owner, trusted)
    require_signed(folder, owner, _statement(label, content), signature.package)
    return content, owner


def _statement(label: bytes, manifest: bytes) -> bytes:
    return label + hashlib.sha256(manifest).digest()


def _parse(path: Path, content: bytes) -> SealedManifest:
    try:
        manifest = msgspec.json.decode(content, type=SealedManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        # What a damaged file says about itself goes to a terminal: printable and short.
        reason = re.sub(r"[^\x20-\x7e]", "?", str(error))[:300].rstrip(". ")
        raise InvalidPackage(
            f"{path} is not the manifest of a sealed model: {reason}. Run `confide seal` again."
        ) from error
    names = {file.name for file in manifest.all_files}
    answers = manifest.known_answers
    consistent = (
        len(names) == len(manifest.all_files)
        and all(file.chunks == chunk_count(file.size) for file in manifest.all_files)
        and (answers is None or (answers.name == FILE_NAME and answers.size <= MAX_BYTES))
        and manifest.weight_files()
        and model_digest(manifest.files) == manifest.model_digest
    )
    if not consistent:
        raise InvalidPackage(f"{path} contradicts itself, although its owner signed it; run `confide seal` again.")
    return manifest
