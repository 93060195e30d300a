"""What owners say of their keys: this one takes that one's place, and this one is withdrawn.

A succession is signed by both keys, a withdrawal by the key itself or by one that took its place. Statements are public
and come from anywhere; which of them count here is for `trusted_owners` to say. Needs neither torch nor transformers.
"""

from pathlib import Path
from typing import Annotated, Final, Literal

import msgspec

from confide.disk.files import read_bounded, replace_file
from confide.errors import OwnerKeyError
from confide.packages.manifest import Digest, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.signing import STATEMENTS_NAME, Hex64

MAX_STATEMENTS: Final = 64
_MAX_BYTES: Final = 1 << 16
_SUCCESSION_LABEL: Final = b"confide owner succession 1\0"
_WITHDRAWAL_LABEL: Final = b"confide owner withdrawal 1\0"


class Succession(Record, frozen=True, tag_field="kind", tag="succession"):
    """`successor` signs from now on what `owner` signed. Both signed this, in hexadecimal."""

    owner: Digest
    successor: Digest
    owner_signature: Hex64
    successor_signature: Hex64

    @classmethod
    def make(cls, old: OwnerKey, new: OwnerKey) -> "Succession":
        """By the holder of both keys."""
        statement = _SUCCESSION_LABEL + old.public.raw + new.public.raw
        return cls(str(old.public), str(new.public), old.sign(statement).hex(), new.sign(statement).hex())

    def require_signed(self) -> None:
        """OwnerKeyError unless both signatures hold."""
        old, new = OwnerPublicKey.parse(self.owner), OwnerPublicKey.parse(self.successor)
        statement = _SUCCESSION_LABEL + old.raw + new.raw
        holds = old.signed(statement, bytes.fromhex(self.owner_signature))
        if not holds or not new.signed(statement, bytes.fromhex(self.successor_signature)):
            raise _forged(old)


class Withdrawal(Record, frozen=True, tag_field="kind", tag="withdrawal"):
    """Nothing that `owner` signed counts any more. `signer`, the key itself or a successor, signed this."""

    owner: Digest
    signer: Digest
    signature: Hex64

    @classmethod
    def make(cls, owner: OwnerPublicKey, signer: OwnerKey) -> "Withdrawal":
        """By the holder of the key, or of a later one."""
        statement = _WITHDRAWAL_LABEL + owner.raw + signer.public.raw
        return cls(str(owner), str(signer.public), signer.sign(statement).hex())

    def require_signed(self) -> None:
        """OwnerKeyError unless the signature holds."""
        owner, signer = OwnerPublicKey.parse(self.owner), OwnerPublicKey.parse(self.signer)
        if not signer.signed(_WITHDRAWAL_LABEL + owner.raw + signer.raw, bytes.fromhex(self.signature)):
            raise _forged(owner)


Statement = Succession | Withdrawal


class _Document(Record, frozen=True):
    format: Literal[1]
    statements: Annotated[tuple[Statement, ...], msgspec.Meta(max_length=MAX_STATEMENTS)]


def parse_statements(content: bytes) -> tuple[Statement, ...]:
    """The statements of a file, in its order, each with signatures that hold. OwnerKeyError for anything else."""
    if len(content) > _MAX_BYTES:
        raise OwnerKeyError(f"A file of owners' statements has at most {_MAX_BYTES >> 10} KiB; get it from the owner.")
    try:
        statements = msgspec.json.decode(content, type=_Document).statements
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise OwnerKeyError(
            f"This is no file of owners' statements; give the {STATEMENTS_NAME} that the owner published."
        ) from error
    for statement in statements:
        statement.require_signed()
    return statements


def read_statements(path: Path) -> tuple[Statement, ...]:
    """The same from a file."""
    try:
        content = read_bounded(path, _MAX_BYTES)
    except OSError as error:
        raise OwnerKeyError(
            f"{path} cannot be read ({error.strerror}); give the {STATEMENTS_NAME} that the owner published."
        ) from error
    return parse_statements(content)


def publish_statement(path: Path, statement: Statement) -> None:
    """Add a statement to a file, which is made where there is none."""
    statements = (*read_statements(path), statement) if path.exists() else (statement,)
    if len(statements) > MAX_STATEMENTS:
        raise OwnerKeyError(f"{path} holds {MAX_STATEMENTS} statements, which is all it may; begin another file.")
    content = msgspec.json.format(msgspec.json.encode(_Document(1, statements)), indent=1) + b"\n"
    try:
        replace_file(path, content)
    except OSError as error:
        raise OwnerKeyError(f"{path} cannot be written ({error.strerror}); choose another place.") from error


def _forged(owner: OwnerPublicKey) -> OwnerKeyError:
    return OwnerKeyError(
        f"A statement about the key {owner.fingerprint} is not signed by those it names; get the file from the owner "
        "again."
    )
