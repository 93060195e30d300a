"""What a server shows its operator, /metrics and /health, read within bounds by whoever watches it."""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import httpx
import msgspec

from confide.errors import ConfideError, ConnectionLost, ProtocolError
from confide.printable import printable

MAX_BYTES: Final = 1 << 20
"""Of a page of metrics."""
_MAX_SAMPLES: Final = 20_000
_HEALTH_BYTES: Final = 4096
_LONGEST_REASON: Final = 60

Labels = Mapping[str, str]


@dataclass(frozen=True)
class Sample:
    """One line of /metrics."""

    name: str
    labels: Labels
    value: float


@dataclass(frozen=True)
class Reading:
    """What a server said at one moment. at: seconds of a monotonic clock. health: ok, or why not."""

    at: float
    health: str
    samples: Sequence[Sample] = field(repr=False)

    def total(self, name: str) -> float:
        """The sum over all labels."""
        return sum(sample.value for sample in self.samples if sample.name == name)

    def buckets(self, name: str) -> dict[float, float]:
        """Of a histogram, over all labels: how many were at most so long."""
        found: dict[float, float] = {}
        for sample in self.samples:
            if sample.name == f"{name}_bucket":
                most = float(sample.labels.get("le", "inf"))
                found[most] = found.get(most, 0.0) + sample.value
        return found


def parse(text: str) -> list[Sample]:
    """Metrics in the Prometheus text format. ProtocolError for what is none, or far too much."""
    from prometheus_client.parser import text_string_to_metric_families

    found: list[Sample] = []
    try:
        for family in text_string_to_metric_families(text):
            found += [Sample(one.name, one.labels, one.value) for one in family.samples]
            if len(found) > _MAX_SAMPLES:
                raise ValueError("too many")
        for one in found:
            if not math.isfinite(one.value) or math.isnan(float(one.labels.get("le", "inf"))):
                raise ValueError("no count")
    except (ValueError, LookupError, TypeError, RecursionError):
        raise ProtocolError("What answers there shows no metrics; give a server's --metrics-port.") from None
    return found


def read_server(client: httpx.Client, url: str) -> Reading | ConfideError:
    """One reading of a server at a URL, or why there is none: whoever watches several goes on with the others."""
    try:
        at, page = time.monotonic(), _get(client, f"{url}/metrics", MAX_BYTES)
        samples = parse(page[1])
        status, said = _get(client, f"{url}/health", _HEALTH_BYTES)
    except ConfideError as error:
        return error
    return Reading(at, "ok" if status == httpx.codes.OK else _reason(said) or f"status {status}", samples)


class _Health(msgspec.Struct):
    """What a server in a trusted environment says; a layer server says a word."""

    reason: str = ""


def _reason(said: str) -> str:
    try:
        word = msgspec.json.decode(said, type=_Health).reason
    except (msgspec.MsgspecError, ValueError, RecursionError):
        word = said
    return printable(word.strip())[:_LONGEST_REASON]


def _get(client: httpx.Client, url: str, most: int) -> tuple[int, str]:
    content = bytearray()
    try:
        with client.stream("GET", url) as response:
            for part in response.iter_bytes():
                content += part
                if len(content) > most:
                    raise ProtocolError("What answers there shows no metrics; give a server's --metrics-port.")
    except httpx.HTTPError as error:
        raise ConnectionLost(f"{url} cannot be asked ({type(error).__name__}); see that the server runs.") from error
    return response.status_code, content.decode("utf-8", "replace")
