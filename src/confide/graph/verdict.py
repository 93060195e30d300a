"""What a coordinator says of a graph that is not shown: that every service that sees a user's data meets a policy.

It is signed by a key that the coordinator's evidence speaks for, and made for a nonce of whoever asked. It names the
key of the service that users ask, so that they can tell that it is the one which was checked.
"""

from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
import rfc8785
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from confide.attest.configuration import Hex32
from confide.attest.policy_toml import MAX_POLICY_BYTES
from confide.attest.wire import Record
from confide.channel.key_release import NonceText
from confide.errors import InvalidSignature as InvalidSignatureError
from confide.errors import MalformedEvidence

PATH: Final = "/graph/verdict"
PURPOSE: Final = "graph-verdict"
"""Under this name a coordinator's statement holds the public key, in hexadecimal."""
MAX_VERDICT_BYTES: Final = 2 * MAX_POLICY_BYTES
_LABEL: Final = b"confide graph verdict 1\0"


class Verdict(Record, frozen=True):
    """nonce: of whoever asked. graph, version, digest: as in the coordinator's statement. promise: TOML, the policy
    that every service satisfied that sees a user's data, besides that of its owners. entry: the id of the channel key
    of the service that users ask. checked: when evidence of all of them was appraised, for nonces of the
    coordinator's own, by its clock.
    """

    format: Literal[1] = msgspec.field(name="confide-graph-verdict")
    nonce: NonceText
    graph: Hex32
    version: Annotated[int, msgspec.Meta(ge=1, le=1 << 40)]
    digest: Hex32
    promise: Annotated[str, msgspec.Meta(max_length=MAX_POLICY_BYTES)]
    entry: Hex32
    checked: Annotated[datetime, msgspec.Meta(tz=True)]

    def canonical(self) -> bytes:
        """As RFC 8785 writes it."""
        return rfc8785.dumps(msgspec.to_builtins(self))


class SignedVerdict(Record, frozen=True):
    """With its signature, in hexadecimal."""

    verdict: Verdict
    signature: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{128}\Z")]

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "SignedVerdict":
        """MalformedEvidence for anything that `encode` did not make."""
        try:
            if len(data) > MAX_VERDICT_BYTES:
                raise ValueError("too large")
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise MalformedEvidence("This is no verdict on a graph, or it was damaged; ask its coordinator.") from None

    def require_signed(self, public_key: str) -> None:
        """InvalidSignature unless this key, in hexadecimal, made the signature."""
        try:
            key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(public_key))
            key.verify(bytes.fromhex(self.signature), _LABEL + self.verdict.canonical())
        except (InvalidSignature, ValueError):
            raise InvalidSignatureError(
                "The verdict on the graph is not signed by the coordinator that was verified; do not believe it."
            ) from None


class VerdictKey:
    """The private half of a key that signs verdicts, and nothing else. It is never written anywhere."""

    def __init__(self) -> None:
        self._key = Ed25519PrivateKey.generate()
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"VerdictKey({self.public.hex()[:16]})"

    def sign(self, verdict: Verdict) -> SignedVerdict:
        """The verdict with its signature."""
        return SignedVerdict(verdict, self._key.sign(_LABEL + verdict.canonical()).hex())
