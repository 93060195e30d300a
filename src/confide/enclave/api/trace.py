"""What of a request's way is noted, where anything is: see `confide.enclave.api.traces`."""

from contextlib import AbstractContextManager, nullcontext
from typing import Final, Literal

from starlette.requests import Request
from starlette.types import Scope

Step = Literal["queue", "ledger", "prefill", "decode"]
"""Waiting for a turn; asking who it is, and charging the prompt; from the prompt to the first piece; to the last."""
_TRACE: Final = "confide.trace"


class Trace:
    """One request's trace. This one notes nothing."""

    def step(self, name: Step) -> AbstractContextManager[None]:
        """The block is a part of the request."""
        return nullcontext()

    def decode(self) -> None:
        """The answer has begun; `decoded` says when it has ended."""

    def decoded(self) -> None:
        """The answer has ended, or was stopped; once is enough."""

    def end(self, status: str, *, batch: bool) -> None:
        """The request is answered. status: of HTTP, or another word where it has none."""


def with_trace(scope: Scope, trace: Trace) -> Scope:
    """A request's scope that has its trace."""
    return {**scope, _TRACE: trace}


def trace_of(request: Request) -> Trace:
    """A request's trace, or one that notes nothing."""
    found: Trace = request.scope.get(_TRACE) or Trace()
    return found
