"""A package's signature: the digest of every file in its manifest, and its owner's signatures.

Two statements are signed. That of the *package* covers the manifest, and through it every file of one folder. That
of the *release* covers what the shell and the server's package of one split have in common; the server presents it at
the handshake. Needs neither torch nor transformers.
"""

import hashlib
from collections.abc import Container, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final, TypeVar

import msgspec

from confide.errors import InvalidPackage, ModelMismatch, UntrustedOwner
from confide.packages.manifest import (
    HINT_FOLDER,
    MANIFEST_NAME,
    MAX_MANIFEST_BYTES,
    MAX_SUPERSEDED,
    Digest,
    Manifest,
    PackageKind,
    Record,
    open_file,
    parse_manifest,
    read_package_file,
    write_manifest,
)
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.rlwe.parameters import Profile

SIGNATURE_NAME: Final = "signature.json"
STATEMENTS_NAME: Final = "owner-statements.json"
MAX_SIGNATURE_BYTES: Final = 1 << 12
BESIDE: Final = frozenset({HINT_FOLDER, "state", "checks.msgpack", STATEMENTS_NAME, "README.md", "LICENSE"})
"""What may lie in a package's folder without being in `files`: the hint, whose digests the layer table has for itself,
each user's own, and what only people read."""

_PACKAGE_LABEL: Final = b"confide package 1\0"
_RELEASE_LABEL: Final = b"confide release 1\0"

Hex64 = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]
_Signature = TypeVar("_Signature", bound=Record)


class Signature(Record, frozen=True):
    """Who signed a package, and both signatures, in hexadecimal."""

    owner: Digest
    package: Hex64
    release: Hex64


@dataclass(frozen=True)
class Release:
    """What the two halves of one split have in common, and whose it is."""

    owner: OwnerPublicKey
    model_digest: bytes
    table_digest: bytes
    profile: Profile

    @property
    def statement(self) -> bytes:
        """What its owner signs."""
        return _RELEASE_LABEL + self.model_digest + self.table_digest + self.profile.encode()

    @property
    def digest(self) -> str:
        """SHA-256 of the statement, in hexadecimal: the same whoever signs it."""
        return hashlib.sha256(self.statement).hexdigest()

    def require_signed(self, owner: bytes, signature: bytes, same_owner: Container[OwnerPublicKey] = ()) -> None:
        """UntrustedOwner where another owner is presented, ModelMismatch where another release is signed.

        same_owner: other keys of this owner, which may have signed it as well.
        """
        presented = OwnerPublicKey(owner)
        if presented != self.owner and presented not in same_owner:
            raise UntrustedOwner(
                f"The server presents a release of the owner {presented.fingerprint}, and the shell is "
                f"signed by {self.owner.fingerprint}; use a server that serves this owner's package."
            )
        if not presented.signed(self.statement, signature):
            raise ModelMismatch(
                "The release that the server presents is not the one this shell belongs to; "
                "use the client folder that was written together with the server's."
            )


@dataclass(frozen=True)
class SignedManifest:
    """A layer table with its owner's signatures, which hold."""

    manifest: Manifest
    signature: Signature

    @property
    def release(self) -> Release:
        """What the other half of the split must agree on."""
        return release_of(self.manifest, OwnerPublicKey.parse(self.signature.owner))


def release_of(manifest: Manifest, owner: OwnerPublicKey) -> Release:
    """The release that a layer table is half of."""
    return Release(owner, bytes.fromhex(manifest.model_digest), manifest.table_digest(), manifest.profile)


def superseded_by(earlier: SignedManifest) -> tuple[str, ...]:
    """What a release supersedes that takes the place of an earlier one: that, and all those whose place that took."""
    return (earlier.release.digest, *earlier.manifest.provenance.supersedes)[:MAX_SUPERSEDED]


def sign_manifest(content: bytes, manifest: Manifest, owner: OwnerKey) -> Signature:
    """Both signatures; `content` is the layer table as it stands in its file."""
    package = owner.sign(_package_statement(content))
    release = owner.sign(release_of(manifest, owner.public).statement)
    return Signature(str(owner.public), package.hex(), release.hex())


def _package_statement(manifest: bytes) -> bytes:
    return _PACKAGE_LABEL + hashlib.sha256(manifest).digest()


def sign_package(folder: Path, manifest: Manifest, owner: OwnerKey) -> SignedManifest:
    """Finish a package: write its layer table with the digests of all the files that lie in it, and sign it."""
    files = {name: file_digest(folder / name) for name in sorted(package_files(folder))}
    return resign_package(folder, msgspec.structs.replace(manifest, files=files), owner)


def resign_package(folder: Path, manifest: Manifest, owner: OwnerKey) -> SignedManifest:
    """Put another layer table in a package's folder, and sign it; its files are taken to be those it names."""
    signature = sign_manifest(write_manifest(folder, manifest), manifest, owner)
    write_signature(folder, signature)
    return SignedManifest(manifest, signature)


def sign_again(folder: Path, kind: PackageKind, trusted: Container[OwnerPublicKey], owner: OwnerKey) -> None:
    """Sign a whole package of a trusted owner with another key. Raises what `open_package` and `require_files` do."""
    manifest = open_package(folder, kind, trusted).manifest
    require_files(folder, manifest)
    resign_package(folder, manifest, owner)


def write_signature(folder: Path, signature: Record) -> None:
    """Put a package's signatures where `read_signature` looks for them."""
    (folder / SIGNATURE_NAME).write_bytes(msgspec.json.format(msgspec.json.encode(signature), indent=1) + b"\n")


def open_package(
    folder: Path | str, kind: PackageKind, trusted: Container[OwnerPublicKey] | None = None
) -> SignedManifest:
    """Read a package's layer table and check who signed it; its files are checked where they are read.

    trusted: the owners whose packages are wanted, None for whoever signed it. Raises UntrustedOwner for the package
    of another one, InvalidPackage for a signature that does not hold and for whatever else is wrong.
    """
    folder = Path(folder)
    content = read_package_file(folder / MANIFEST_NAME, MAX_MANIFEST_BYTES)
    signature = read_signature(folder / SIGNATURE_NAME, Signature)
    owner = OwnerPublicKey.parse(signature.owner)
    require_trusted(folder, owner, trusted)
    require_signed(folder, owner, _package_statement(content), signature.package)
    manifest = parse_manifest(folder / MANIFEST_NAME, content)
    if manifest.kind is not kind:
        raise InvalidPackage(f"{folder} is {_OTHER[kind]} folder of the same split.")
    signed = SignedManifest(manifest, signature)
    if not owner.signed(signed.release.statement, bytes.fromhex(signature.release)):
        raise InvalidPackage(f"{folder} holds the signature of another release; get the folder from its owner again.")
    return signed


_OTHER: Final = {
    PackageKind.SHELL: "a server's package; give the client",
    PackageKind.SERVER: "a client's shell; give the server",
}


def require_trusted(folder: Path, owner: OwnerPublicKey, trusted: Container[OwnerPublicKey] | None) -> None:
    """UntrustedOwner where a package's owner is none of those trusted; None trusts everyone."""
    if trusted is not None and owner not in trusted:
        moved = (
            f"If the owner has changed keys, run `confide owner accept {folder / STATEMENTS_NAME}`, which believes "
            "only what a key that you trust has signed. Else compare"
            if (folder / STATEMENTS_NAME).exists()
            else "Compare"
        )
        raise UntrustedOwner(
            f"{folder} is signed by an owner you do not trust, {owner.fingerprint}. {moved} that with the fingerprint "
            f"which the owner published, and only if they are equal run `confide owner trust {owner}`."
        )


def require_signed(folder: Path, owner: OwnerPublicKey, statement: bytes, signature: str) -> None:
    """InvalidPackage unless the owner signed the statement about this folder. signature: in hexadecimal."""
    if not owner.signed(statement, bytes.fromhex(signature)):
        raise InvalidPackage(f"{folder} was changed after its owner signed it; get the folder from its owner again.")


def read_signature(path: Path, kind: type[_Signature]) -> _Signature:
    """The signatures in a package's file. InvalidPackage where it holds no such thing."""
    content = read_package_file(path, MAX_SIGNATURE_BYTES)
    try:
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidPackage(f"{path} is not a signature; get the folder from its owner again.") from error


def require_files(folder: Path, manifest: Manifest) -> None:
    """InvalidPackage unless the folder's files are exactly those of its layer table.

    Surplus ones are refused, because libraries look for files by name and would read what nobody signed. Those in
    BESIDE, and names that begin with a dot, are read by nobody.
    """
    if surplus := sorted(set(package_files(folder)) - set(manifest.files)):
        raise InvalidPackage(f"{folder / surplus[0]} is not part of the package that its owner signed; remove it.")
    for name, digest in manifest.files.items():
        if file_digest(folder / name) != digest:
            raise InvalidPackage(
                f"{folder / name} was changed after it was signed; get the folder from its owner again."
            )


def file_digest(path: Path) -> str:
    """SHA-256 of a file of any size. InvalidPackage where it cannot be read."""
    try:
        with open_file(path) as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InvalidPackage(f"{path} cannot be read; get the folder from its owner again.") from error


def package_files(folder: Path) -> Iterator[str]:
    """Names, relative to the folder, of what belongs to a package or poses as if it did."""
    for entry in folder.iterdir():
        if entry.name in BESIDE | {MANIFEST_NAME, SIGNATURE_NAME} or entry.name.startswith("."):
            continue
        # A link is never followed: it could lead to the whole disk.
        for path in entry.rglob("*") if entry.is_dir() and not entry.is_symlink() else [entry]:
            if path.is_symlink() or not path.is_dir():
                yield path.relative_to(folder).as_posix()
