"""An engine that is no model: it echoes, word by word, and notes what becomes of it."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from confide.enclave.engines.engine import Chance, Chosen, EngineFacts, Message, Piece, Prompt, Sampling
from confide.enclave.engines.tools import Tool
from confide.errors import PromptTooLong, RequestRefused


def chosen(text: str, index: int, sampling: Sampling) -> tuple[Chosen, ...]:
    """What is told of a word, such as it is: the less probable, the later it comes and the larger the seed."""
    if sampling.logprobs is None or not text:
        return ()
    others = tuple(Chance.of(b"other%d" % rank, -5.0 - rank) for rank in range(sampling.logprobs))
    return (Chosen(Chance.of(text.encode(), -0.5 * index - (sampling.seed or 0)), others),)


class FakeEngine:
    """Answers "You said: PROMPT", a word a piece and token; or `says`, whatever it was asked.

    pause: seconds before each piece. broken: what it raises after the second piece. running, stopped: generations
    in progress, and those that were closed before their end. asked: the samplings it got.
    """

    def __init__(
        self,
        pause: float = 0.0,
        broken: Exception | None = None,
        context: int = 1000,
        parallel: int = 16,
        cannot: frozenset[str] = frozenset(),
        template: str = "",
        says: str = "",
    ) -> None:
        self.facts = EngineFacts("echo", "fake", "none", context, parallel=parallel, cannot=cannot, template=template)
        self.says = says
        self.prompts: list[str] = []
        self.turns: list[Sequence[Message]] = []
        self.pause = pause
        self.broken = broken
        self.running = 0
        self.most_running = 0
        self.stopped = 0
        self.closed = False
        self.weights = "11" * 32
        self.asked: list[Sampling] = []

    async def read(self, asked: str | Sequence[Message], tools: Sequence[Tool] = ()) -> Prompt:
        if not isinstance(asked, str):
            self.turns.append(asked)
            asked = " | ".join(f"{message.role}: {message.content}" for message in asked)
            if tools and "tools" not in self.facts.template:
                raise RequestRefused("No tools here; leave them out.", "tools")
            asked += "".join(f" {tool.name}" for tool in tools)
            self.prompts.append(asked)
        return Prompt(asked, range(len(asked.split())))

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        prompt = prompt if isinstance(prompt, str) else prompt.text
        if len(prompt.split()) + sampling.max_tokens > self.facts.context:
            raise PromptTooLong("The prompt and its answer do not fit; shorten one of them.")
        self.asked.append(sampling)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        ended = False
        try:
            for index, word in enumerate(words := (self.says or f"You said: {prompt}").split(" ")):
                await asyncio.sleep(self.pause)
                if self.broken and index == 2:
                    raise self.broken
                last = index == len(words) - 1
                full = index + 1 == sampling.max_tokens
                stop = next((text for text in sampling.stop if text in word), None)
                finish = "stop" if stop or last else "length" if full else None
                ended = finish is not None
                text = "" if stop else word if last or full else word + " "
                yield Piece(
                    text, 1, finish, chosen=chosen(text, index, sampling), cached=2 if not index else 0, stop=stop
                )
                if ended:
                    return
        finally:
            self.running -= 1
            self.stopped += not ended

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        await asyncio.sleep(self.pause)
        return [[float(len(text if isinstance(text, str) else text.text)), 0.5] for text in texts]

    def weights_digest(self) -> str:
        return self.weights

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        words = f"You said: {prompt}".split(" ")
        return [10.0] * min(tokens, len(words) - 1)

    async def close(self) -> None:
        self.closed = True
