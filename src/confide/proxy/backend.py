"""What stands behind a model of the proxy, as the proxy sees it: whether it may be asked, and how."""

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from starlette.types import Receive, Scope, Send

from confide.errors import CollateralUnavailable, ConfideError, ConnectionLost, GatewayError, ServerBusy, ServerFault
from confide.proxy.receipts import ReceiptShelf

WAIT_SECONDS: Final = 30.0
"""How long a question waits for a verification that is under way."""
_FIRST_RETRY_SECONDS: Final = 1.0
_LAST_RETRY_SECONDS: Final = 60.0
_AWAY: Final = (ConnectionLost, ServerBusy, GatewayError, CollateralUnavailable)
"""Errors that may pass by themselves. Whatever else is wrong is a refusal."""


class State(StrEnum):
    """Of a backend. Questions are only passed on while it is ready."""

    VERIFYING = "verifying"
    READY = "ready"
    REFUSED = "refused"
    AWAY = "away"


@dataclass(frozen=True)
class Question:
    """A program's question. path: of the endpoint, below /v1. body: as it came, and fields, what it says."""

    path: str
    body: bytes = field(repr=False)
    fields: Mapping[str, Any] = field(repr=False)


class Backend(ABC):
    """One model, or several, behind one protection. Nothing is sent to it before it is verified.

    name: what programs call it; its own names where that is empty. again_seconds: after how long it is verified again.
    receipts: of its answers.
    """

    def __init__(self, name: str, again_seconds: float) -> None:
        self.name = name
        self.state = State.VERIFYING
        self.problem: ConfideError | None = None
        self.receipts = ReceiptShelf()
        self._again_seconds = again_seconds
        self._settled = asyncio.Event()
        self._again = asyncio.Event()

    @property
    @abstractmethod
    def models(self) -> Sequence[str]:
        """Names that it answers to, as far as they are known."""

    @abstractmethod
    def describe(self) -> dict[str, Any]:
        """What was verified, and who can see what, for people."""

    @abstractmethod
    async def answer(self, question: Question, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a question, once `ready` has returned."""

    @abstractmethod
    async def verify(self) -> None:
        """Verify what is behind this. ConfideError where it is not to be trusted, or not there."""

    @abstractmethod
    async def close(self) -> None:
        """Give up connections and secrets."""

    async def run(self) -> None:
        """Verify now, on a timer, and when `lose` says so, until this is cancelled."""
        retry = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self.verify()
            except Exception as error:  # noqa: BLE001 - of one that is not ours only the kind is told
                unknown = ServerFault(f"Verifying failed inside the proxy ({type(error).__name__}); report it.")
                self.problem = error if isinstance(error, ConfideError) else unknown
                self.state = State.AWAY if isinstance(error, _AWAY) else State.REFUSED
                pause, retry = retry, min(2 * retry, _LAST_RETRY_SECONDS)
            else:
                self.state, self.problem = State.READY, None
                pause, retry = self._again_seconds, _FIRST_RETRY_SECONDS
            self._settled.set()
            try:
                async with asyncio.timeout(pause):
                    await self._again.wait()
            except TimeoutError:
                pass
            self._again.clear()
            if self.state is State.READY:
                self._begin()

    def lose(self) -> None:
        """Rely on it no more, and verify it again now."""
        self._begin()
        self._again.set()

    def refuse(self, error: ConfideError) -> None:
        """Ask it nothing more, for what came of an answer. Verifying it anew is what may end that; it begins now."""
        self.state, self.problem = State.REFUSED, error
        self._settled.set()
        self._again.set()

    def _begin(self) -> None:
        self.state = State.VERIFYING
        self._settled.clear()

    async def ready(self) -> None:
        """Return once it may be asked. What stands against that is raised: ServerBusy while it is being verified."""
        try:
            async with asyncio.timeout(WAIT_SECONDS):
                await self._settled.wait()
        except TimeoutError:
            raise ServerBusy("The model's server is still being verified; try again in a moment.") from None
        if self.state is not State.READY:
            raise self.problem or ServerBusy("The model's server is being verified again; try again in a moment.")
