"""What an attested workload says of itself: the statement whose digest the hardware signs as report_data."""

import hashlib
import hmac
from dataclasses import asdict, dataclass, field
from typing import Final

import rfc8785

from confide.attest.evidence import Family, qualifying_data

DIGEST_BYTES: Final = 64
_SHORT: Final = (Family.TPM, Family.NVIDIA, Family.AZURE)
"""Families with room for 32 bytes only: they sign the SHA-256 of the digest."""


@dataclass(frozen=True)
class Statement:
    """What the workload vouches for. All texts; nonce and digests in lower-case hexadecimal.

    channel_keys: the public keys that end inside the workload, in hexadecimal, by their purpose, such as hpke or tls.
    """

    nonce: str
    model_digest: str = ""
    policy_version: str = ""
    channel_keys: dict[str, str] = field(default_factory=dict)

    def canonical(self) -> bytes:
        """The statement as RFC 8785 writes it: the same bytes everywhere."""
        return rfc8785.dumps(asdict(self))

    def digest(self) -> bytes:
        """SHA-512 of the canonical statement: what belongs into report_data."""
        return hashlib.sha512(self.canonical()).digest()

    def is_bound_by(self, report_data: bytes, family: Family) -> bool:
        """Whether the hardware signed this very statement."""
        return same_report_data(self.digest(), report_data, family)


def same_report_data(digest: bytes, report_data: bytes, family: Family) -> bool:
    """Compare a 64-byte digest with what a family could hold of it, in constant time."""
    return hmac.compare_digest(qualifying_data(digest) if family in _SHORT else digest, report_data)
