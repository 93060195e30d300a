"""Evidence, its collateral and what the workload says of itself, as they travel and as they lie in files."""

from typing import Annotated, Final

import msgspec

from confide.attest.collateral import Collateral
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.statement import Statement
from confide.errors import MalformedEvidence

MAX_MEMBERS: Final = 32
MAX_ATTESTED_BYTES: Final = 4 << 20

Document = Annotated[bytes, msgspec.Meta(max_length=MAX_EVIDENCE_BYTES)]
Documents = Annotated[dict[Annotated[str, msgspec.Meta(max_length=64)], Document], msgspec.Meta(max_length=32)]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What documents about evidence are made of: nothing in them is unknown, nothing changes."""


class WireEvidence(Record, frozen=True):
    """Evidence as it travels."""

    family: Family
    raw: Document
    parts: Documents = {}
    members: Annotated[tuple["WireEvidence", ...], msgspec.Meta(max_length=MAX_MEMBERS)] = ()

    @classmethod
    def of(cls, evidence: Evidence) -> "WireEvidence":
        """The form that travels."""
        return cls(evidence.family, evidence.raw, dict(evidence.parts), tuple(map(cls.of, evidence.members)))

    def thaw(self) -> Evidence:
        """What a verifier takes."""
        return Evidence(self.family, self.raw, self.parts, tuple(member.thaw() for member in self.members))


class WireCollateral(Record, frozen=True):
    """Collateral as it travels."""

    documents: Documents = {}
    members: Annotated[tuple["WireCollateral", ...], msgspec.Meta(max_length=MAX_MEMBERS)] = ()

    @classmethod
    def of(cls, collateral: Collateral) -> "WireCollateral":
        """The form that travels."""
        return cls(dict(collateral.documents), tuple(map(cls.of, collateral.members)))

    def thaw(self) -> Collateral:
        """What a verifier takes."""
        return Collateral(self.documents, tuple(member.thaw() for member in self.members))


class Attested(Record, frozen=True):
    """What a workload shows: its evidence, the statement whose digest it signs, and collateral as far as it has any.

    Whoever appraises it needs to trust nothing in here; see `Verifier`.
    """

    evidence: WireEvidence
    statement: Statement
    collateral: WireCollateral = WireCollateral()

    @classmethod
    def make(cls, evidence: Evidence, statement: Statement, collateral: Collateral | None = None) -> "Attested":
        """The three together."""
        return cls(WireEvidence.of(evidence), statement, WireCollateral.of(collateral or Collateral()))

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Attested":
        """MalformedEvidence for anything that `encode` did not make."""
        if len(data) > MAX_ATTESTED_BYTES:
            raise MalformedEvidence(f"Attestation has at most {MAX_ATTESTED_BYTES >> 20} MiB; this has more.")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise MalformedEvidence("This is no attestation of a workload, or it was damaged; ask it again.") from None
