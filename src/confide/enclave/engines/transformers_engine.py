"""Any stock causal language model of transformers, on one thread that gives each request a token in its turn.

Each request has its own KV cache and its own random numbers. Its prompt is read in parts, whatever of it was read
before: see `prefixes`. Parts of prompts and the next tokens of all requests are computed together where the model can
be, see `rows`: then the last bit of a logit hangs on how many they are, and a seed gives the same answer in all but the
closest of choices. On what the others say nothing hangs.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Generator, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import Final, cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.enclave.engines.answer_text import AnswerText, TokenBytes
from confide.enclave.engines.choosing import Chooser, Likely
from confide.enclave.engines.engine import PARALLEL, Dtype, EngineFacts, Piece, Prompt, Sampling
from confide.enclave.engines.guides import Guide, Guides
from confide.enclave.engines.held import Buffer, digest_of
from confide.enclave.engines.memory import available_bytes
from confide.enclave.engines.prefixes import Names, Prefixes
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.enclave.engines.rows import Batching, Row, Rows, explained
from confide.enclave.engines.turns import Part, Turns
from confide.errors import EngineError
from confide.models.context import longest_context
from confide.models.ends import end_tokens

PREFILL: Final = 256
"""Tokens of a prompt that are read in one turn: short enough that other requests hardly notice a long one."""
_KEPT_SHARE: Final = 8
"""One part in so many of the memory that is there once the model is loaded, for what is kept of prompts."""
LOOK_SECONDS: Final = 60.0
"""How often it is looked whether anything of that has not been used for too long."""
_DTYPES: Final = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}
"""By the names of `Dtype`, and float16 for models that others load; the rest has torch's names."""

_log = logging.getLogger(__name__)


class TransformersEngine(Prompted):
    """The Engine of a loaded model in evaluation mode and its fast tokenizer.

    name: the model's in the API. context: tokens at most, and no more than the model's configuration says.
    kept_bytes: of what was read of prompts; an eighth of the memory that is left without. adapters: the digests of
    those in its weights. parallel: requests that are computed at once; whoever calls lets no more in.
    Raises EngineError where nothing says how long a context is, and for a tokenizer that is not fast.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        context: int | None = None,
        kept_bytes: int | None = None,
        adapters: tuple[str, ...] = (),
        parallel: int = PARALLEL,
    ) -> None:
        if not tokenizer.is_fast:
            raise EngineError(f"{name} has a tokenizer without a tokenizer.json; convert it to a fast one first.")
        prompts = Prompts(tokenizer, _context(model, name, context), by_text=False)
        attention = str(getattr(model.config, "_attn_implementation", None))  # before `Rows` puts its own around it
        self._rows = Rows(model)
        _log.info("Requests for %s are decoded %s", name, self._rows.batching)
        super().__init__(_facts(model, name, prompts, adapters, attention, self._rows.batching, parallel), prompts)
        self._model = model
        self._decoder = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        self._bytes = TokenBytes(self._decoder)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._ends = frozenset(end_tokens(model, tokenizer))
        self._guides = Guides(self._bytes, self._vocabulary, self._bytes.specials, sorted(self._ends))
        self._prefixes = Prefixes(available_bytes() // _KEPT_SHARE if kept_bytes is None else kept_bytes)
        self._looking: asyncio.AbstractEventLoop | None = None
        self._turns = Turns("transformers engine")

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer, a token at a time. Raises PromptTooLong, and EngineError where the model fails."""
        tokens = list((await self._as_prompt(prompt)).tokens)
        self._prompts.require_fit(len(tokens), sampling)
        self._prompts.require_known(sampling.logit_bias, self._vocabulary)
        guide = None if sampling.form is None else await self._guides.guide(sampling.form)
        try:
            async with aclosing(self._turns.run(self._answer(tokens, sampling, guide))) as pieces:
                async for piece in pieces:
                    yield piece or Piece("", 0)
        finally:
            if sampling.salt is not None:
                self._look_later()

    async def embed(self, texts: Sequence[str | Prompt]) -> list[list[float]]:
        """The mean over tokens of the last hidden state, scaled to Euclidean length 1."""
        inputs = []
        for text in texts:
            tokens = list((await self._as_prompt(text)).tokens)
            self._prompts.require_short(len(tokens), self._prompts.context)
            inputs.append(tokens)
        async with aclosing(self._turns.run(self._embeddings(inputs))) as steps:
            [embeddings] = [found async for found in steps if found is not None]
        return embeddings

    def weights_digest(self) -> str:
        """Over the parameters and the buffers that are stored with them, as torch holds them."""
        tensors = self._model.state_dict()
        return digest_of(
            (name, _name(tensor.dtype), tuple(tensor.shape), _content(tensor)) for name, tensor in tensors.items()
        )

    async def margins(self, prompt: str, tokens: int) -> list[float]:
        """From the logits, as `generate` computes them."""
        inputs = self._prompts.encode(prompt)
        self._prompts.require_fit(len(inputs), Sampling(tokens))
        async with aclosing(self._turns.run(self._margins(inputs, tokens))) as margins:
            return [margin async for margin in margins if margin is not None]

    async def close(self) -> None:
        """End what runs, and let go of the model and of what was read."""
        self._guides.close()
        await self._turns.close()
        self._prefixes.clear()
        del self._model

    def _look_later(self) -> None:
        """Have what is unused let go of in time, also where nobody asks any more."""
        loop = asyncio.get_running_loop()
        if self._looking is not loop:
            self._looking = loop
            loop.call_later(LOOK_SECONDS, self._look)

    def _look(self) -> None:
        self._looking = None
        self._prefixes.expire()
        if self._prefixes.size:
            self._look_later()

    def _margins(self, prompt: list[int], tokens: int) -> Generator[float | None, None, None]:
        """One step is one token, as in `_answer`; None for a part of the prompt."""
        row = self._rows.row(len(prompt))
        for start in range(0, len(prompt), PREFILL):
            row.read(prompt[start : start + PREFILL])
            yield None
        for _ in range(tokens):
            best = row.logits.topk(2)
            token = int(best.indices[0])
            if token in self._ends:
                return
            yield float(best.values[0] - best.values[1])
            row.read([token])

    def _answer(
        self, prompt: list[int], sampling: Sampling, guide: Guide | None
    ) -> Generator[Piece | Part, None, None]:
        """One step is a part of the prompt, and then one token of the answer."""
        names = Names.of(sampling.salt, prompt, PREFILL)
        row = self._rows.row(len(prompt))
        if row.cache is not None:
            self._prefixes.take(names, row.cache)
        cached = row.tokens
        try:
            for start in range(cached, len(prompt), PREFILL):
                part = prompt[start : start + PREFILL]
                row.follow(part)
                yield Part(len(part) / PREFILL, start + PREFILL >= len(prompt))
                _ = row.logits
                self._prefixes.put(names, start // PREFILL, row.cache)
            for piece in self._pieces(row, prompt, sampling, guide):
                yield replace(piece, cached=cached)
                cached = 0
        finally:
            row.leave()

    def _pieces(
        self, row: Row, prompt: list[int], sampling: Sampling, guide: Guide | None
    ) -> Generator[Piece, None, None]:
        """What follows a prompt that is read, a piece for each token."""
        text = AnswerText(self._decoder, prompt, sampling.stop, sampling.markers)
        choose = Chooser(sampling, guide)
        for left in reversed(range(sampling.max_tokens)):
            logits = row.logits
            token = choose(logits)
            if token in self._ends:
                yield Piece(text.rest(), 1, "stop", chosen=text.take_chosen(), stop=text.stopped_by)
                return
            likely = None if sampling.logprobs is None else Likely(logits, sampling.logprobs)
            part = text.add(token, None if likely is None else likely.chosen(token, self._bytes))
            if text.stopped:
                yield Piece(part, 1, "stop", chosen=text.take_chosen(), stop=text.stopped_by)
                return
            if guide is not None:
                guide.add(token)
                if guide.over:
                    yield Piece(part + text.rest(), 1, "stop", chosen=text.take_chosen())
                    return
            if not left:
                yield Piece(part + text.rest(), 1, "length", chosen=text.take_chosen())
                return
            row.follow([token])
            yield Piece(part, 1, chosen=text.take_chosen())

    def _embeddings(self, inputs: list[list[int]]) -> Generator[list[list[float]] | None, None, None]:
        """One step is a part of a text, and the last one gives all embeddings."""
        embeddings: list[list[float]] = []
        for tokens in inputs:
            cache, total = None, torch.zeros(())
            for start in range(0, len(tokens), PREFILL):
                with torch.inference_mode(), explained():
                    ids = torch.tensor([tokens[start : start + PREFILL]], device=self._model.device)
                    output = self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                    total = total + output.last_hidden_state[0].float().sum(0).cpu()
                yield None
            embeddings.append(cast(list[float], torch.nn.functional.normalize(total, dim=0).tolist()))
        yield embeddings


def _facts(
    model: PreTrainedModel,
    name: str,
    prompts: Prompts,
    adapters: tuple[str, ...],
    attention: str,
    batching: Batching,
    parallel: int,
) -> EngineFacts:
    quantization, dtype = _name(_main_dtype(model)), _name(model.dtype)
    settings = {
        "attention": attention,
        "batching": batching.value,
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        "threads": str(torch.get_num_threads()),
        "parallel": str(parallel),
        "matmul-precision": torch.get_float32_matmul_precision(),
    }
    return EngineFacts(
        name,
        "transformers",
        quantization,
        prompts.context,
        version=f"{transformers.__version__}, torch {torch.__version__}",
        dtype=dtype,
        template=prompts.template,
        adapters=adapters,
        settings=settings,
        parallel=parallel,
        rounded=quantization != Dtype.F32,
    )


def _main_dtype(model: PreTrainedModel) -> torch.dtype:
    """That of most weights; a tensor that has two names counts twice, as it does in products."""
    weights: dict[torch.dtype, int] = {}
    for tensor in model.state_dict().values():
        weights[tensor.dtype] = weights.get(tensor.dtype, 0) + tensor.numel()
    return max(weights, key=weights.__getitem__)


def _name(dtype: torch.dtype) -> str:
    return _DTYPES.get(dtype, str(dtype).removeprefix("torch."))


def _content(tensor: Tensor) -> Buffer:
    """A tensor's bytes, where they are if they are in the processor's memory and in order."""
    flat = tensor.detach().cpu().contiguous().view(-1)
    return flat.view(torch.uint8).numpy().data


def _context(model: PreTrainedModel, name: str, most: int | None) -> int:
    own = longest_context(model.config)
    if own is None and most is None:
        raise EngineError(f"The configuration of {name} does not say how long its context is; give it with --context.")
    return min(filter(None, (own, most)))
