"""What an operator may watch: counts and times, and nothing of what anyone asked.

Tokens are counted in thousands, since exact sums would tell those of each request to whoever looks often enough.
"""

import time
from typing import Final

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)

_COARSE: Final = 1000


class CoarseCounter:
    """A counter that shows whole thousands only."""

    def __init__(self, counter: Counter) -> None:
        self._counter = counter
        self._rest = 0

    def add(self, amount: int) -> None:
        """So many more."""
        whole, self._rest = divmod(self._rest + amount, _COARSE)
        if whole:
            self._counter.inc(whole * _COARSE)


class Metrics:
    """The measures of one workload, in the Prometheus text format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.running = Gauge("confide_answers_running", "Answers being made", registry=self.registry)
        self.waiting = Gauge("confide_requests_waiting", "Requests in line", registry=self.registry)
        self.requests = Counter("confide_requests", "Requests answered", ["endpoint", "status"], registry=self.registry)
        self.seconds = Histogram(
            "confide_request_seconds", "From request to last byte", ["endpoint"], registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.first_piece = Histogram(
            "confide_first_piece_seconds", "From prompt to the first piece of its answer", registry=self.registry,
            buckets=_SECONDS,
        )  # fmt: skip
        self.prompt_tokens = CoarseCounter(
            Counter("confide_prompt_tokens", "Tokens of prompts, in thousands", registry=self.registry)
        )
        self.answer_tokens = CoarseCounter(
            Counter("confide_answer_tokens", "Tokens of answers, in thousands", registry=self.registry)
        )
        self.attestations = Counter("confide_attestations", "Evidence handed out", registry=self.registry)
        self.refusals = Counter("confide_channel_refusals", "Requests refused", ["code"], registry=self.registry)
        self.started = Gauge("confide_started_seconds", "When the server started", registry=self.registry)
        self.started.set(time.time())

    def text(self) -> bytes:
        """All measures as Prometheus reads them."""
        return generate_latest(self.registry)
