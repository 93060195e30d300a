"""An answer in the making, under the limits: from a prompt to pieces of text."""

import asyncio
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final, TypeVar

from starlette.requests import ClientDisconnect, Request

from confide.channel.encryption import CACHE_SALT
from confide.enclave.api.calls import CallPlan, whole_calls
from confide.enclave.api.limits import Limits
from confide.enclave.api.metrics import Metrics
from confide.enclave.api.pulse import Pulse
from confide.enclave.api.schemas import Fields, SamplingFields, parse
from confide.enclave.api.sources import Search
from confide.enclave.api.trace import Trace, trace_of
from confide.enclave.api.users import User, Users, user_of
from confide.enclave.engines.engine import Chosen, Engine, EngineFacts, FinishReason, Message, Piece, Prompt, Sampling
from confide.enclave.engines.forms import Form
from confide.enclave.engines.tools import Offer, ToolCall
from confide.enclave.self_test import SelfTest
from confide.errors import BudgetExhausted, EngineError, PromptRefused, PromptTooLong, RequestRefused, ServerBusy
from confide.ledger.store import INPUT, OUTPUT

if TYPE_CHECKING:
    from confide.enclave.api.traces import Traces

_Result = TypeVar("_Result")
_SALT: Final = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Serving:
    """What every endpoint works with. self_test, search: None where there is none. users: None where everybody may ask.

    traces: where the requests' traces go, None for nowhere.
    """

    engine: Engine
    self_test: SelfTest | None = None
    limits: Limits = field(default_factory=Limits)
    metrics: Metrics = field(default_factory=Metrics)
    pulse: Pulse = field(default_factory=Pulse)
    users: Users | None = None
    traces: "Traces | None" = None
    search: Search | None = None

    def require_sound(self) -> None:
        """SelfTestFailed once the engine is known to compute garbage."""
        if self.self_test is not None:
            self.self_test.require_passed()

    def require_alive(self) -> None:
        """EngineUnavailable while the engine makes no tokens, LedgerUnavailable while none can be counted."""
        self.pulse.require()
        if self.users is not None:
            self.users.require_alive()

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


@dataclass(frozen=True)
class Wanted:
    """What is asked for besides how each token is chosen.

    choices: answers to give; candidates: to make, of which the most probable are given. logprobs, form: see `Sampling`.
    offer: tools that may be called; None for none. limit: the field that bounds the answer, as the request calls it.
    """

    choices: int = 1
    candidates: int = 1
    logprobs: int | None = None
    form: Form | None = None
    offer: Offer | None = None
    limit: str = "max_tokens"


@dataclass(frozen=True)
class Choice:
    """One whole answer. calls: of tools, beside the text or in its place. stop: as in `Piece`."""

    text: str
    chosen: tuple[Chosen, ...]
    finish: FinishReason | None
    calls: tuple[ToolCall, ...] = ()
    stop: str | None = None

    @property
    def likelihood(self) -> float:
        """The mean logarithm of its tokens' probabilities."""
        return sum(one.token.logprob for one in self.chosen) / max(1, len(self.chosen))


Part = tuple[int, Piece]
"""A piece, and which of the answers it is a part of."""


class Answer:
    """The answers to one request, one after the other, by their pieces; to be closed, which stops the engine."""

    def __init__(
        self,
        prompt_tokens: int,
        wanted: Wanted,
        first: Part,
        rest: AsyncGenerator[Part, None],
        metrics: Metrics,
        trace: Trace,
    ) -> None:
        self.prompt_tokens = prompt_tokens
        self.tokens = 0
        self._cached = 0
        self._wanted = wanted
        self._first = first
        self._rest = rest
        self._metrics = metrics
        self._trace = trace
        trace.decode()

    async def __aiter__(self) -> AsyncIterator[Part]:
        self._count(self._first)
        yield self._first
        async for part in self._rest:
            self._count(part)
            yield part

    def _count(self, part: Part) -> None:
        index, piece = part
        self.tokens += piece.tokens
        if not index:  # the others' prompt is the same, and counts once
            self._cached += piece.cached
        self._metrics.answer_tokens.add(piece.tokens)

    async def whole(self) -> list[Choice]:
        """The answers that are to be given."""
        made: list[list[Piece]] = [[] for _ in range(self._wanted.candidates)]
        async for index, piece in self:
            made[index].append(piece)
        choices = [
            Choice(
                "".join(piece.text for piece in pieces),
                tuple(one for piece in pieces for one in piece.chosen),
                pieces[-1].finish,
                whole_calls(part for piece in pieces for part in piece.calls),
                stop=pieces[-1].stop,
            )
            for pieces in made
        ]
        if self._wanted.candidates > self._wanted.choices:
            choices.sort(key=lambda choice: choice.likelihood, reverse=True)
        return choices[: self._wanted.choices]

    async def aclose(self) -> None:
        """Stop the engine's work on this."""
        await self._rest.aclose()
        self._trace.decoded()

    def usage(self) -> dict[str, Any]:
        """Tokens so far, as OpenAI counts them: those of all candidates, and the prompt's once."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.tokens,
            "total_tokens": self.prompt_tokens + self.tokens,
            "prompt_tokens_details": {"cached_tokens": self._cached},
        }


async def begin(
    serving: Serving,
    request: Request,
    asked: str | Sequence[Message],
    fields: SamplingFields,
    wanted: Wanted = Wanted(),
) -> Answer:
    """An answer whose first piece is there, so that all that can be wrong with the request has been said."""
    started = time.monotonic()
    plan, wanted = planned(serving.engine.facts, fields, wanted)
    prompt = await while_connected(request, plan.read(serving.engine, asked))
    prompt_tokens = len(prompt.tokens)
    user = user_of(request)
    sampling = _sampling(serving, prompt_tokens, fields, wanted)
    sampling = replace(sampling, markers=plan.style.markers, salt=_salt(request, user))
    parts = _parts(serving, prompt, sampling, wanted.candidates, plan)
    trace = trace_of(request)
    if user is not None:
        parts = _charged(parts, user, trace, prompt_tokens, wanted.candidates)
    try:
        with trace.step("prefill"):
            first = await while_connected(request, anext(parts))
    except BaseException:
        await parts.aclose()
        raise
    serving.metrics.first_piece.observe(time.monotonic() - started)
    serving.metrics.prompt_tokens.add(prompt_tokens)
    return Answer(prompt_tokens, wanted, first, parts, serving.metrics, trace)


def planned(facts: EngineFacts, fields: SamplingFields, wanted: Wanted) -> tuple[CallPlan, Wanted]:
    """What to do about calls of tools, and what is wanted then. RequestRefused for what an engine cannot do."""
    _require_able(facts, fields, wanted)
    plan = CallPlan.of(wanted.offer, facts.template, free="response_format" not in facts.cannot)
    wanted = replace(wanted, form=wanted.form or plan.form)
    if wanted.form is not None and fields.stop:
        raise RequestRefused("`stop` could cut an answer that must have a form; leave it out.", "stop")
    return plan, wanted


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


async def _parts(
    serving: Serving, prompt: Prompt, sampling: Sampling, answers: int, plan: CallPlan
) -> AsyncGenerator[Part, None]:
    """One answer after the other: a request has one place in the line, and computes one thing at a time."""
    for index in range(answers):
        reader = plan.reader()
        seed = None if sampling.seed is None else sampling.seed + index
        async with aclosing(_pieces(serving, prompt, replace(sampling, seed=seed))) as pieces:
            async for piece in pieces:
                for part in [piece] if reader is None else reader.with_calls(piece):
                    yield index, part


async def _charged(
    parts: AsyncGenerator[Part, None], user: User, trace: Trace, prompt_tokens: int, answers: int
) -> AsyncGenerator[Part, None]:
    """Each part once it is charged, and the prompt before the first. BudgetExhausted before any work is spent.

    Nothing is charged where the engine gives nothing, but for a client that leaves meanwhile. Where the tokens end, so
    do the answers, as those do that have their full length.
    """
    async with aclosing(parts):
        with user.holding(prompt_tokens + 1):
            try:
                part = await anext(parts)
            except (asyncio.CancelledError, GeneratorExit):
                user.charge_later(INPUT, prompt_tokens)
                raise
        with trace.step("ledger"):
            await user.charge(INPUT, prompt_tokens)
        while True:
            index, piece = part
            try:
                await user.charge(OUTPUT, piece.tokens)
            except (BudgetExhausted, ServerBusy):  # the latter where other servers have leased what is left
                for left in range(index, answers):
                    yield left, Piece("", 0, "length")
                return
            yield part
            try:
                part = await anext(parts)
            except StopAsyncIteration:
                return


def _salt(request: Request, user: User | None) -> bytes | None:
    """Of the request or its user, where it has either.

    RequestRefused for another one than clients make: it must be hard to guess.
    """
    given = request.headers.getlist(CACHE_SALT)
    if len(given) > 1 or (given and not _SALT.fullmatch(given[0])):
        raise RequestRefused(f"`{CACHE_SALT}` is not 32 random bytes in hexadecimal; send such a one, or none.")
    salt = bytes.fromhex(given[0]) if given else None
    return salt if user is None else user.salt(salt)


def _require_able(facts: EngineFacts, fields: SamplingFields, wanted: Wanted) -> None:
    """RequestRefused, by its name, for what changes an answer and this engine has no means for."""
    asked = {
        **{name: getattr(fields, name) for name in ("top_k", "min_p", "presence_penalty", "frequency_penalty")},
        "logit_bias": fields.logit_bias,
        "logprobs": wanted.logprobs is not None,
        "best_of": wanted.candidates > wanted.choices,
        "response_format": wanted.form is not None,
        "tools": wanted.offer is not None,
    }
    for name, value in asked.items():
        if value and name in facts.cannot:
            raise RequestRefused(f"`{name}` is not offered with this model; leave it out.", name)
    if wanted.form is not None and wanted.offer is not None:
        raise RequestRefused("`response_format` does not go with `tools` that may be called; leave one out.", "tools")


def _sampling(serving: Serving, prompt_tokens: int, fields: SamplingFields, wanted: Wanted) -> Sampling:
    limits, context = serving.limits, serving.engine.facts.context
    room = context - prompt_tokens
    if prompt_tokens > limits.prompt_tokens or room < 1:
        most = min(limits.prompt_tokens, context - 1)
        raise PromptTooLong(f"The prompt has {prompt_tokens} tokens, and {most} are taken; shorten it.")
    if fields.max_tokens is not None and fields.max_tokens * wanted.candidates > limits.answer_tokens:
        raise RequestRefused(
            f"The answers to a request have at most {limits.answer_tokens} tokens here in all; ask for less.",
            wanted.limit,
        )
    told = wanted.logprobs
    if told is None and wanted.candidates > wanted.choices:
        told = 0  # by which the best are known
    return Sampling(
        max_tokens=fields.max_tokens or min(limits.answer_tokens // wanted.candidates, room),
        temperature=1.0 if fields.temperature is None else fields.temperature,
        top_p=1.0 if fields.top_p is None else fields.top_p,
        top_k=fields.top_k or 0,
        min_p=fields.min_p or 0.0,
        presence_penalty=fields.presence_penalty or 0.0,
        frequency_penalty=fields.frequency_penalty or 0.0,
        logit_bias={int(token): bias for token, bias in (fields.logit_bias or {}).items()},
        seed=fields.seed,
        stop=(fields.stop,) if isinstance(fields.stop, str) else tuple(fields.stop or ()),
        logprobs=told,
        form=wanted.form,
    )
