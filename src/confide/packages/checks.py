"""The check vectors of a shell: what tells right answers of its layer server from wrong ones.

`checks.msgpack` holds a secret seed and, for each layer group, c = u^T W mod p for the u that the seed gives. Whoever
knows the seed can forge answers: it is for one licensee, and never for whoever runs the server. The owner signs each
set, for one release and licence: others could make sets that pass forged answers. Reading one needs neither torch nor
transformers.
"""

import hashlib
import re
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, TypeVar

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.disk.files import FileTooLarge, read_bounded, replace_file
from confide.errors import ConfideError, InvalidPackage, UntrustedOwner
from confide.packages.manifest import MAX_GROUPS, Group, Manifest
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.signing import release_of
from confide.rlwe.freivalds import MAX_LENGTH, PRIME, AnswerCheck, Field, check_vector, secret_vector
from confide.rlwe.parameters import MAX_COLUMNS
from confide.rlwe.streams import KEY_BYTES, fresh_key

if TYPE_CHECKING:
    from confide.packages.server_package import ServerPackage

FORMAT: Final = 2
CHECKS_NAME: Final = "checks.msgpack"
_VALUE_BYTES = 8
_OTHER_BYTES = 1 << 10
_LABEL: Final = b"confide check vectors 2\0"

_Seed = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
LicenceName = Annotated[str, msgspec.Meta(pattern=r"\A[\x20-\x7e]{0,64}\Z")]
Serial = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Vector = Annotated[bytes, msgspec.Meta(max_length=_VALUE_BYTES * MAX_COLUMNS)]

_T = TypeVar("_T")


class Checks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Check vectors of one model, for one licensee.

    release: SHA-256 of its owner's public key and its statement. licence: its name or id, as its owner writes it;
    empty for the set that a split makes. serial: which one of the licence's sets. seed: of u. vectors: c of each layer
    group, little-endian 64-bit words.
    """

    format: Literal[2]
    release: Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
    licence: LicenceName
    serial: Serial
    seed: _Seed
    vectors: Annotated[tuple[_Vector, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUPS)]

    def __repr__(self) -> str:
        return f"Checks({len(self.vectors)} groups, <hidden>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # The inherited one lists every field.
        return [("groups", len(self.vectors))]

    def answer_checks(self, groups: Iterable[Group]) -> list[AnswerCheck]:
        """The check of each layer group."""
        return [
            AnswerCheck(secret_vector(self.seed, index, group.rows), np.frombuffer(vector, "<u8").astype(np.uint64))
            for index, (group, vector) in enumerate(zip(groups, self.vectors, strict=True))
        ]


def group_vector(seed: bytes, index: int, weights: NDArray[np.int8]) -> Field:
    """c of the group of this index: int8 (rows, columns) -> uint64 (columns,). InvalidPackage where it is too large."""
    rows, columns = weights.shape
    if rows + columns > MAX_LENGTH:
        raise InvalidPackage(
            f"A layer group of {rows} x {columns} weights is too large to be checked: rows and columns together may be "
            f"{MAX_LENGTH}; protect fewer layers."
        )
    return check_vector(weights, secret_vector(seed, index, rows))


class _SignedChecks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """checks: the encoded Checks. signature: the owner's, over them."""

    checks: bytes
    signature: Annotated[bytes, msgspec.Meta(min_length=64, max_length=64)]


def make_checks(
    manifest: Manifest,
    matrices: Iterable[NDArray[np.int8]],
    owner: OwnerPublicKey,
    *,
    licence: str = "",
    serial: int = 0,
) -> Checks:
    """A set with a secret of its own. matrices: int8 (rows, columns) of each group. owner: of the release.

    The owner makes one for each licensee. Raises ConfideError for a licence's name that no set can hold.
    """
    if not re.fullmatch(r"[\x20-\x7e]{0,64}", licence) or not 0 <= serial < 1 << 32:
        raise ConfideError("A licence is named with at most 64 printable ASCII characters; use its id instead.")
    seed = fresh_key()
    vectors = tuple(
        group_vector(seed, index, weights).astype("<u8").tobytes() for index, weights in enumerate(matrices)
    )
    return Checks(FORMAT, _release_digest(manifest, owner), licence, serial, seed, vectors)


def checks_for(package: "ServerPackage", licence: str = "", serial: int = 0) -> Checks:
    """A set for a server's package, once its matrices are verified; see `make_checks`."""
    matrices = (weights.numpy() for weights in package.matrices())
    return make_checks(package.manifest, matrices, package.signed.release.owner, licence=licence, serial=serial)


def write_checks(path: Path, checks: Checks, owner: OwnerKey) -> None:
    """Write a set, durably and signed, for its licensee's eyes only."""
    content = msgspec.msgpack.encode(checks)
    signed = _SignedChecks(content, owner.sign(_statement(content)))
    replace_file(path, msgspec.msgpack.encode(signed), mode=0o600)


def read_checks(
    path: Path, manifest: Manifest, owner: OwnerPublicKey, same_owner: Collection[OwnerPublicKey] = ()
) -> Checks:
    """The set for the model of a layer table that this owner signed, with this key or another of `same_owner`.

    Raises InvalidPackage for a missing, damaged or foreign set, UntrustedOwner for one that another one signed, or
    nobody.
    """
    limit = 2 * _OTHER_BYTES + sum(_VALUE_BYTES * group.columns + 5 for group in manifest.groups)
    try:
        signed = _decoded(read_bounded(path, limit), _SignedChecks)
    except FileTooLarge:
        signed = None
    except OSError as error:
        raise InvalidPackage(
            f"There are no check vectors at {path}, and without them a server's answers would have to be believed. "
            "Get them from the model's owner, who makes them with `confide checks SERVER_FOLDER --out FILE`."
        ) from error
    by = next(
        (key for key in (owner, *same_owner) if signed and key.signed(_statement(signed.checks), signed.signature)),
        None,
    )
    if signed is not None and by is None:
        raise UntrustedOwner(
            f"The check vectors in {path} are not signed by the shell's owner, {owner.fingerprint}; whoever made them "
            "could forge answers. Get them from the owner, who makes them with "
            "`confide checks SERVER_FOLDER --out FILE`."
        )
    checks = _decoded(signed.checks, Checks) if signed is not None else None
    if checks is None or by is None or not _fits(checks, manifest, by):
        raise InvalidPackage(
            f"{path} does not hold check vectors for this shell's model; get those that were made for it, "
            "which its owner makes with `confide checks SERVER_FOLDER --out FILE`."
        )
    return checks


def _decoded(content: bytes, kind: type[_T]) -> _T | None:
    try:
        return msgspec.msgpack.decode(content, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None  # the decoder's words could quote the file


def _statement(checks: bytes) -> bytes:
    return _LABEL + hashlib.sha256(checks).digest()


def _release_digest(manifest: Manifest, owner: OwnerPublicKey) -> bytes:
    return hashlib.sha256(owner.raw + release_of(manifest, owner).statement).digest()


def _fits(checks: Checks, manifest: Manifest, owner: OwnerPublicKey) -> bool:
    lengths = [_VALUE_BYTES * group.columns for group in manifest.groups]
    return (
        checks.release == _release_digest(manifest, owner)
        and [len(vector) for vector in checks.vectors] == lengths
        and all(np.frombuffer(vector, "<u8").max() < PRIME for vector in checks.vectors)
        and all(group.rows + group.columns <= MAX_LENGTH for group in manifest.groups)
    )
