"""A shell on its layer server as an engine of the API: the same endpoints as in a trusted environment, made here.

One answer is made at a time, to its padded length. What is streamed goes on, without text, for as long as the server is
asked: the end of a text must not be seen from what this process does next.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Sequence
from typing import Any, cast

import torch
import transformers
from torch import Tensor
from transformers import LogitsProcessor, PreTrainedTokenizerFast, StoppingCriteria

from confide.enclave.engines.answer_text import AnswerText, TokenBytes
from confide.enclave.engines.choosing import Adjusting, Likely
from confide.enclave.engines.engine import Chosen, EngineFacts, FinishReason, Piece, Prompt, Sampling
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.errors import ConfideError, EngineError, IntegrityError, PromptRefused
from confide.hybrid.client.generation import Generated, PaddedStreamer
from confide.hybrid.conversations import KeptConversations
from confide.hybrid.model import HybridModel
from confide.models.context import DEFAULT_CONTEXT, longest_context
from confide.models.ends import end_tokens
from confide.models.sampling import generation_options
from confide.proxy.receipts import GENERATIONS


class ShellEngine(Prompted):
    """The Engine of an open shell. name: in the API. Raises EngineError where the tokenizer is missing or slow.

    on_failure: called on a thread of its own with what keeps an answer from being made, before whoever asked has it.
    cached_tokens: of all kept conversations together; four contexts without.
    """

    def __init__(
        self,
        hybrid: HybridModel,
        name: str,
        on_failure: Callable[[ConfideError], object] = lambda _: None,
        cached_tokens: int | None = None,
    ) -> None:
        tokenizer = hybrid.tokenizer
        if tokenizer is None or not tokenizer.is_fast:
            raise EngineError(f"{name} came without a fast tokenizer; split a model that has a tokenizer.json.")
        context = longest_context(hybrid.model.config) or DEFAULT_CONTEXT
        prompts = Prompts(tokenizer, context, by_text=False)
        facts = EngineFacts(
            name,
            "hybrid",
            "int8",
            context,
            version=transformers.__version__,
            template=prompts.template,
            parallel=1,
            cannot=frozenset({"response_format"}),  # its masks take times that depend on the text: see decision 29
        )
        super().__init__(facts, prompts)
        self.hybrid = hybrid
        self._decoder = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        self._bytes = TokenBytes(self._decoder)
        self._vocabulary = int(hybrid.model.config.get_text_config().vocab_size)
        self._ends = frozenset(end_tokens(hybrid.model, tokenizer))
        self._on_failure = on_failure
        self._turn = threading.Lock()
        self.kept = KeptConversations(hybrid.model.config, cached_tokens or 4 * context)

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer, a token at a time; pieces without text until the padded length, and then the last one."""
        tokens = (await self._as_prompt(prompt)).tokens
        self._prompts.require_fit(len(tokens), sampling)
        self._prompts.require_known(sampling.logit_bias, self._vocabulary)
        loop = asyncio.get_running_loop()
        pieces: asyncio.Queue[Piece | Exception] = asyncio.Queue()
        choosing = _Choosing(sampling, self._bytes)
        text = AnswerText(self._decoder, tokens, sampling.stop, sampling.markers)
        told = _Told(text, choosing, self._ends, _handing(loop, pieces))
        work = loop.run_in_executor(None, self._work, tokens, sampling, told)
        try:
            while True:
                piece = await pieces.get()
                if isinstance(piece, Exception):
                    raise piece
                if piece.finish and told.generated is not None:
                    GENERATIONS.get([]).append(told.generated)
                yield piece
                if piece.finish:
                    return
        finally:
            told.stop.set()  # the loop goes on to its padded length all the same
            if not work.cancel():
                work.add_done_callback(lambda done: done.cancelled() or done.exception())

    def _work(self, tokens: Sequence[int], sampling: Sampling, told: "_Told") -> None:
        try:
            with self._turn:
                self._generate(tokens, sampling, told)
        except Exception as raised:  # noqa: BLE001 - raised where the pieces are read
            error = self._explained(raised)
            if isinstance(error, ConfideError):
                self._on_failure(error)
            told.hand(error)

    def _explained(self, error: Exception) -> Exception:
        """Once an answer of the server's was wrong, that is why: whatever else fails then follows from it."""
        try:
            self.hybrid.product.require_intact()
        except IntegrityError as wrong:
            return wrong
        return error

    def _generate(self, tokens: Sequence[int], sampling: Sampling, told: "_Told") -> None:
        if told.stop.is_set():
            return  # whoever asked has left while it waited
        if sampling.seed is None:
            torch.seed()
        else:
            torch.manual_seed(sampling.seed)
        cache = self.kept.take(tokens)
        chance = generation_options(sampling.temperature, top_p=sampling.top_p)
        if chance["do_sample"]:
            chance["top_k"] = sampling.top_k  # also 0, which leaves none out, where transformers' own default is 50
            chance["min_p"] = sampling.min_p or None
        told.cached = int(cache.get_seq_length()) if cache is not None else 0
        result = self.hybrid.generate(
            input_ids=torch.tensor([list(tokens)]),
            attention_mask=torch.ones(1, len(tokens), dtype=torch.long),
            max_new_tokens=sampling.max_tokens,
            **chance,
            past_key_values=cache,
            return_dict_in_generate=True,
            streamer=told,
            logits_processor=[told.choosing],
            stopping_criteria=[_Asked(told.stop)],
        )
        told.generated = self.hybrid.generated
        sequence: list[int] = result.sequences[0].tolist()
        self.kept.put(sequence, result.past_key_values)
        ended = told.text.stopped or sequence[-1] in self._ends
        told.finish("stop" if ended else "length")

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        """PromptRefused: the padded generation is what hides a text's length, and an embedding has none."""
        raise PromptRefused("The hybrid mode gives no embeddings; use a model in a trusted environment for them.")

    def weights_digest(self) -> str:
        """Empty: they are on the layer server, whose every answer is checked."""
        return ""

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        """EngineError: answers are checked one by one, and need no test."""
        raise EngineError("The hybrid mode has no self-test; every answer is checked.")

    async def close(self) -> None:
        """Close the connection, and forget everything."""
        self.kept.clear()
        await asyncio.to_thread(self.hybrid.close)


class _Choosing(LogitsProcessor):
    """What the API asks for of the choice of each token, and `generate` does not know; as much work for each."""

    def __init__(self, sampling: Sampling, content: Callable[[int], bytes]) -> None:
        self._adjusting = Adjusting(sampling)
        self._most = sampling.logprobs
        self._content = content
        self._likely: Likely | None = None
        self._first = True

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        if not self._first:
            self._adjusting.add(int(input_ids[0, -1]))
        self._first = False
        if self._most is not None:
            self._likely = Likely(scores[0].float(), self._most)
        return self._adjusting(scores[0])[None]

    def chosen(self, token: int) -> Chosen | None:
        """What is told of the token that was chosen last."""
        return None if self._likely is None else self._likely.chosen(token, self._content)


class _Told(PaddedStreamer):
    """Hands on what each token adds to the text; after its end as many pieces without text. text: of the answer.

    cached: tokens of the prompt that had been read before. generated: what it took, once it is over.
    """

    def __init__(
        self, text: AnswerText, choosing: _Choosing, ends: frozenset[int], hand: Callable[[Piece | Exception], None]
    ) -> None:
        self.text = text
        self.choosing = choosing
        self._ends = ends
        self.hand = hand
        self.cached = 0
        self.generated: Generated | None = None
        self.stop = threading.Event()
        self._prompt = True

    def put(self, value: Tensor) -> None:
        """A token, or first of all the prompt."""
        if self._prompt:
            self._prompt = False
            return
        if self.text.stopped:  # the loop has not been asked yet
            self.put_padding(value)
            return
        token = int(value)
        part = self.text.add(token, None if token in self._ends else self.choosing.chosen(token))
        if self.text.stopped:
            self.stop.set()
        self.hand(Piece(part, 1, chosen=self.text.take_chosen(), cached=self.cached))
        self.cached = 0

    def put_padding(self, value: Tensor) -> None:
        """A token behind the end."""
        self.hand(Piece("", 0, padding=True))

    def end(self) -> None:
        """The loop has ended; `finish` says how."""

    def finish(self, reason: FinishReason) -> None:
        """Hand on what was held back, and why there is no more."""
        rest = "" if self.text.stopped else self.text.rest()
        self.hand(Piece(rest, 0, reason, chosen=self.text.take_chosen(), stop=self.text.stopped_by))


class _Asked(StoppingCriteria):
    def __init__(self, stop: threading.Event) -> None:
        self._stop = stop

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: Any) -> Tensor:
        return torch.full((len(input_ids),), self._stop.is_set(), device=input_ids.device)


def _handing(
    loop: asyncio.AbstractEventLoop, pieces: "asyncio.Queue[Piece | Exception]"
) -> Callable[[Piece | Exception], None]:
    def hand(piece: Piece | Exception) -> None:
        if not loop.is_closed():
            loop.call_soon_threadsafe(pieces.put_nowait, piece)

    return hand
