"""The known-answer self-test: the engine that serves gives the answers that it gave when the model was sealed.

Engines can compute garbage without any error: with a wrong kernel, a faulty memory, a driver that does not go with its
hardware. So the model's owner has it answer some prompts (`examine`), and whoever serves it has it answer them again
before the first request and every hour, through the very code that answers requests. The weights in memory are compared
with their digest as well.

Processors differ in the last digits of a sum, and where two tokens are almost as likely, so does the answer. So only
tokens count whose logit exceeded every other one by `MARGIN` when the model was sealed, many times what kernels differ.
"""

import asyncio
import hashlib
import logging
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import groupby
from typing import Final, Literal

import msgspec
import rfc8785

from confide.attest.configuration import SelfTestRun
from confide.enclave.engines.engine import Engine, Sampling
from confide.enclave.workload import Workload
from confide.errors import EngineError, PromptTooLong, SelfTestFailed, SelfTestMissing
from confide.packages.sealed.known_answers import KnownAnswer, KnownAnswers

MARGIN: Final = 0.5
"""In logits. The same weights on another processor, or in another engine of their precision, differ by hundredths."""
PERIOD: Final = 3600.0
PATIENCE: Final = 1800.0
"""Seconds for a self-test: it waits its turn among the requests of users."""
ANSWERS: Final = 6
LONGEST: Final = 12
ENOUGH: Final = 32
"""Tokens in all answers of a test, after which no more prompts are tried."""
LEAST: Final = 8
"""Fewer are no test. By chance a wrong engine gives one of them about once in its vocabulary."""
_LOOK_AHEAD: Final = 32
PROMPTS: Final = (
    "Once upon a time there was a",
    "The capital of France is the city of",
    "1, 2, 3, 4, 5, 6, 7, 8,",
    "Monday, Tuesday, Wednesday,",
    "a b c d e f g h i j k",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the",
    "To be, or not to be, that is",
    "def add(a, b):\n    return a +",
    "red, green, blue, red, green, blue, red, green,",
    "In the beginning God created the heaven and the",
    "Good morning, ladies and",
    "The old king called his three sons and said to",
    "She opened the door and looked into the",
    "Water is made of hydrogen and",
    "January, February, March, April,",
    '{"name": "value", "name": "value", "name":',
)

_log = logging.getLogger(__name__)


async def make_known_answers(engine: Engine, prompts: Sequence[str] = PROMPTS) -> KnownAnswers:
    """Ask a model, and keep what it is certain of. SelfTestMissing where that is too little to test with."""
    best: list[KnownAnswer] = []
    for prompt in prompts:
        if answer := await _certain_answer(engine, prompt):
            best = sorted([*best, answer], key=lambda answer: answer.tokens, reverse=True)[:ANSWERS]
        if sum(answer.tokens for answer in best) >= ENOUGH:
            break
    if sum(answer.tokens for answer in best) < LEAST:
        raise SelfTestMissing(
            "The model is not certain enough of its answers to be tested with them; give prompts that it knows how to "
            "go on with, one on each line of a file, with --prompts."
        )
    facts = engine.facts
    return KnownAnswers(1, facts.engine, facts.version, engine.weights_digest(), tuple(best))


async def _certain_answer(engine: Engine, prompt: str) -> KnownAnswer | None:
    """The longest run of certain tokens in the answer; what comes before it goes to the prompt."""
    try:
        margins = await engine.margins(prompt, _LOOK_AHEAD)
        start, length = _longest_run(margins)
        if start:
            prompt += await _greedy(engine, prompt, start)
            margins = await engine.margins(prompt, length)  # its text may be other tokens now
            start, length = _longest_run(margins)
    except PromptTooLong:
        return None
    length = min(length, LONGEST)
    if start or not length:
        return None
    answer = await _greedy(engine, prompt, length)
    return KnownAnswer(prompt, answer, length, round(min(margins[:length]), 3)) if answer else None


def _longest_run(margins: Sequence[float]) -> tuple[int, int]:
    """Where the longest run of certain tokens begins, and its length."""
    best, place = (0, 0), 0
    for certain, group in groupby(margins, lambda margin: margin >= MARGIN):
        length = len(list(group))
        if certain and length > best[1]:
            best = place, length
        place += length
    return best


async def _greedy(engine: Engine, prompt: str, tokens: int) -> str:
    """What `generate` answers. SelfTestFailed if it is of another length, or ends."""
    pieces = []
    async with aclosing(engine.generate(prompt, Sampling(tokens, temperature=0))) as answer:
        async for piece in answer:
            pieces.append(piece)
    if not pieces or pieces[-1].finish != "length" or sum(piece.tokens for piece in pieces) != tokens:
        raise SelfTestFailed("The engine ends a known answer where it goes on; restart it, or look into it.")
    return "".join(piece.text for piece in pieces)


@dataclass
class SelfTest:
    """The test of one engine that serves. failure: once it has failed it stays so, until the process is restarted.

    Each result stands in the workload's configuration.
    """

    engine: Engine
    known: KnownAnswers
    workload: Workload
    period: float = PERIOD
    patience: float = PATIENCE
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    failure: SelfTestFailed | None = None
    _aside: ThreadPoolExecutor = field(
        default_factory=lambda: ThreadPoolExecutor(1, "self-test", initializer=_step_aside), repr=False
    )

    async def run(self) -> None:
        """Once. SelfTestFailed where anything is not as it was when the model was sealed."""
        try:
            async with asyncio.timeout(self.patience):
                await self._compare()
        except SelfTestFailed as error:
            self._fail(error)
        except TimeoutError:
            self._fail(SelfTestFailed("The engine does not answer the self-test in time; restart it."))
        except Exception as error:  # noqa: BLE001 - whatever goes wrong, it must not go on serving
            self._fail(
                SelfTestFailed(f"The self-test broke off with {type(error).__name__}; restart the engine."), error
            )
        else:
            self._note("passed")

    async def keep_running(self) -> None:
        """Every hour, until it fails."""
        while self.failure is None:
            await asyncio.sleep(self.period)
            try:
                await self.run()
            except SelfTestFailed as error:
                _log.critical("The self-test failed, and nothing is answered any more: %s", error)

    def require_passed(self) -> None:
        """SelfTestFailed once it has failed."""
        if self.failure is not None:
            raise SelfTestFailed(str(self.failure))

    async def _compare(self) -> None:
        await self._compare_weights()
        for number, known in enumerate(self.known.answers, start=1):
            try:
                answer = await _greedy(self.engine, known.prompt, known.tokens)
            except EngineError as error:
                raise SelfTestFailed("The engine fails at a known answer; restart it, and read its log.") from error
            if answer != known.answer:
                facts = self.engine.facts
                rounding = f", or give --dtype f32: {facts.quantization} may be too few bits for it"
                raise SelfTestFailed(
                    f"The engine gives another answer than the known one, {number} of {len(self.known.answers)}: it "
                    "does not compute this model. Restart it, and look into engine, driver and memory if that "
                    f"does not help{rounding if facts.rounded else ''}."
                )

    async def _compare_weights(self) -> None:
        held, facts = self.workload.configuration.weights, self.engine.facts
        if held is None:  # an upstream has them
            return
        # Another version may name tensors otherwise, and rounded ones are others; then the digest of the start stands,
        # and the answers say the rest. The sum of a model and an adapter differs in its last digits from processor to
        # processor.
        same_engine = (self.known.engine, self.known.version) == (facts.engine, facts.version)
        same = same_engine and not facts.rounded and not facts.adapters
        if same and held.digest != self.known.weights:
            raise SelfTestFailed("The weights in memory are not those of the sealed model; seal it again, or restart.")
        if self.workload.configuration.self_test.outcome == "not-run":
            return  # they were read a moment ago
        digest = await asyncio.get_running_loop().run_in_executor(self._aside, self.engine.weights_digest)
        if digest != held.digest:
            raise SelfTestFailed("The weights in memory have changed; restart, and look into the machine's memory.")

    def _fail(self, error: SelfTestFailed, cause: Exception | None = None) -> None:
        self.failure = error
        self._note("failed")
        raise error from cause

    def _note(self, outcome: Literal["passed", "failed"]) -> None:
        at = self.now().strftime("%Y-%m-%dT%H:%M:%SZ")
        digest = hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(self.known))).hexdigest()
        run = SelfTestRun(outcome, at, digest, self.known.tokens)
        self.workload.configuration = msgspec.structs.replace(self.workload.configuration, self_test=run)


def _step_aside() -> None:
    """This thread, and those that it starts, run when nobody else wants to."""
    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 19)
