"""Requests that are decoded in one pass: each gets what it gets alone, whoever comes, goes or fails beside it."""

import copy
from collections.abc import Sequence

import pytest
import torch
from tests.families import FAMILIES, LLAMA_3, UNLISTED, randomise
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel

from confide.enclave.engines.rows import ROOM, Batching, RoomyLayer, Row, Rows
from confide.errors import EngineFault

PROMPTS = ([5, 9, 33], [7] * 9, [2, 40, 41, 42, 43, 44, 45, 46, 47, 48, 49, 50])
STEPS = 6
ALONE = {
    "falcon-7b": Batching.ATTENTION,
    "falcon-rw": Batching.ATTENTION,
    "falcon-40b": Batching.ATTENTION,
    "falcon-11b": Batching.ATTENTION,
    "mpt": Batching.ATTENTION,
    "mistral": Batching.CACHE,
    "gemma2": Batching.CACHE,
    "gemma3_text": Batching.CACHE,
}
"""What this version of transformers makes of each; every other family is computed together."""


def model_of(config: PreTrainedConfig) -> PreTrainedModel:
    torch.manual_seed(1)
    return randomise(AutoModelForCausalLM.from_config(copy.deepcopy(config))).eval()


def read(rows: Rows, prompt: Sequence[int]) -> Row:
    row = rows.row(len(prompt))
    row.read(prompt)
    return row


def greedy(row: Row, steps: int = STEPS) -> tuple[list[int], torch.Tensor]:
    """An answer that is computed alone, and the logits behind it."""
    tokens = []
    for _ in range(steps):
        tokens.append(int(row.logits.argmax()))
        row.read(tokens[-1:])
    return tokens, row.logits


@pytest.fixture(scope="module")
def gpt2() -> Rows:
    return Rows(model_of(FAMILIES["gpt2"]))


@pytest.mark.parametrize("family", [*FAMILIES, "opt"])
def test_rows_together_get_what_each_gets_alone(family: str) -> None:
    rows = Rows(model_of(FAMILIES.get(family, UNLISTED)))
    assert rows.batching is ALONE.get(family, Batching.TOGETHER)
    alone = [greedy(read(rows, prompt)) for prompt in PROMPTS]
    passes: list[int] = []
    rows._model.register_forward_pre_hook(lambda *_, **kwargs: passes.append(1))
    together = [read(rows, prompt) for prompt in PROMPTS]
    answers: list[list[int]] = [[] for _ in PROMPTS]
    before = len(passes)
    for _ in range(STEPS):
        for row, answer in zip(together, answers, strict=True):
            answer.append(int(row.logits.argmax()))
        for row, answer in zip(together, answers, strict=True):
            row.follow(answer[-1])
    ends = [row.logits for row in together]
    assert len(passes) - before == STEPS * (1 if rows.batching is Batching.TOGETHER else len(PROMPTS))
    for answer, end, (expected, logits) in zip(answers, ends, alone, strict=True):
        assert answer == expected
        assert torch.allclose(end, logits, rtol=1e-4, atol=1e-4)
