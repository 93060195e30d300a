"""What the API grants one request, and all of them together."""

from dataclasses import dataclass, replace
from typing import Self


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and tokens, patience in seconds.

    body_bytes, body_seconds: of one request, and for it to arrive. upload_bytes: of one that brings a document; 0 where
    none is taken. bodies_bytes: of all that are on their way.
    waiting: requests in line for the engine, beyond those that it computes at once. waiting_seconds: for which nobody
    is let into the line. idle_seconds: for a client to take the next part of its answer. engine_seconds: for the engine
    to give anything to anybody. attestations_per_second: in the long run, to all clients together.
    attestations_waiting: in line for one.
    """

    body_bytes: int = 1 << 20
    upload_bytes: int = 0
    body_seconds: float = 30.0
    bodies_bytes: int = 64 << 20
    prompt_tokens: int = 1 << 17
    answer_tokens: int = 8192
    waiting: int = 256
    waiting_seconds: float = 300.0
    idle_seconds: float = 60.0
    engine_seconds: float = 300.0
    attestations_per_second: float = 50.0
    attestations_waiting: int = 4096

    @property
    def largest_bytes(self) -> int:
        """Of any request."""
        return max(self.body_bytes, self.upload_bytes)

    def with_uploads(self) -> Self:
        """The same where users bring documents, which are larger, and take longer to arrive."""
        return replace(self, upload_bytes=32 << 20, bodies_bytes=256 << 20, body_seconds=120.0)
