"""A shell and its layer server: the model runs here, and its linear layers there, on numbers that mean nothing."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from confide.attest.configuration import SamplingDefaults
from confide.client.options import HybridOptions
from confide.client.own_receipts import OwnReceipts
from confide.enclave.api.limits import Limits
from confide.enclave.api.receipts import Finish, Receipted
from confide.enclave.engines.engine import Sampling
from confide.errors import PASSING, ConfideError, IntegrityError, ServerDistrusted, WrongMode
from confide.extras import named_extras
from confide.proxy.backend import Backend, Question
from confide.proxy.facts import hybrid_facts
from confide.proxy.receipts import GENERATIONS, ReceiptShelf
from confide.receipts.client import verify_client_receipt
from confide.receipts.client_key import ClientKey
from confide.receipts.receipt import HEADER, Event

_LIMITS: Final = Limits(waiting=32, waiting_seconds=7200.0, idle_seconds=1800.0, engine_seconds=1800.0)
"""One answer is made at a time, and the others wait for it."""
_DEFAULTS: Final = SamplingDefaults(Sampling.temperature, Sampling.top_p, Sampling.top_k, _LIMITS.answer_tokens)
_EVER: Final = 365 * 24 * 3600.0
"""A connection to a layer server verifies it whenever it is made; nothing is left to a timer."""


@dataclass(frozen=True)
class ShellAddress:
    """The client's folder, and its layer server's address or a placement. options: see HybridModel.from_shell."""

    folder: Path
    server: str | Path
    options: HybridOptions = field(default_factory=HybridOptions, repr=False)


class _Issuer:
    """Has this client's own receipt made for each answer, and kept."""

    def __init__(self, own: OwnReceipts, shelf: ReceiptShelf) -> None:
        self._own, self._shelf = own, shelf

    def headers(self, receipt_id: str) -> Mapping[str, str]:
        return {HEADER: receipt_id}

    def begin(self, method: str, endpoint: str, body: bytes) -> Finish:
        question, made = self._own.question(endpoint, body), GENERATIONS.get()

        def finish(receipt_id: str, _: str | None, returned: str, _noted: Sequence[Event]) -> None:
            receipt = self._own.make(question, returned, made, receipt_id)
            result = verify_client_receipt(receipt, client_key=self._own.public_key, request=body)
            self._shelf.put(receipt_id, receipt.write(), result.verdict())

        return finish


class ShellBackend(Backend):
    """Opens the shell, and answers through the API that serves models in trusted environments."""

    def __init__(self, name: str, address: ShellAddress) -> None:
        super().__init__(name or address.folder.resolve().name, _EVER)
        self.address = address
        self._engine: Any = None
        self._app: ASGIApp | None = None
        self._wrong: IntegrityError | None = None

    @property
    def models(self) -> Sequence[str]:
        """The one name."""
        return [self.name]

    def describe(self) -> dict[str, Any]:
        """What the server saw so far, and who can see what."""
        found: dict[str, Any] = {"mode": "hybrid", "url": str(self.address.server)}
        if self._engine is not None:
            found |= hybrid_facts(self._engine.hybrid) | {"kept_tokens": self._engine.kept.tokens}
            found["receipts"] = {"promised": True, **self.receipts.describe()}
            found["runs"] = {"engine": "confide", "quantization": self._engine.facts.quantization}
        return found

    async def verify(self) -> None:
        if self._engine is not None and (self.problem is None or isinstance(self.problem, PASSING)):
            # The server was away. The shell is what it was, and so are the conversations; the server shows itself anew.
            await self.look()
            return
        if self._engine is not None:
            await self._engine.close()
            self._engine = self._app = None
        loop = asyncio.get_running_loop()
        try:
            engine, app = await asyncio.to_thread(
                self._open, lambda error: loop.call_soon_threadsafe(self._failed, error)
            )
        except ServerDistrusted:
            self._wrong = None  # the list knows of it now, and whoever clears the list decides
            raise
        if self._wrong is not None:
            await engine.close()
            raise self._wrong.with_traceback(None)
        self._engine, self._app = engine, app

    async def look(self) -> None:
        """By a ping, where no question is under way."""
        if self._engine is None:
            return
        try:
            await asyncio.to_thread(self._engine.hybrid.product.require_server)
        except IntegrityError as wrong:  # before whoever asked has come to say so
            self._wrong = wrong
            raise

    def _failed(self, error: ConfideError) -> None:
        if isinstance(error, IntegrityError):
            self._wrong = error
        self.failed(error)

    def _open(self, on_failure: Callable[[ConfideError], object]) -> tuple[Any, ASGIApp]:
        # Only where it is wanted: importing torch and transformers takes seconds, and other backends need neither.
        with named_extras():
            from confide.enclave.api.answer import Serving
            from confide.enclave.api.app import api_app
            from confide.hybrid.model import HybridModel
            from confide.proxy.shell_engine import ShellEngine

        options = HybridOptions(**{"progress": False, **self.address.options})
        hybrid = HybridModel.from_shell(self.address.folder, server=self.address.server, **options)
        try:
            engine = ShellEngine(hybrid, self.name, on_failure)
            own = OwnReceipts(ClientKey.open(), hybrid, self.name, _DEFAULTS)
            return engine, Receipted(api_app(Serving(engine, limits=_LIMITS)), _Issuer(own, self.receipts))
        except BaseException:
            hybrid.close()
            raise

    async def begin(self, question: Question, scope: Scope, receive: Receive) -> ASGIApp:
        """By the API's own endpoints, which answer what goes wrong as well: tokens may be spent by then."""
        app = self._app
        if app is None:
            raise WrongMode("The shell is not open; try again in a moment.")
        body: list[Message] = [{"type": "http.request", "body": question.body, "more_body": False}]

        async def again() -> Message:
            return body.pop() if body else await receive()

        path = f"/v1{question.path}"
        inner = {**scope, "path": path, "raw_path": path.encode(), "root_path": "", "app": None}

        async def answer(_scope: Scope, _receive: Receive, send: Send) -> None:
            GENERATIONS.set([])
            await app(inner, again, send)

        return answer

    async def close(self) -> None:
        """Close the connection to the layer server."""
        if self._engine is not None:
            await self._engine.close()
