"""What an operator may watch: counts and times, and nothing of what anyone asked."""

import time

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)


class Metrics:
    """The measures of one server, in the Prometheus text format."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.connections = Gauge("confide_connections", "Open connections", registry=self.registry)
        self.answers = Counter("confide_online_answers", "Online requests answered", registry=self.registry)
        self.tokens = Counter(
            "confide_online_rows", "Masked rows answered, of all layer groups", registry=self.registry
        )
        self.seconds = Histogram(
            "confide_online_seconds", "From request to answer", registry=self.registry, buckets=_SECONDS
        )
        self.batch = Histogram(
            "confide_online_batch", "Requests in one product", registry=self.registry, buckets=(1, 2, 4, 8, 16, 32, 64)
        )
        self.ahead = Counter("confide_ahead_tokens", "Tokens worked for ahead", registry=self.registry)
        self.ahead_bytes = Gauge("confide_ahead_bytes", "What work done ahead takes now", registry=self.registry)
        self.refusals = Counter("confide_refusals", "Errors sent to clients", ["code"], registry=self.registry)
        self.bytes_received = Counter("confide_received_bytes", "Payloads received", registry=self.registry)
        self.started = Gauge("confide_started_seconds", "When the server started", registry=self.registry)
        self.started.set(time.time())

    def text(self) -> bytes:
        """All measures as Prometheus reads them."""
        return generate_latest(self.registry)
