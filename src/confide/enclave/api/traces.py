"""Traces for the operator: how long a request waited, was read, answered and counted; nothing of what, or of whose.

Spans of OpenTelemetry, as lines of OTLP's JSON in a file: this process opens no connection, and a collector beside it
reads files (`otlpjsonfile`). What may stand in a span is in a list here, names and values. Nothing of a request's own
decides about its trace, which begins and ends in this process.
"""

import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from opentelemetry.context import Context
from opentelemetry.exporter.otlp.json.file import FileSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, Tracer, set_span_in_context

from confide.disk.files import open_own
from confide.enclave.api.trace import Step, Trace
from confide.errors import ConfideError, InvalidSettings
from confide.version import VERSION

_QUEUED: Final = 4096
"""Spans that wait to be written; more are dropped."""
_VALUES: Final[Mapping[str, re.Pattern[str]]] = {
    "http.route": re.compile(r"/[a-z0-9_/{}:]{1,63}"),
    "http.response.status_code": re.compile(r"[1-5][0-9]{2}"),
    "confide.tier": re.compile(r"interactive|batch"),
    "error.type": re.compile(r"[a-z0-9-]{1,32}"),
}
"""What may stand in a span, and what each may be: no text of a request, no name, no key, no number of tokens."""


class Traces:
    """Writes spans to a file. InvalidSettings where it cannot be written."""

    def __init__(self, path: Path) -> None:
        try:
            self._file = os.fdopen(open_own(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "a", encoding="utf-8")
        except OSError as error:
            raise InvalidSettings(f"{path} cannot be written ({error.strerror}); give a file for --traces.") from error
        # Said here, and by no variable: what the environment would add to it is the machine's to choose.
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,
            resource=Resource({"service.name": "confide", "service.version": VERSION}),
            span_limits=SpanLimits(max_span_attributes=len(_VALUES), max_events=0, max_links=0),
            shutdown_on_exit=False,
        )
        exporter = FileSpanExporter(stream=self._file)
        self._provider.add_span_processor(
            BatchSpanProcessor(exporter, max_queue_size=_QUEUED, schedule_delay_millis=1000, max_export_batch_size=512)
        )
        self._tracer = self._provider.get_tracer("confide")

    def begin(self, route: str) -> Trace:
        """One request's, from now on. route: of its endpoint, as the API has it."""
        return _Recorded(self._tracer, route)

    def close(self) -> None:
        """Write what waits, and close the file."""
        self._provider.shutdown()
        self._file.close()


class _Recorded(Trace):
    def __init__(self, tracer: Tracer, route: str) -> None:
        # In no context but its own: whatever else in this process makes spans is not a part of it, nor it of that.
        self._tracer = tracer
        self._request = tracer.start_span("request", Context(), SpanKind.SERVER, _allowed({"http.route": route}))
        self._decoding: Span | None = None

    @contextmanager
    def step(self, name: Step) -> Iterator[None]:
        span = self._begin(name)
        try:
            yield
        except BaseException as error:
            # By its code alone: its words may quote a prompt.
            kind = error.code if isinstance(error, ConfideError) else "other"
            span.set_status(Status(StatusCode.ERROR))
            span.set_attributes(_allowed({"error.type": kind}))
            raise
        finally:
            span.end()

    def decode(self) -> None:
        self._decoding = self._begin("decode")

    def decoded(self) -> None:
        if self._decoding is not None:
            self._decoding.end()
            self._decoding = None

    def end(self, status: str, *, batch: bool) -> None:
        self.decoded()
        tier = "batch" if batch else "interactive"
        self._request.set_attributes(_allowed({"http.response.status_code": status, "confide.tier": tier}))
        self._request.end()

    def _begin(self, name: Step) -> Span:
        return self._tracer.start_span(name, set_span_in_context(self._request, Context()))


def _allowed(attributes: Mapping[str, str]) -> dict[str, str]:
    """Those that are in the list, with values that are."""
    return {name: value for name, value in attributes.items() if name in _VALUES and _VALUES[name].fullmatch(value)}
