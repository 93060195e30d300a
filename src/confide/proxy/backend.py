"""What stands behind a model of the proxy, as the proxy sees it: whether it may be asked, and how."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Final

from starlette.types import ASGIApp, Receive, Scope

from confide.errors import PASSING, REFUSING, ChannelBroken, ConfideError, KeyChanged, ServerBusy, ServerFault
from confide.proxy.receipts import ReceiptShelf

WAIT_SECONDS: Final = 30.0
"""How long a question waits for a verification that is under way."""
_FIRST_RETRY_SECONDS: Final = 1.0
_LAST_RETRY_SECONDS: Final = 60.0
LOOK_SECONDS: Final = 20.0
"""How often it is looked whether what was verified is still there."""


class State(StrEnum):
    """Of a backend. Questions are only passed on while it is ready; unreachable is what may pass by itself."""

    VERIFYING = "verifying"
    READY = "ready"
    REFUSED = "refused"
    UNREACHABLE = "unreachable"


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
    async def begin(self, question: Question, scope: Scope, receive: Receive) -> ASGIApp:
        """Have a question answered, once `ready` has returned; gives what sends the answer.

        What is raised is raised before an answer has begun: another backend may be asked then, and never later.
        """

    @abstractmethod
    async def verify(self) -> None:
        """Verify what is behind this. ConfideError where it is not to be trusted, or not there."""

    @abstractmethod
    async def look(self) -> None:
        """Find out whether what was verified is still there; ConfideError if not. What is busy answering is there."""

    @abstractmethod
    async def close(self) -> None:
        """Give up connections and secrets."""

    async def run(self) -> None:
        """Verify now, on a timer, and when `lose` or `refuse` says so, until this is cancelled."""
        retry = _FIRST_RETRY_SECONDS
        while True:
            try:
                await self.verify()
            except Exception as error:  # noqa: BLE001 - of one that is not ours only the kind is told
                unknown = ServerFault(f"Verifying failed inside the proxy ({type(error).__name__}); report it.")
                self.problem = error if isinstance(error, ConfideError) else unknown
                self.state = State.UNREACHABLE if isinstance(error, PASSING) else State.REFUSED
                self._settled.set()
                await self._woken(retry)
                retry = min(2 * retry, _LAST_RETRY_SECONDS)
            else:
                self.state, self.problem = State.READY, None
                self._settled.set()
                retry = _FIRST_RETRY_SECONDS
                await self._watch()
            self._again.clear()
            if self.state is State.READY:
                self._begin()

    async def _woken(self, seconds: float) -> bool:
        """Wait for so long, or until it is to be verified again; whether it is."""
        try:
            async with asyncio.timeout(seconds):
                return await self._again.wait()
        except TimeoutError:
            return False

    async def _watch(self) -> None:
        """Return when it is to be verified again. A server that goes away is noticed without a question."""
        until = time.monotonic() + self._again_seconds
        while (left := until - time.monotonic()) > 0 and not await self._woken(min(left, LOOK_SECONDS)):
            try:
                await self.look()
            except ServerBusy:
                continue  # it is there
            except Exception:  # noqa: BLE001 - verifying it finds out what is the matter
                self.lose()

    def failed(self, error: ConfideError) -> None:
        """Take note of what came of a question, where that says something of what is behind this."""
        if isinstance(error, ServerBusy):
            return  # it is there
        if isinstance(error, (*PASSING, ChannelBroken, KeyChanged)):
            self.lose()
        elif isinstance(error, REFUSING):
            self.refuse(error)

    def lose(self) -> None:
        """Rely on it no more, and verify it again now. What is not relied on stays what it is."""
        if self.state is State.READY:
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
            if self.problem is None:
                raise ServerBusy("The model's server is being verified again; try again in a moment.")
            raise self.problem.with_traceback(None)  # which would grow, and keep every question that it was told to
