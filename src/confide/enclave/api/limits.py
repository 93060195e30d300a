"""What the API grants one request, and all of them together."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes and tokens, patience in seconds.

    concurrent: answers being made at a time. body_seconds: for a request to arrive. idle_seconds: between two pieces
    of an answer, and for a client to take one. request_seconds: for a whole answer. attestations_per_second: in the
    long run, from all clients together.
    """

    body_bytes: int = 1 << 20
    prompt_tokens: int = 1 << 17
    answer_tokens: int = 8192
    concurrent: int = 64
    body_seconds: float = 30.0
    idle_seconds: float = 60.0
    request_seconds: float = 900.0
    attestations_per_second: float = 10.0
