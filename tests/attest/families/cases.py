"""A case to verify, and ways to break one: flipped bytes, truncations, other documents."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime

import pytest

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence
from confide.attest.roots import Roots
from confide.attest.verifier import Verifier
from confide.errors import AttestationError

NOW = datetime(2026, 6, 1, tzinfo=UTC)


@dataclass(frozen=True)
class Case:
    """Evidence with all that verifies it."""

    evidence: Evidence
    collateral: Collateral
    roots: Roots
    now: datetime = NOW

    def verify(self) -> Claims:
        return Verifier(self.roots).verify(self.evidence, self.collateral, self.now)

    def with_raw(self, raw: bytes) -> "Case":
        return replace(self, evidence=replace(self.evidence, raw=raw))

    def with_parts(self, **parts: bytes) -> "Case":
        return replace(self, evidence=replace(self.evidence, parts={**self.evidence.parts, **parts}))

    def with_documents(self, **documents: bytes) -> "Case":
        return replace(self, collateral=Collateral({**self.collateral.documents, **documents}))

    def without_document(self, name: str) -> "Case":
        return replace(self, collateral=Collateral(without(self.collateral.documents, name)))


def without(mapping: Mapping[str, bytes], name: str) -> dict[str, bytes]:
    return {key: value for key, value in mapping.items() if key != name}


def refused(case: Case, reason: type[AttestationError] = AttestationError) -> None:
    """The case must be refused for this typed reason, in a sentence that ends with what to do."""
    with pytest.raises(reason, match=r"; .*\.$"):
        case.verify()


def flips(data: bytes, step: int = 1, end: int | None = None) -> Iterator[bytes]:
    """The data with one byte flipped, for each byte (each `step`th) before `end`."""
    for at in range(0, len(data) if end is None else end, step):
        yield data[:at] + bytes([data[at] ^ (1 << at % 8)]) + data[at + 1 :]


def truncations(data: bytes, step: int = 1) -> Iterator[bytes]:
    for end in range(0, len(data), step):
        yield data[:end]
