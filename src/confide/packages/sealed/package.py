"""A sealed model's folder: found to be its owner's, then verified, or unlocked with its key.

Needs neither torch nor transformers.
"""

import hashlib
from collections.abc import Container
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from confide.errors import DamagedFile, InvalidPackage, SurplusFile
from confide.packages.owner import OwnerPublicKey
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.manifest import SUFFIX, SealedFile, SealedManifest, read_signed
from confide.packages.sealed.reader import OnChunk, SealedReader, open_ciphertext
from confide.packages.signing import package_files

_BLOCK: Final = 1 << 20


@dataclass(frozen=True)
class SealedPackage:
    """A sealed model whose manifest its owner signed."""

    folder: Path
    manifest: SealedManifest
    owner: OwnerPublicKey

    @classmethod
    def open(cls, folder: Path | str, trusted: Container[OwnerPublicKey] | None = None) -> Self:
        """Read the manifest, check who signed it and that the files it names lie there whole, and no others.

        trusted: the owners whose models are wanted, None for whoever signed it. Raises UntrustedOwner, SurplusFile,
        TruncatedFile, and InvalidPackage for a manifest that was changed. What is in the files is checked later.
        """
        folder = Path(folder)
        manifest, owner = read_signed(folder, trusted)
        package = cls(folder, manifest, owner)
        known = {file.name + SUFFIX for file in manifest.all_files}
        if surplus := sorted(set(package_files(folder)) - known):
            raise SurplusFile(f"{folder / surplus[0]} is not part of the model that its owner sealed; remove it.")
        for file in manifest.all_files:
            open_ciphertext(package.path(file), file).close()
        return package

    def path(self, file: SealedFile) -> Path:
        """Where a file's ciphertext lies."""
        return self.folder / (file.name + SUFFIX)

    def verify_ciphertext(self, on_chunk: OnChunk | None = None) -> None:
        """Compare every file with its digest, which needs no key. Raises DamagedFile, TruncatedFile."""
        for file in self.manifest.all_files:
            digest = hashlib.sha256()
            with open_ciphertext(self.path(file), file) as source:
                while block := source.read(_BLOCK):
                    digest.update(block)
                    if on_chunk:
                        on_chunk(len(block))
            if digest.hexdigest() != file.digest:
                raise DamagedFile(
                    f"{self.path(file)} was changed after its owner signed it; get the package from its owner again."
                )

    def unlock(self, key: ModelKey) -> "UnlockedPackage":
        """The package with its key. WrongModelKey for another one."""
        key.require(self.manifest.key, self.folder)
        return UnlockedPackage(self, key)


@dataclass(frozen=True)
class UnlockedPackage:
    """A sealed model and the key to it. Decrypts into memory only, and only what its owner signed.

    Methods raise TruncatedFile, DamagedFile and SubstitutedContent.
    """

    package: SealedPackage
    _key: ModelKey = field(repr=False)

    @property
    def manifest(self) -> SealedManifest:
        """What the model is."""
        return self.package.manifest

    def __contains__(self, name: str) -> bool:
        return any(file.name == name for file in self.manifest.files)

    def file(self, name: str) -> SealedReader:
        """A file by its name. InvalidPackage where there is none."""
        for index, file in enumerate(self.manifest.all_files):
            if file.name == name:
                key = self._key.file_key(bytes.fromhex(self.manifest.salt), index, name)
                return SealedReader(self.package.path(file), file, key)
        raise InvalidPackage(f"{self.package.folder} was sealed without a {name}; seal the whole model.")

    def known_answers(self) -> KnownAnswers | None:
        """What the model answered when it was sealed; None where nobody asked it. InvalidPackage."""
        if self.manifest.known_answers is None:
            return None
        return KnownAnswers.decode(bytes(self.file(self.manifest.known_answers.name).read()))

    def verify(self, on_chunk: OnChunk | None = None) -> None:
        """Decrypt and check everything, and keep nothing."""
        for file in self.manifest.all_files:
            self.file(file.name).verify(on_chunk)
