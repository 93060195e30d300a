"""A receipt: the hashes of a question and of its answer, and what made it, signed by a key of the keyset (ACI, 7)."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Any, Final

import msgspec
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.receipts.documents import (
    API_VERSION,
    Digest,
    Document,
    Instant,
    Word,
    canonical,
    digest_of,
    read_document,
    read_fields,
)
from confide.receipts.keyset import ED25519, SigningKey

HEADER: Final = "confide-receipt"
"""Of an answer, with the id of its receipt."""
WITH_ANSWER: Final = "confide-receipt-with-answer"
"""Of a request, as `1`: the receipt may come with the answer, where it is whole in one part. Of that answer: the
receipt's JSON in base64; it is the one that is had by its id, too."""
MAX_WITH_ANSWER: Final = 32 << 10
"""Bytes of such a header: one that is longer is fetched."""
METHODS: Final = ("POST", "DELETE")
"""Of requests whose answers have receipts: those that something comes of."""
MAX_RECEIPT_BYTES: Final = 1 << 16
RECEIVED: Final = "request.received"
FORWARDED: Final = "request.forwarded"
RETURNED: Final = "response.returned"
UPSTREAM: Final = "upstream.verified"
_SIGNATURE: Final = "signature"
_KEY_ID_DIGITS: Final = 16

Event = Mapping[str, Any]


class _EventType(msgspec.Struct, frozen=True):
    type: Word


class _Hashed(msgspec.Struct, frozen=True):
    body_hash: Digest


class ReceiptFields(msgspec.Struct, frozen=True):
    """ACI, 7.3. The rest of a receipt is signed with it all the same."""

    api_version: Word
    receipt_id: Word
    workload_keyset_digest: Digest
    endpoint: Annotated[str, msgspec.Meta(max_length=1024)]
    method: Word
    served_at: Instant
    event_log: Annotated[list[dict[str, Any]], msgspec.Meta(max_length=256)]
    key_id: Word
    signature: Annotated[str, msgspec.Meta(pattern=r"\A([0-9a-f]{2}){1,8192}\Z")]
    chat_id: Word | None = None
    model: Word | None = None


@dataclass(frozen=True)
class Receipt:
    """A receipt as its document says it, and nothing about whether that is true: see `confide.receipts.verify`."""

    document: Document
    fields: ReceiptFields

    @classmethod
    def of(cls, document: Document) -> "Receipt":
        """From a document that was read. MalformedReceipt where it is none, or an event's form is wrong."""
        fields = read_fields(document, "receipt", ReceiptFields)
        for event in fields.event_log:
            kind = read_fields(event, "receipt", _EventType).type
            if kind in (RECEIVED, FORWARDED, RETURNED):
                read_fields(event, "receipt", _Hashed)
        return cls(document, fields)

    @classmethod
    def read(cls, data: bytes) -> "Receipt":
        """From JSON in any layout. MalformedReceipt for anything else."""
        return cls.of(read_document(data, "receipt", MAX_RECEIPT_BYTES))

    def write(self) -> bytes:
        """As a file for people to read, too."""
        return msgspec.json.format(canonical(self.document, "receipt")) + b"\n"

    def events(self, kind: str) -> Iterator[Event]:
        """Those of a type, in their order."""
        return (event for event in self.fields.event_log if event["type"] == kind)

    @cached_property
    def signed(self) -> bytes:
        """What the signature is over."""
        return canonical({name: value for name, value in self.document.items() if name != _SIGNATURE}, "receipt")

    @cached_property
    def digest(self) -> str:
        """Of all of it, signature included: what the next receipt of the chain names."""
        return digest_of(canonical(self.document, "receipt"))

    def signed_by(self, key: SigningKey) -> bool:
        """Whether this key made the signature. Of an algorithm that is not known, none did."""
        if key.algo != ED25519:
            return False
        try:
            public = Ed25519PublicKey.from_public_bytes(bytes.fromhex(key.public_key))
            public.verify(bytes.fromhex(self.fields.signature), self.signed)
        except (InvalidSignature, ValueError):
            return False
        return True


class ReceiptKey:
    """The private half of a key that signs receipts, and nothing else. It is never written anywhere."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()
        self.id = f"receipts-{self.public.hex()[:_KEY_ID_DIGITS]}"

    def __repr__(self) -> str:
        return f"ReceiptKey({self.id!r})"

    def sign(
        self,
        *,
        receipt_id: str,
        chat_id: str | None,
        model: str | None,
        keyset_digest: str,
        endpoint: str,
        method: str,
        served_at: int,
        events: Sequence[Event],
    ) -> Receipt:
        """The receipt for one answer. Digests as in the document."""
        unsigned = {
            "api_version": API_VERSION,
            "receipt_id": receipt_id,
            "chat_id": chat_id,
            "model": model,
            "workload_keyset_digest": keyset_digest,
            "endpoint": endpoint,
            "method": method,
            "served_at": served_at,
            "event_log": list(events),
            "key_id": self.id,
        }
        return Receipt.of(unsigned | {_SIGNATURE: self._key.sign(canonical(unsigned, "receipt")).hex()})
