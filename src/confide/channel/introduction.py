"""How a workload is introduced to another one that answers its neighbours alone: JSON, inside the encrypted channel.

Whoever asks has verified the other by then; now the two exchange their parts. POST NONCE_PATH answers with a
`NonceAnswer`; POST PATH takes an `Introduction` and answers with an `Introduced`. Its token, encrypted to the key that
the evidence speaks for, goes with every further request as the header SESSION.
"""

from typing import Annotated, Final, TypeVar

import msgspec

from confide.attest.wire import MAX_ATTESTED_BYTES, Attested, Record
from confide.channel.key_release import NonceAnswer
from confide.errors import MalformedMessage

NONCE_PATH: Final = "/introduction/nonce"
PATH: Final = "/introduction"
SESSION: Final = "confide-session"
"""Header of a request: the token in hexadecimal. Of an answer: UNKNOWN, where the token was not known (any more)."""
UNKNOWN: Final = "unknown"
TOKEN_BYTES: Final = 32
MAX_ANSWER_BYTES: Final = 64 << 10

ServiceName = Annotated[str, msgspec.Meta(pattern=r"\A[a-z][a-z0-9-]{0,62}\Z")]
"""What a service is called among its neighbours."""


class Introduction(Record, frozen=True):
    """name: as which neighbour. attested: evidence for the nonce, which stands in its statement."""

    name: ServiceName
    attested: Attested


class Introduced(Record, frozen=True):
    """wrapped: the token, encrypted to the channel key of the evidence, see `token_info`. seconds: it is good for."""

    wrapped: Annotated[bytes, msgspec.Meta(max_length=MAX_ANSWER_BYTES)]
    seconds: Annotated[int, msgspec.Meta(ge=1, le=86400)]


_Message = TypeVar("_Message", Introduction, Introduced, NonceAnswer)


def decode(content: bytes, kind: type[_Message]) -> _Message:
    """A message of this kind. MalformedMessage for anything else."""
    try:
        if len(content) > MAX_ATTESTED_BYTES:
            raise ValueError("too large")
        return msgspec.json.decode(content, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise MalformedMessage("This is no message of an introduction, or it was damaged; see the protocol.") from None


def token_info(key_id: bytes, nonce: str) -> bytes:
    """HPKE's info for a token: of the service that gives it, by its channel key's id, and for this nonce alone."""
    return b"confide introduction 1\0" + key_id + bytes.fromhex(nonce)
