"""What is known of the revocation of a chain's certificates, from OCSP responses and a revocation list together.

A document that says a certificate is revoked refuses the evidence. A certificate that no document is about is a check
that was not made, and says so; whether that will do is the policy's to decide.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Final, Self

from cryptography import x509

from confide.attest.chain import REVOKED, check_revocation, read_crl
from confide.attest.check import Check, check, skipped
from confide.attest.ocsp import OcspResponses

CLAUSE: Final = "RFC 5280, 6.3; RFC 6960, 3.2"


@dataclass(frozen=True)
class Revocation:
    """The documents `ocsp` and `crl` of a collateral, each of which may be missing."""

    responses: OcspResponses | None = None
    crl: x509.CertificateRevocationList | None = None

    @classmethod
    def read(cls, documents: Mapping[str, bytes]) -> Self:
        """MalformedEvidence if one of them is there and not what it should be."""
        ocsp, crl = documents.get("ocsp"), documents.get("crl")
        responses = None if ocsp is None else OcspResponses(ocsp)
        return cls(responses, None if crl is None else read_crl(crl, "revocation list"))

    @property
    def issued(self) -> datetime | None:
        """When the oldest of the documents was made."""
        made = [] if self.crl is None else [self.crl.last_update_utc]
        return min(made + ([] if self.responses is None else [self.responses.oldest]), default=None)

    def check(
        self, chain: Sequence[x509.Certificate], whose: str, now: datetime, ends: list[datetime], unlisted: int = 0
    ) -> Check:
        """The status at `now` of every certificate of a verified chain but its root, which is last.

        unlisted: how many at its beginning are of a kind whose status nobody publishes. Until when the documents in
        use hold is added to `ends`. Revoked, InvalidSignature, OutsideValidity.
        """
        uncertain: list[str] = []
        for at, (certificate, issuer) in enumerate(pairwise(chain)):
            known = [self._by_ocsp(certificate, issuer, now), self._by_list(certificate, issuer, now)]
            ends += [end for end in known if end is not None]
            if not any(known) and at >= unlisted:
                uncertain.append(certificate.subject.rfc4514_string()[:100])
        expected = f"no certificate of the {whose} revoked"
        if uncertain:
            because = f"no OCSP response or revocation list was given for {'; '.join(uncertain)}"
            return skipped(REVOKED, expected, because, CLAUSE)
        return check(REVOKED, expected, f"{len(chain) - 1 - unlisted} certificates, none revoked", True, CLAUSE)

    def _by_ocsp(self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> datetime | None:
        return None if self.responses is None else self.responses.check(certificate, issuer, now)

    def _by_list(self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> datetime | None:
        if self.crl is None or self.crl.issuer != issuer.subject:
            return None
        return check_revocation([certificate, issuer], self.crl, now)
