"""The check vectors of a shell: what tells right answers of its layer server from wrong ones.

`checks.msgpack` holds a secret seed and, for each layer group, c = u^T W mod p for the u that the seed gives. Whoever
knows the seed can forge answers: it is for one licensee, and never for whoever runs the server. Reading one needs
neither torch nor transformers.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, Literal, Self

import msgspec
import numpy as np
from numpy.typing import NDArray

from confide.disk.files import replace_file
from confide.errors import InvalidPackage
from confide.packages.manifest import MAX_GROUPS, Group, Manifest
from confide.rlwe.freivalds import MAX_LENGTH, PRIME, AnswerCheck, Field, check_vector, secret_vector
from confide.rlwe.parameters import MAX_COLUMNS
from confide.rlwe.streams import KEY_BYTES, fresh_key

if TYPE_CHECKING:
    from confide.packages.server_package import ServerPackage

FORMAT: Final = 1
CHECKS_NAME: Final = "checks.msgpack"
_VALUE_BYTES = 8
_OTHER_BYTES = 1 << 10

_Digest = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
_Seed = Annotated[bytes, msgspec.Meta(min_length=KEY_BYTES, max_length=KEY_BYTES)]
_Vector = Annotated[bytes, msgspec.Meta(max_length=_VALUE_BYTES * MAX_COLUMNS)]


class Checks(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Check vectors of one model. seed: of u. vectors: c of each layer group, little-endian 64-bit words."""

    format: Literal[1]
    model_digest: _Digest
    table_digest: _Digest
    seed: _Seed
    vectors: Annotated[tuple[_Vector, ...], msgspec.Meta(min_length=1, max_length=MAX_GROUPS)]

    def __repr__(self) -> str:
        return f"Checks({len(self.vectors)} groups, <hidden>)"

    def __rich_repr__(self) -> list[tuple[str, Any]]:
        # The inherited one lists every field.
        return [("groups", len(self.vectors))]

    @classmethod
    def make(cls, manifest: Manifest, vectors: Iterable[Field], seed: bytes) -> Self:
        """Checks for the model of a layer table, from the groups' vectors under one seed."""
        digest = bytes.fromhex(manifest.model_digest)
        words = tuple(vector.astype("<u8").tobytes() for vector in vectors)
        return cls(FORMAT, digest, manifest.table_digest(), seed, words)

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


def checks_for(package: "ServerPackage") -> Checks:
    """A set with a secret of its own for a server's package, once its matrices are verified.

    The owner makes one for each licensee. With open weights every client can make its own.
    """
    seed = fresh_key()
    vectors = [group_vector(seed, index, weights.numpy()) for index, weights in enumerate(package.load())]
    return Checks.make(package.manifest, vectors, seed)


def write_checks(path: Path, checks: Checks) -> None:
    """Write a set, durably, for its owner's eyes only."""
    replace_file(path, msgspec.msgpack.encode(checks), mode=0o600)


def read_checks(path: Path, manifest: Manifest) -> Checks:
    """The set for the model of a layer table. InvalidPackage for a missing, damaged or foreign one."""
    limit = _OTHER_BYTES + sum(_VALUE_BYTES * group.columns + 5 for group in manifest.groups)
    try:
        with path.open("rb") as file:
            content = file.read(limit + 1)
    except OSError as error:
        raise InvalidPackage(
            f"There are no check vectors at {path}, and without them a server's answers would have to be believed. "
            "Get them from the model's owner, or make them with `confide checks SERVER_FOLDER --out FILE`."
        ) from error
    try:
        checks = msgspec.msgpack.decode(content, type=Checks) if len(content) <= limit else None
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        checks = None  # the decoder's words could quote the file
    if checks is None or not _fits(checks, manifest):
        raise InvalidPackage(
            f"{path} does not hold check vectors for this shell's model; get those that were made for it, "
            "or make them with `confide checks SERVER_FOLDER --out FILE`."
        )
    return checks


def _fits(checks: Checks, manifest: Manifest) -> bool:
    model = checks.model_digest == bytes.fromhex(manifest.model_digest)
    lengths = [_VALUE_BYTES * group.columns for group in manifest.groups]
    return (
        model
        and checks.table_digest == manifest.table_digest()
        and [len(vector) for vector in checks.vectors] == lengths
        and all(np.frombuffer(vector, "<u8").max() < PRIME for vector in checks.vectors)
        and all(group.rows + group.columns <= MAX_LENGTH for group in manifest.groups)
    )
