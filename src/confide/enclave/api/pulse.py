"""Whether the engine lives: it makes tokens for somebody, or one when it is asked for no other reason."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from confide.enclave.engines.engine import Engine, Piece, Sampling
from confide.errors import AnswerTimedOut, ConfideError, EngineError

PERIOD: Final = 15.0
"""Seconds without a token after which one is asked for."""
_PROMPT: Final = "Once upon a time there was a"

_log = logging.getLogger(__name__)


class Pulse:
    """What is known of an engine's life. failure: why no token can be made, as far as is known; None where one can."""

    def __init__(self, period: float = PERIOD) -> None:
        self.failure: ConfideError | None = None
        self._period = period
        self._moved = self._made = time.monotonic()
        self._doubted = asyncio.Event()

    def require(self) -> None:
        """Raise what keeps the engine from making a token."""
        if self.failure is not None:
            raise type(self.failure)(str(self.failure))

    def doubt(self) -> None:
        """Something went wrong that may be the engine's own trouble: find out now."""
        self._doubted.set()

    async def next(self, pieces: AsyncGenerator[Piece, None], patience: float) -> Piece:
        """The next piece. AnswerTimedOut where for so many seconds nothing comes, here or in any other answer.

        So whoever waits for others is not given up. Raises what the engine raises, such as StopAsyncIteration.
        """
        since = time.monotonic()
        coming = asyncio.ensure_future(anext(pieces))
        try:
            while not coming.done():
                left = max(since, self._moved) + patience - time.monotonic()
                if left <= 0:
                    self.doubt()
                    raise AnswerTimedOut("The model has stopped answering; try again later.")
                await asyncio.wait({coming}, timeout=left)
            piece = coming.result()
        finally:
            if not coming.done():
                coming.cancel()
                await asyncio.wait({coming})
        self._moved = time.monotonic()
        if not piece.empty:
            self._made, self.failure = self._moved, None
        return piece

    async def probe(self, engine: Engine, patience: float) -> None:
        """Ask for a token, and note what becomes of it."""
        try:
            async with aclosing(engine.generate(_PROMPT, Sampling(1, temperature=0))) as pieces:
                while (await self.next(pieces, patience)).empty:
                    pass
        except ConfideError as error:
            self._fail(error)
        except StopAsyncIteration:
            self._fail(EngineError("The engine ended an answer before its first token; restart it."))
        except Exception as error:  # noqa: BLE001 - whatever it is, no token was made
            self._fail(EngineError(f"The engine failed with {type(error).__name__}; look into its log."))

    async def keep_watching(self, engine: Engine, patience: float) -> None:
        """Until it is cancelled. While it fails, it is asked again five times a period, whoever else asks."""
        while True:
            if self.failure is not None:
                await asyncio.sleep(self._period / 5)
            else:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(self._made + self._period - time.monotonic()):
                        await self._doubted.wait()
                if not self._doubted.is_set() and time.monotonic() - self._made < self._period:
                    continue
            await self.probe(engine, patience)
            self._doubted.clear()

    def _fail(self, error: ConfideError) -> None:
        if self.failure is None:
            _log.error("The engine makes no token: %s", error)
        self.failure = error
