"""One run: how long an engine takes for its answers to a prompt of so many tokens, all of them of one length.

What a prompt says changes no time, so it is one word over and over. Tokens that end answers are ruled out.
"""

import asyncio
import logging
import time
from collections.abc import Iterable, Iterator
from contextlib import aclosing, contextmanager
from typing import Any, Final

import torch
from transformers import GenerationConfig, PreTrainedModel
from transformers.generation.stopping_criteria import StoppingCriteria, StoppingCriteriaList

import confide.models.conversation
from confide.bench.results import Timing
from confide.enclave.engines.engine import Engine, Prompt, Sampling
from confide.errors import BenchmarkError

_WORDS: Final = (" the", " and", " a", " it", " one", " x", "a", "1")
"""Of which one is a single token in nearly every vocabulary, however often it stands there."""
_NEVER: Final = -100.0


@contextmanager
def no_conversations() -> Iterator[None]:
    """Have nothing said of a missing chat template meanwhile: prompts here are texts."""
    logger = logging.getLogger(confide.models.conversation.__name__)
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


async def prompt_of(engine: Engine, tokens: int) -> Prompt:
    """A prompt of exactly so many tokens as the engine reads it. BenchmarkError where none is found."""
    for word in _WORDS:
        prompt = await engine.read(word * tokens)
        surplus = len(prompt.tokens) - tokens  # the token that begins every text, for some models
        if 0 < surplus < tokens:
            prompt = await engine.read(word * (tokens - surplus))
        if len(prompt.tokens) == tokens:
            return prompt
    raise BenchmarkError(f"No text of exactly {tokens} tokens was found for this tokenizer; try another --prompt.")


def answering(answer: int, ends: Iterable[int]) -> Sampling:
    """Greedy answers of exactly so many tokens. ends: the model's end tokens."""
    return Sampling(answer, temperature=0, logit_bias=dict.fromkeys(ends, _NEVER))


async def time_answers(engine: Engine, prompt: Prompt, sampling: Sampling, batch: int) -> Timing:
    """So many requests at once, the first token being the last request's. BenchmarkError for an answer that ended."""
    started = time.perf_counter()
    firsts = await asyncio.gather(*(_first_token(engine, prompt, sampling) for _ in range(batch)))
    return Timing(max(firsts) - started, time.perf_counter() - started, batch * sampling.max_tokens)


async def _first_token(engine: Engine, prompt: Prompt, sampling: Sampling) -> float:
    """When it came; returns when the answer is whole."""
    first, tokens = 0.0, 0
    async with aclosing(engine.generate(prompt, sampling)) as pieces:
        async for piece in pieces:
            first = first or (time.perf_counter() if piece.tokens else 0.0)
            tokens += piece.tokens
    if tokens != sampling.max_tokens:
        raise BenchmarkError(
            f"An answer has {tokens} tokens where {sampling.max_tokens} were asked for; try another --answer."
        )
    return first


@torch.inference_mode()
def time_beams(model: PreTrainedModel, prompt: Prompt, answer: int, batch: int, beams: int) -> Timing:
    """transformers' own `generate`: a batch of one prompt, with beam search where beams is more than 1."""
    ids = torch.tensor([list(prompt.tokens)] * batch, device=model.device)
    clock = _FirstStep()
    settings = GenerationConfig(
        max_new_tokens=answer, min_new_tokens=answer, num_beams=beams, do_sample=False, pad_token_id=0
    )
    generate: Any = model.generate
    started = time.perf_counter()
    made = generate(
        ids,
        attention_mask=torch.ones_like(ids),
        generation_config=settings,
        stopping_criteria=StoppingCriteriaList([clock]),
    ).cpu()  # a GPU is done only then
    seconds = time.perf_counter() - started
    if tuple(made.shape) != (batch, ids.shape[1] + answer):
        raise BenchmarkError(f"An answer ended before its {answer} tokens; try another --answer.")
    return Timing(clock.first - started, seconds, batch * answer)


class _FirstStep(StoppingCriteria):
    """Stops nothing, and notes when the first step was over."""

    first = 0.0

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.first = self.first or time.perf_counter()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
