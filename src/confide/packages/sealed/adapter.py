"""A sealed adapter: what was trained over a sealed model, encrypted for its owner's key, with its training certificate.

No owner signs it, for it is made where no owner is. What it holds has to have the digest that its certificate names,
and whether the certificate is true is for whoever uses the adapter to say. Opening it needs torch and transformers,
looking at it neither.
"""

import io
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import msgspec

from confide.attest.certificates import MAX_CERTIFICATE_BYTES
from confide.attest.training import ADAPTER_FILES, TrainingCertificate, adapter_digest
from confide.errors import InvalidPackage, SubstitutedContent, SurplusFile, WrongModelKey
from confide.packages.manifest import MANIFEST_NAME, MAX_MANIFEST_BYTES, Digest, Record, read_package_file
from confide.packages.sealed.draft import draft_folder, seal_file
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import FILE_NAME, MAX_BYTES, KnownAnswers
from confide.packages.sealed.manifest import SUFFIX, KeyId, SealedFile
from confide.packages.sealed.reader import SealedReader
from confide.packages.sealed.stream import chunk_count
from confide.packages.signing import package_files

if TYPE_CHECKING:
    from confide.models.adapter import Adapter

CERTIFICATE_NAME: Final = "certificate.json"
MAX_ADAPTER_BYTES: Final = 16 << 30


class AdapterManifest(Record, frozen=True):
    """What a sealed adapter is. key: the id of its key. base: the model digest of what it lies over. adapter: its own.

    files: of `ADAPTER_FILES`, in order. known_answers: what the model gives under it; None for one without.
    """

    format: Literal[1]
    kind: Literal["sealed-adapter"]
    key: KeyId
    salt: Digest
    base: Digest
    adapter: Digest
    files: Annotated[tuple[SealedFile, ...], msgspec.Meta(min_length=len(ADAPTER_FILES), max_length=len(ADAPTER_FILES))]
    known_answers: SealedFile | None = None

    @property
    def all_files(self) -> tuple[SealedFile, ...]:
        """With the known answers. The place of each is part of its key."""
        return self.files if self.known_answers is None else (*self.files, self.known_answers)


@dataclass(frozen=True)
class SealedAdapter:
    """A sealed adapter whose certificate is about it, as both say themselves."""

    folder: Path
    manifest: AdapterManifest
    certificate: TrainingCertificate

    @classmethod
    def open(cls, folder: Path | str) -> Self:
        """Read the manifest and the certificate. Needs no key.

        Raises SurplusFile, MalformedTraining, and InvalidPackage where the two are not about one adapter, and for
        whatever else is wrong.
        """
        folder = Path(folder)
        manifest = parse_adapter_manifest(read_package_file(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
        certificate = TrainingCertificate.read(read_package_file(folder / CERTIFICATE_NAME, MAX_CERTIFICATE_BYTES))
        if (certificate.predicate.adapter, certificate.run.base) != (manifest.adapter, manifest.base):
            raise InvalidPackage(f"{folder / CERTIFICATE_NAME} certifies another adapter; get the folder again.")
        known = {CERTIFICATE_NAME, *(file.name + SUFFIX for file in manifest.all_files)}
        if surplus := sorted(set(package_files(folder)) - known):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the adapter; remove it.")
        return cls(folder, manifest, certificate)

    def require_base(self, base: str) -> None:
        """InvalidPackage unless it lies over the model with this digest."""
        if self.manifest.base != base:
            raise InvalidPackage(
                f"{self.folder} lies over the model {self.manifest.base}, and not over {base}; give its base."
            )

    def unlock(self, key: ModelKey) -> "UnlockedAdapter":
        """The adapter with its key. WrongModelKey for another one."""
        if key.id != self.manifest.key:
            raise WrongModelKey(f"{self.folder} was sealed with the key {self.manifest.key}, and not with {key.id}.")
        return UnlockedAdapter(self, key)


@dataclass(frozen=True)
class UnlockedAdapter:
    """A sealed adapter and the key to it. Methods raise TruncatedFile, DamagedFile and SubstitutedContent."""

    sealed: SealedAdapter
    _key: ModelKey = field(repr=False)

    def files(self) -> dict[str, bytes]:
        """The adapter's two files, in memory."""
        manifest = self.sealed.manifest
        content = {file.name: self._read(index, file) for index, file in enumerate(manifest.files)}
        if adapter_digest(content) != manifest.adapter:
            raise SubstitutedContent(f"{self.sealed.folder} holds another adapter than it says; get the folder again.")
        return content

    def read(self) -> "Adapter":
        """The adapter, to be merged into its base. ModelNotSupported for what is no LoRA adapter."""
        from confide.models.adapter import adapter_of

        files = self.files()
        return adapter_of(self.sealed.folder, *(files[name] for name in ADAPTER_FILES))

    def known_answers(self) -> KnownAnswers | None:
        """What the model answered under it when it was sealed; None where nobody asked. InvalidPackage."""
        file = self.sealed.manifest.known_answers
        return None if file is None else KnownAnswers.decode(self._read(len(ADAPTER_FILES), file))

    def _read(self, index: int, file: SealedFile) -> bytes:
        key = self._key.file_key(bytes.fromhex(self.sealed.manifest.salt), index, file.name)
        return bytes(SealedReader(self.sealed.folder / (file.name + SUFFIX), file, key).read())


def parse_adapter_manifest(content: bytes) -> AdapterManifest:
    """The manifest in a file's bytes. InvalidPackage for anything else, and for one that contradicts itself."""
    try:
        manifest = msgspec.json.decode(content, type=AdapterManifest)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidPackage("This is no manifest of a sealed adapter; train it with `confide train lora`.") from None
    answers = manifest.known_answers
    consistent = (
        tuple(file.name for file in manifest.files) == ADAPTER_FILES
        and all(file.chunks == chunk_count(file.size) for file in manifest.all_files)
        and all(file.size <= MAX_ADAPTER_BYTES for file in manifest.files)
        and (answers is None or (answers.name == FILE_NAME and answers.size <= MAX_BYTES))
    )
    if not consistent:
        raise InvalidPackage("The manifest of the adapter contradicts itself; get the folder again.")
    return manifest


def seal_adapter(
    files: Mapping[str, bytes],
    certificate: TrainingCertificate,
    out: Path | str,
    *,
    key: ModelKey,
    known_answers: KnownAnswers | None = None,
) -> AdapterManifest:
    """Encrypt an adapter into the folder `out`, beside its certificate. ConfideError where the folder exists."""
    out, salt = Path(out), os.urandom(32)
    contents = [(name, files[name]) for name in ADAPTER_FILES]
    if known_answers is not None:
        contents.append((FILE_NAME, known_answers.encode()))
    with draft_folder(out) as draft:
        sealed = [
            seal_file(io.BytesIO(content), len(content), Path(name), draft, name, key.file_key(salt, index, name))
            for index, (name, content) in enumerate(contents)
        ]
        manifest = AdapterManifest(
            1,
            "sealed-adapter",
            key.id,
            salt.hex(),
            certificate.run.base,
            certificate.predicate.adapter,
            tuple(sealed[: len(ADAPTER_FILES)]),
            sealed[len(ADAPTER_FILES)] if known_answers is not None else None,
        )
        (draft / MANIFEST_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(manifest), indent=1))
        (draft / CERTIFICATE_NAME).write_bytes(certificate.write())
        draft.rename(out)
    return manifest
