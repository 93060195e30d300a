"""Evidence of several services of a graph for one nonce, as one of them hands it on: nothing of it is believed."""

from typing import Annotated, Final

import msgspec

from confide.attest.wire import Attested, Record
from confide.channel.introduction import ServiceName
from confide.errors import MalformedEvidence
from confide.graph.manifest import MAX_SERVICES

LOG_PATH: Final = "/graph"
EVIDENCE_PATH: Final = "/graph/evidence"
MAX_GATHERED_BYTES: Final = 32 << 20


class Gathered(Record, frozen=True):
    """services: those that answered, by name."""

    services: Annotated[dict[ServiceName, Attested], msgspec.Meta(max_length=MAX_SERVICES)]

    def encode(self) -> bytes:
        """As JSON."""
        return msgspec.json.encode(self)

    @classmethod
    def decode(cls, data: bytes) -> "Gathered":
        """MalformedEvidence for anything that `encode` did not make."""
        if len(data) > MAX_GATHERED_BYTES:
            raise MalformedEvidence(f"Evidence of a graph has at most {MAX_GATHERED_BYTES >> 20} MiB; this has more.")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise MalformedEvidence("This is no evidence of a graph's services, or it is damaged; ask again.") from None
