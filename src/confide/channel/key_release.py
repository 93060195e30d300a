"""What workloads and the key broker say to one another: JSON over HTTP.

POST /nonce answers with a `NonceAnswer`; POST /release takes a `ReleaseRequest` and answers with a `ReleaseAnswer`. A
refusal is a `RefusalAnswer`, under an HTTP status of 400 or above.
"""

from typing import Annotated, Final

import msgspec

from confide.attest.wire import MAX_ATTESTED_BYTES, Attested, Record

NONCE_PATH: Final = "/nonce"
RELEASE_PATH: Final = "/release"
MAX_REQUEST_BYTES: Final = MAX_ATTESTED_BYTES + 1024
MAX_ANSWER_BYTES: Final = 64 << 10

KeyId = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{32}\Z")]
NonceText = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


class NonceAnswer(Record, frozen=True):
    """A nonce to make evidence for, good once. seconds: how long it is."""

    nonce: NonceText
    seconds: int


class ReleaseRequest(Record, frozen=True):
    """Evidence for a nonce, which stands in its statement, and the key asked for."""

    key: KeyId
    attested: Attested


class ReleaseAnswer(Record, frozen=True):
    """The model key, encrypted to the workload's channel key; see `wrapping_info`."""

    key: KeyId
    wrapped: Annotated[bytes, msgspec.Meta(max_length=MAX_ANSWER_BYTES)]


class Refusal(Record, frozen=True):
    """code: that of an error of Confide's. checks: the codes of the checks that failed, if it came to checking."""

    code: Annotated[str, msgspec.Meta(max_length=64)]
    message: Annotated[str, msgspec.Meta(max_length=4096)]
    checks: tuple[Annotated[str, msgspec.Meta(max_length=64)], ...] = ()


class RefusalAnswer(Record, frozen=True):
    """The body of every answer that is none of the others."""

    error: Refusal


def wrapping_info(key: str, nonce: str) -> bytes:
    """HPKE's info for a wrapped key: it opens as the answer to this request only."""
    return b"confide key release 1\0" + bytes.fromhex(key) + bytes.fromhex(nonce)
