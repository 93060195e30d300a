"""Which files a package of any kind consists of, by what its owner signed. Needs neither torch nor transformers."""

from collections.abc import Container, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from confide.attest.certificates import MAX_CERTIFICATE_BYTES
from confide.errors import InvalidPackage
from confide.packages.guard import GuardPackage
from confide.packages.hint import hint_bytes
from confide.packages.manifest import (
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    Manifest,
    PackageKind,
    group_name,
    hint_name,
    read_kind,
    read_package_file,
)
from confide.packages.owner import OwnerPublicKey
from confide.packages.sealed import adapter, corpus, data, manifest
from confide.packages.sealed.manifest import SUFFIX, SealedFile, read_signed_manifest
from confide.packages.sealed.stream import sealed_size
from confide.packages.signing import MAX_SIGNATURE_BYTES, SIGNATURE_NAME, open_package

DOCUMENTS: Final = {MANIFEST_NAME: MAX_MANIFEST_BYTES, SIGNATURE_NAME: MAX_SIGNATURE_BYTES}
"""What says all else, and how large each may be."""
ADAPTER_DOCUMENTS: Final = {MANIFEST_NAME: MAX_MANIFEST_BYTES, adapter.CERTIFICATE_NAME: MAX_CERTIFICATE_BYTES}
"""The same of an adapter, whose owner is its certificate's."""


@dataclass(frozen=True)
class Listed:
    """A file of a package. size: in bytes, None where nothing signed says. digest: SHA-256, in hexadecimal."""

    name: str
    size: int | None
    digest: str


@dataclass(frozen=True)
class Listing:
    """What a package is. owner: who signed it; None for an adapter. files: besides the documents."""

    kind: PackageKind
    owner: OwnerPublicKey | None
    files: tuple[Listed, ...]


def documents_of(kind: PackageKind) -> dict[str, int]:
    """The documents of a kind, and how large each may be."""
    return ADAPTER_DOCUMENTS if kind is PackageKind.ADAPTER else DOCUMENTS


def list_package(
    folder: Path, trusted: Container[OwnerPublicKey] | None = None, groups: Iterable[int] | None = None
) -> Listing:
    """The listing of a folder that has the documents, and maybe not yet the files.

    trusted: as for `open_package`. groups: of a server's package, the layer groups whose files are wanted.
    InvalidPackage, UntrustedOwner.
    """
    kind = read_kind(folder)
    if groups is not None and kind is not PackageKind.SERVER:
        raise InvalidPackage(f"{folder} is no server's package, and has no layer groups to choose; leave them out.")
    if kind in (PackageKind.SHELL, PackageKind.SERVER):
        signed = open_package(folder, kind, trusted)
        return Listing(kind, signed.release.owner, tuple(_of_halves(folder, signed.manifest, groups)))
    if kind is PackageKind.GUARD:
        return Listing(kind, GuardPackage.open(folder, trusted).owner, ())
    if kind is PackageKind.ADAPTER:
        made = adapter.parse_adapter_manifest(read_package_file(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES))
        return Listing(kind, None, _sealed(made.all_files))
    if kind is PackageKind.SEALED:
        sealed, owner = manifest.read_signed(folder, trusted)
        return Listing(kind, owner, _sealed(sealed.all_files))
    if kind is PackageKind.CORPUS:
        content, owner = read_signed_manifest(folder, corpus.SIGNED_LABEL, trusted)
        return Listing(kind, owner, _sealed(corpus.parse_corpus_manifest(content).all_files))
    content, owner = read_signed_manifest(folder, data.SIGNED_LABEL, trusted)
    return Listing(kind, owner, _sealed([data.parse_data_manifest(content).file]))


def _of_halves(folder: Path, table: Manifest, groups: Iterable[int] | None) -> Iterable[Listed]:
    wanted = set(table.files)
    if groups is not None:
        numbers = set(groups)
        if unknown := sorted(numbers - set(range(len(table.groups)))):
            raise InvalidPackage(f"{folder} has no layer group {unknown[0]}; it has 0 to {len(table.groups) - 1}.")
        wanted -= {group_name(index) for index in range(len(table.groups)) if index not in numbers}
    for name in sorted(wanted):
        yield Listed(name, None, table.files[name])
    if table.kind is PackageKind.SHELL:
        for index, group in enumerate(table.groups) if table.hint else ():
            yield Listed(hint_name(index), hint_bytes(group), table.hint[hint_name(index)])


def _sealed(files: Iterable[SealedFile]) -> tuple[Listed, ...]:
    return tuple(Listed(file.name + SUFFIX, sealed_size(file.size), file.digest) for file in files)
