"""Any stock causal language model of transformers, on one thread that gives each request a token in its turn.

Each request has its own KV cache and its own random numbers, and is never computed together with another. So a seed
gives the same answer whatever else runs at the time.
"""

import inspect
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Final, cast

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from confide.enclave.engines.answer_text import AnswerText, TokenBytes
from confide.enclave.engines.choosing import Chooser, Likely
from confide.enclave.engines.engine import EngineFacts, Piece, Prompt, Sampling
from confide.enclave.engines.guides import Guide, Guides
from confide.enclave.engines.held import Buffer, digest_of
from confide.enclave.engines.prompts import Prompted, Prompts
from confide.enclave.engines.turns import Turns
from confide.errors import EngineError, EngineFault
from confide.models.context import longest_context
from confide.models.ends import end_tokens

PREFILL: Final = 256
"""Tokens of a prompt that are read in one turn: short enough that other requests hardly notice a long one."""
_DTYPES: Final = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


class TransformersEngine(Prompted):
    """The Engine of a loaded model in evaluation mode and its fast tokenizer.

    name: the model's in the API. context: tokens at most, and no more than the model's configuration says.
    adapters: the digests of those in its weights.
    Raises EngineError where neither says it, and for a tokenizer that is not fast.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        context: int | None = None,
        adapters: tuple[str, ...] = (),
    ) -> None:
        if not tokenizer.is_fast:
            raise EngineError(f"{name} has a tokenizer without a tokenizer.json; convert it to a fast one first.")
        prompts = Prompts(tokenizer, _context(model, name, context), by_text=False)
        super().__init__(_facts(model, name, prompts, adapters), prompts)
        self._model = model
        self._decoder = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
        self._bytes = TokenBytes(self._decoder)
        self._vocabulary = int(model.config.get_text_config().vocab_size)
        self._ends = frozenset(end_tokens(model, tokenizer))
        self._guides = Guides(self._bytes, self._vocabulary, self._bytes.specials, sorted(self._ends))
        self._turns = Turns("transformers engine")

    async def generate(self, prompt: str | Prompt, sampling: Sampling) -> AsyncGenerator[Piece, None]:
        """An answer, a token at a time. Raises PromptTooLong, and EngineError where the model fails."""
        tokens = list((await self._as_prompt(prompt)).tokens)
        self._prompts.require_fit(len(tokens), sampling)
        self._prompts.require_known(sampling.logit_bias, self._vocabulary)
        guide = None if sampling.form is None else await self._guides.guide(sampling.form)
        async with aclosing(self._turns.run(self._answer(tokens, sampling, guide))) as pieces:
            async for piece in pieces:
                yield piece or Piece("", 0)

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
        """End what runs, and let go of the model."""
        self._guides.close()
        await self._turns.close()
        del self._model

    def _margins(self, prompt: list[int], tokens: int) -> Iterator[float | None]:
        """One step is one token, as in `_answer`; None for a part of the prompt."""
        reading = _Reading(self._model)
        for start in range(0, len(prompt), PREFILL):
            reading.read(prompt[start : start + PREFILL])
            yield None
        for _ in range(tokens):
            best = reading.logits.topk(2)
            token = int(best.indices[0])
            if token in self._ends:
                return
            yield float(best.values[0] - best.values[1])
            reading.read([token])

    def _answer(self, prompt: list[int], sampling: Sampling, guide: Guide | None) -> Iterator[Piece | None]:
        """One step is one token of the answer, and None for a part of the prompt."""
        text = AnswerText(self._decoder, prompt, sampling.stop, sampling.markers)
        choose = Chooser(sampling, guide)
        reading = _Reading(self._model)
        for start in range(0, len(prompt), PREFILL):
            reading.read(prompt[start : start + PREFILL])
            yield None
        for left in reversed(range(sampling.max_tokens)):
            token = choose(reading.logits)
            if token in self._ends:
                yield Piece(text.rest(), 1, "stop", chosen=text.take_chosen(), stop=text.stopped_by)
                return
            likely = None if sampling.logprobs is None else Likely(reading.logits, sampling.logprobs)
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
            yield Piece(part, 1, chosen=text.take_chosen())
            reading.read([token])

    def _embeddings(self, inputs: list[list[int]]) -> Iterator[list[list[float]] | None]:
        """One step is a part of a text, and the last one gives all embeddings."""
        embeddings: list[list[float]] = []
        for tokens in inputs:
            cache, total = None, torch.zeros(())
            for start in range(0, len(tokens), PREFILL):
                with torch.inference_mode(), _explained():
                    ids = torch.tensor([tokens[start : start + PREFILL]], device=self._model.device)
                    output = self._model.base_model(input_ids=ids, past_key_values=cache, use_cache=True)
                    cache = output.past_key_values
                    total = total + output.last_hidden_state[0].float().sum(0).cpu()
                yield None
            embeddings.append(cast(list[float], torch.nn.functional.normalize(total, dim=0).tolist()))
        yield embeddings


class _Reading:
    """What a model has read of one request: its KV cache. logits: of the next token, shape [vocabulary], float32."""

    def __init__(self, model: PreTrainedModel) -> None:
        self.logits = torch.empty(0)
        self._model = model
        self._cache: object = None
        # Logits of a prompt's other tokens would be a third of the work for a small model, and nobody looks at them.
        takes = "logits_to_keep" in inspect.signature(model.forward).parameters
        self._only_last = {"logits_to_keep": 1} if takes else {}

    def read(self, tokens: list[int]) -> None:
        """Read on."""
        with torch.inference_mode(), _explained():
            ids = torch.tensor([tokens], device=self._model.device)
            output = self._model(input_ids=ids, past_key_values=self._cache, use_cache=True, **self._only_last)
            self._cache = output.past_key_values
            self.logits = output.logits[0, -1].float().cpu()
        if not torch.stack(self.logits.aminmax()).isfinite().all():  # argmax would take a NaN for the best of tokens
            raise EngineFault(
                "The model computes what is no number, so it has no answer; its operator must restart it."
            )


def _facts(model: PreTrainedModel, name: str, prompts: Prompts, adapters: tuple[str, ...]) -> EngineFacts:
    dtype = _name(model.dtype)
    settings = {
        "attention": str(getattr(model.config, "_attn_implementation", None)),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "device": str(model.device),
        "threads": str(torch.get_num_threads()),
        "matmul-precision": torch.get_float32_matmul_precision(),
    }
    return EngineFacts(
        name,
        "transformers",
        dtype,
        prompts.context,
        version=f"{transformers.__version__}, torch {torch.__version__}",
        dtype=dtype,
        template=prompts.template,
        adapters=adapters,
        settings=settings,
    )


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


@contextmanager
def _explained() -> Iterator[None]:
    """What goes wrong inside a model becomes an EngineFault: one request's trouble, and not its fault."""
    try:
        yield
    except Exception as error:
        raise EngineFault(
            f"The model failed with {type(error).__name__}; less memory in use, or fewer requests at once, may help."
        ) from error
