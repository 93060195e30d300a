"""What an attested workload says of itself: the statement whose digest the hardware signs as report_data."""

import hashlib
import hmac
from typing import Annotated, Any, Final, Self

import msgspec
import rfc8785

from confide.attest.configuration import Configuration
from confide.attest.evidence import Family, qualifying_data
from confide.errors import MalformedEvidence

DIGEST_BYTES: Final = 64
MAX_STATEMENT_BYTES: Final = 1 << 19
_SHORT: Final = (Family.TPM, Family.NVIDIA, Family.AZURE)
"""Families with room for 32 bytes only: they sign the SHA-256 of the digest."""

_Key = Annotated[str, msgspec.Meta(max_length=1 << 14)]


class Statement(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What the workload vouches for. Nonce and digests in lower-case hexadecimal.

    channel_keys: the public keys that end inside the workload, in hexadecimal, by their purpose, such as hpke or tls.
    configuration: what runs; None where the workload does not say.
    """

    nonce: Annotated[str, msgspec.Meta(max_length=256)]
    model_digest: Annotated[str, msgspec.Meta(max_length=256)] = ""
    policy_version: Annotated[str, msgspec.Meta(max_length=256)] = ""
    channel_keys: Annotated[dict[Annotated[str, msgspec.Meta(max_length=64)], _Key], msgspec.Meta(max_length=16)] = {}
    configuration: Configuration | None = None

    @classmethod
    def decode(cls, data: bytes) -> Self:
        """A statement from JSON. MalformedEvidence for anything else, and for what has no canonical form."""
        if len(data) > MAX_STATEMENT_BYTES:
            raise MalformedEvidence(f"A statement has at most {MAX_STATEMENT_BYTES >> 10} KiB; ask the workload again.")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            reason = str(error).encode("ascii", "replace").decode()[:200].rstrip(".")
            raise MalformedEvidence(f"The statement cannot be understood ({reason}); ask the workload again.") from None

    def canonical(self) -> bytes:
        """The statement as RFC 8785 writes it: the same bytes everywhere. Without a configuration there is no such
        member, every other one is written.
        """
        fields: dict[str, Any] = {
            "nonce": self.nonce,
            "model_digest": self.model_digest,
            "policy_version": self.policy_version,
            "channel_keys": self.channel_keys,
        }
        if self.configuration is not None:
            fields["configuration"] = msgspec.to_builtins(self.configuration)
        return rfc8785.dumps(fields)

    def digest(self) -> bytes:
        """SHA-512 of the canonical statement: what belongs into report_data."""
        return hashlib.sha512(self.canonical()).digest()

    def is_bound_by(self, report_data: bytes, family: Family) -> bool:
        """Whether the hardware signed this very statement."""
        return same_report_data(self.digest(), report_data, family)


def same_report_data(digest: bytes, report_data: bytes, family: Family) -> bool:
    """Compare a 64-byte digest with what a family could hold of it, in constant time."""
    return hmac.compare_digest(qualifying_data(digest) if family in _SHORT else digest, report_data)
