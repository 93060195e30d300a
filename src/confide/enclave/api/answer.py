"""An answer in the making, under the limits: from a prompt to pieces of text."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect, Request

from confide.enclave.api.limits import Limits
from confide.enclave.api.metrics import Metrics
from confide.enclave.api.pulse import Pulse
from confide.enclave.api.schemas import Fields, SamplingFields, parse
from confide.enclave.engines.engine import Engine, FinishReason, Message, Piece, Prompt, Sampling
from confide.enclave.self_test import SelfTest
from confide.errors import EngineError, PromptRefused, PromptTooLong, RequestRefused

_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Serving:
    """What every endpoint works with. self_test: None where there is none."""

    engine: Engine
    self_test: SelfTest | None = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    pulse: Pulse = field(default_factory=Pulse)

    def require_sound(self) -> None:
        """SelfTestFailed once the engine is known to compute garbage."""
        if self.self_test is not None:
            self.self_test.require_passed()

    @contextmanager
    def engine_at_work(self) -> Iterator[None]:
        """What the engine raises here goes on; where it is not the prompt's fault, the engine is looked after."""
        try:
            yield
        except PromptRefused:
            raise
        except EngineError:
            self.pulse.doubt()
            raise


async def read(request: Request, kind: type[Fields]) -> Fields:
    """What a request asks for, from its body, which `Admission` has taken in."""
    return parse(await request.body(), kind)


class Answer:
    """The pieces of one answer; to be closed, which stops the engine."""

    def __init__(self, prompt_tokens: int, first: Piece, rest: AsyncGenerator[Piece, None], metrics: Metrics) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self._first = first
        self._rest = rest
        self._metrics = metrics

    async def __aiter__(self) -> AsyncIterator[Piece]:
        self._count(self._first)
        yield self._first
        async for piece in self._rest:
            self._count(piece)
            yield piece

    def _count(self, piece: Piece) -> None:
        self.tokens += piece.tokens
        self._metrics.answer_tokens.add(piece.tokens)

    async def whole(self) -> tuple[str, FinishReason | None]:
        """The text, and why it ends."""
        pieces = [piece async for piece in self]
        return "".join(piece.text for piece in pieces), pieces[-1].finish

    async def aclose(self) -> None:
        """Stop the engine's work on this."""
        await self._rest.aclose()

    def usage(self) -> dict[str, int]:
        """Tokens so far, as OpenAI counts them."""
        total = self.prompt_tokens + self.tokens
        return {"prompt_tokens": self.prompt_tokens, "completion_tokens": self.tokens, "total_tokens": total}


async def begin(serving: Serving, request: Request, asked: str | Sequence[Message], fields: SamplingFields) -> Answer:
    """An answer whose first piece is there, so that all that can be wrong with the request has been said."""
    started = time.monotonic()
    prompt = await while_connected(request, serving.engine.read(asked))
    prompt_tokens = len(prompt.tokens)
    sampling = _sampling(serving, prompt_tokens, fields)
    pieces = _pieces(serving, prompt, sampling)
    try:
        first = await while_connected(request, anext(pieces))
    except BaseException:
        await pieces.aclose()
        raise
    serving.metrics.first_piece.observe(time.monotonic() - started)
    serving.metrics.prompt_tokens.add(prompt_tokens)
    return Answer(prompt_tokens, first, pieces, serving.metrics)


async def while_connected(request: Request, work: Coroutine[Any, Any, _Result]) -> _Result:
    """What `work` gives; it is cancelled when the client goes away, and ClientDisconnect is raised."""
    working, leaving = asyncio.ensure_future(work), asyncio.ensure_future(_departure(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _departure(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _pieces(serving: Serving, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
    """The engine's that are not empty, to the one that says why it is the last.

    AnswerTimedOut where the engine gives nothing to anybody any more, SelfTestFailed where it turns out meanwhile to
    compute garbage.
    """
    with serving.engine_at_work():
        async with aclosing(serving.engine.generate(prompt, sampling)) as pieces:
            while True:
                try:
                    piece = await serving.pulse.next(pieces, serving.limits.engine_seconds)
                except StopAsyncIteration:
                    raise EngineError("The model's answer broke off; ask again.") from None
                serving.require_sound()
                if not piece.empty:
                    yield piece
                if piece.finish:
                    return


def _sampling(serving: Serving, prompt_tokens: int, fields: SamplingFields) -> Sampling:
    limits, context = serving.limits, serving.engine.facts.context
    room = context - prompt_tokens
    if prompt_tokens > limits.prompt_tokens or room < 1:
        most = min(limits.prompt_tokens, context - 1)
        raise PromptTooLong(f"The prompt has {prompt_tokens} tokens, and {most} are taken; shorten it.")
    if fields.max_tokens is not None and fields.max_tokens > limits.answer_tokens:
        raise RequestRefused(f"Answers have at most {limits.answer_tokens} tokens here; ask for less.", "max_tokens")
    return Sampling(
        max_tokens=fields.max_tokens or min(limits.answer_tokens, room),
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=fields.top_k or 0,
        seed=fields.seed,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
    )
