"""Short texts, one to a window: sentences of a text, or what a model samples by itself."""

import re
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import EvaluationError
from confide.evaluate.windows import Windows

_SHORTEST = 4
"""Tokens of a sentence that is worth scoring."""
_END_OF_SENTENCE = re.compile(r"(?<=[.!?])[\"'”’]*\s+")


def cut_sentences(text: str, tokenizer: PreTrainedTokenizerBase, count: int, longest: int) -> Windows:
    """The first `count` sentences of a text, each cut to `longest` tokens; very short ones are passed over.

    Raises EvaluationError where the text has fewer than two.
    """
    found = []
    for sentence in _END_OF_SENTENCE.split(text):
        ids = tokenizer(" ".join(sentence.split()), add_special_tokens=False)["input_ids"][:longest]
        if len(ids) >= _SHORTEST:
            found.append(tuple(ids))
        if len(found) == count:
            break
    if len(found) < 2:
        raise EvaluationError(f"That is {len(found)} sentence, and an interval needs two or more; use a longer text.")
    return Windows(longest, tuple(found))


def sample_sentences(model: PreTrainedModel, count: int, tokens: int, seed: int) -> Windows:
    """`count` texts of `tokens` tokens that a model samples at temperature 1, the same ones for the same seed.

    They follow the token that begins a text, which is not part of them. Raises EvaluationError where the model has no
    such token.
    """
    start = model.config.bos_token_id
    if start is None:
        raise EvaluationError("The model names no token that begins a text, so it cannot sample any; give a text file.")
    prompt = torch.full((count, 1), start, device=model.device)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        generate: Any = model.generate
        sampled = generate(
            prompt,
            attention_mask=torch.ones_like(prompt),
            do_sample=True,
            top_k=0,
            min_new_tokens=tokens,
            max_new_tokens=tokens,
            pad_token_id=start,
        )
    return Windows(tokens, tuple(map(tuple, sampled[:, 1:].tolist())))
