"""The keys that a workload is known by, and the statement that binds them into its evidence (ACI, 3.1 and 3.2)."""

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Final

import msgspec

from confide.errors import MalformedReceipt
from confide.receipts.documents import Digest, Document, Instant, Word, canonical, digest_of, read_document, read_fields

ED25519: Final = "ed25519"
PURPOSE: Final = "aci-keyset"
"""Under this name a statement of ours holds the keyset's canonical form, in hexadecimal."""
MAX_KEYSET_BYTES: Final = 1 << 16
REPORT_DATA_BYTES: Final = 64
_NONCE: Final = re.compile(r"[0-9a-f]{64}")
_MOST_KEYS: Final = 64


class SigningKey(msgspec.Struct, frozen=True):
    """A key that signs receipts. Of algorithms that are not known here nothing is believed (ACI, appendix B)."""

    key_id: Word
    algo: Word
    public_key: Annotated[str, msgspec.Meta(max_length=1 << 13)]


class TlsKey(msgspec.Struct, frozen=True):
    """A key that TLS ends at inside the workload. spki_sha256: of a certificate's public key. domain: its only host."""

    spki_sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    domain: Annotated[str, msgspec.Meta(max_length=256)] | None = None


class KeysetFields(msgspec.Struct, frozen=True):
    """What is looked at of a keyset. The rest is hashed with it all the same."""

    not_after: Instant
    receipt_signing_keys: Annotated[tuple[SigningKey, ...], msgspec.Meta(max_length=_MOST_KEYS)]
    subject: Annotated[str, msgspec.Meta(max_length=1024)] | None = None
    tls_public_keys: Annotated[tuple[TlsKey, ...], msgspec.Meta(max_length=_MOST_KEYS)] = ()


@dataclass(frozen=True)
class Keyset:
    """A keyset as its document says it, and nothing about whether that is established."""

    document: Document
    fields: KeysetFields

    @classmethod
    def of(cls, document: Document) -> "Keyset":
        """From a document that was read. MalformedReceipt."""
        return cls(document, read_fields(document, "keyset", KeysetFields))

    @classmethod
    def read(cls, data: bytes) -> "Keyset":
        """From JSON. MalformedReceipt for anything else."""
        return cls.of(read_document(data, "keyset", MAX_KEYSET_BYTES))

    @classmethod
    def parse(cls, digits: str) -> "Keyset":
        """From hexadecimal, as a statement holds it."""
        try:
            data = bytes.fromhex(digits)
        except ValueError:
            raise MalformedReceipt("The workload's statement has no keyset; ask for its attestation again.") from None
        return cls.read(data)

    @cached_property
    def canonical(self) -> bytes:
        """As RFC 8785 writes it."""
        return canonical(self.document, "keyset")

    @cached_property
    def digest(self) -> str:
        """`workload_keyset_digest`."""
        return digest_of(self.canonical)

    def signing_key(self, key_id: str) -> SigningKey | None:
        """The one key of this name; None where there is none, or more than one."""
        found = [key for key in self.fields.receipt_signing_keys if key.key_id == key_id]
        return found[0] if len(found) == 1 else None


def make_keyset(key_id: str, public_key: bytes, not_after: int, tls_spki: str = "") -> Keyset:
    """A workload's own. public_key: Ed25519's 32 bytes. tls_spki: SHA-256 of a TLS key that ends in it, if any does."""
    return Keyset.of(
        {
            "subject": None,
            "not_after": not_after,
            "receipt_signing_keys": [{"key_id": key_id, "algo": ED25519, "public_key": public_key.hex()}],
            "e2ee_public_keys": [],
            "tls_public_keys": [{"spki_sha256": tls_spki}] if tls_spki else [],
        }
    )


def is_nonce(text: str) -> bool:
    """Whether ACI takes this for a nonce: 32 bytes in lower-case hexadecimal."""
    return _NONCE.fullmatch(text) is not None


def report_data(keyset_digest: Digest, nonce: str | None) -> bytes:
    """The 64 bytes that the hardware signs for ACI: SHA-256 of its statement, and 32 zeros (ACI, 3.2).

    Not to be taken for a statement of ours, whose SHA-512 fills all 64. nonce: None proves no freshness.
    """
    statement = canonical({"keyset_digest": keyset_digest, "nonce": nonce, "purpose": "aci.report_data.v1"})
    return hashlib.sha256(statement).digest().ljust(REPORT_DATA_BYTES, b"\0")
