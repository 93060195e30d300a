"""An aggregator's record of the upstream that it verified (ACI, 8): its name is the hash of what it says."""

import base64
import binascii
from dataclasses import dataclass
from typing import Annotated, Any, Final, Literal

import msgspec

from confide.errors import MalformedReceipt
from confide.receipts.documents import Digest, Document, Instant, canonical, digest_of, read_document, read_fields

MAX_SESSION_BYTES: Final = 4 << 20
_BASE64: Final = ";base64"


class _Evidence(msgspec.Struct, frozen=True):
    digest: Digest
    data: Annotated[str, msgspec.Meta(pattern=r"\Adata:")]


class SessionFields(msgspec.Struct, frozen=True):
    """ACI, 8.2: what is looked at."""

    api_version: Literal["aci/1"]
    established_at: Instant
    expires_at: Instant
    evidence: _Evidence
    claims: dict[str, Any] = {}


@dataclass(frozen=True)
class AttestedSession:
    """A session as its document says it, whose evidence is what its digest says."""

    document: Document
    fields: SessionFields

    @classmethod
    def read(cls, data: bytes) -> "AttestedSession":
        """From JSON. MalformedReceipt for anything else, and for evidence that is not what its digest is of."""
        document = read_document(data, "session", MAX_SESSION_BYTES)
        fields = read_fields(document, "session", SessionFields)
        head, _, content = fields.evidence.data.partition(",")
        try:
            evidence = base64.b64decode(content, validate=True) if head.endswith(_BASE64) else b""
        except (binascii.Error, ValueError):
            evidence = b""
        if digest_of(evidence) != fields.evidence.digest:
            raise MalformedReceipt("The session's evidence is not what its digest is of; fetch the session again.")
        return cls(document, fields)

    @property
    def id(self) -> str:
        """`session_id`."""
        return digest_of(canonical(self.document, "session")).removeprefix("sha256:")

    @property
    def tee_attested(self) -> str:
        """The claim's status and source, in words."""
        claim = self.fields.claims.get("tee_attested")
        return f"{claim.get('status')}, {claim.get('source')}" if isinstance(claim, dict) else "none"
