"""Which type a model is computed in: by a measurement that has an end, and float32 wherever that gains little."""

import inspect
import logging
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GPT2Config, LlamaConfig, PreTrainedConfig

from confide.enclave.engines import dtypes
from confide.enclave.engines.dtypes import GAIN, faster, fastest_dtype, shortest, token_seconds
from confide.enclave.engines.engine import Dtype
from confide.enclave.engines.transformers_engine import PREFILL
from confide.models.sharing import empty_model


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(9.0, Dtype.F32), (1.0, Dtype.F32), (GAIN + 0.01, Dtype.F32), (GAIN - 0.01, Dtype.BF16)]
)
def test_a_type_that_rounds_has_to_be_worth_it(bf16: float, chosen: Dtype) -> None:
    assert faster({Dtype.F32: 1.0, Dtype.BF16: bf16}) is chosen


@pytest.mark.parametrize(("seconds", "runs"), [(0.001, 4), (0.015, 3), (0.2, 2), (2.0, 1)])
def test_what_takes_long_is_not_measured_often(seconds: float, runs: int) -> None:
    now, done = [0.0], []

    def product() -> Tensor:
        done.append(None)
        now[0] += seconds if len(done) > 1 else 2 * seconds  # the first one warms up
        return torch.zeros(1)

    taken = shortest(product, 1.0, lambda: now[0])
    assert taken == pytest.approx(seconds if runs > 1 else 2 * seconds)
    assert len(done) == runs


SIZES: dict[str, Any] = {"vocab_size": 5000, "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
LLAMA = LlamaConfig(**SIZES, intermediate_size=96)
GPT2 = GPT2Config(vocab_size=5000, n_embd=48, n_head=2, n_layer=1, bos_token_id=0, eos_token_id=0)


@pytest.mark.parametrize(
    ("config", "columns", "other_way"), [(LLAMA, 96, False), (GPT2, 192, True)], ids=["llama", "gpt2"]
)
def test_what_is_measured_is_a_matrix_of_the_model_though_not_its_head(
    config: PreTrainedConfig,
    columns: int,
    other_way: bool,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked: list[tuple[torch.dtype, int, bool, float]] = []

    def seconds(dtype: torch.dtype, columns: int, *, other_way: bool, most: float = math.inf) -> float:
        asked.append((dtype, columns, other_way, most))
        return 2.0 if dtype is torch.float32 else 1.5

    monkeypatch.setattr(dtypes, "token_seconds", seconds)
    with caplog.at_level(logging.INFO, "confide"):
        assert fastest_dtype(empty_model(config)) is Dtype.BF16
    assert asked == [(torch.float32, columns, other_way, math.inf), (torch.bfloat16, columns, other_way, 2.0)]
    assert "computed in bf16" in caplog.text
    assert "f32 2000.0 ms" in caplog.text


@pytest.mark.parametrize("other_way", [True, False])
@pytest.mark.parametrize("columns", [64, 1000, 1 << 15])
def test_prompts_and_answers_are_measured_as_they_are_computed(
    columns: int, other_way: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With shapes in place of times: tokens of answers go through many weights, a prompt through few."""
    shapes = []

    def shape(product: Callable[[], Tensor], most: float = 0) -> float:
        held = inspect.getclosurevars(product).nonlocals
        shapes.append((len(held["x"]), tuple(held["matrix"].shape)))
        return 1.0

    monkeypatch.setattr(dtypes, "shortest", shape)
    token_seconds(torch.bfloat16, columns, other_way=other_way)
    wide = min(columns, 1 << 14)
    expected = [(PREFILL, ((1 << 20) // wide, wide)), *((tokens, ((1 << 24) // wide, wide)) for tokens in (1, 8))]
    assert shapes == [(tokens, shape[::-1] if other_way else shape) for tokens, shape in expected]


def test_what_has_lost_over_its_prompt_is_not_measured_any_further(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[float] = []
    monkeypatch.setattr(dtypes, "shortest", lambda _, most: measured.append(most) or 1.0)
    share = 8 / PREFILL * 16
    assert token_seconds(torch.float32, 1024, other_way=False, most=share) == share
    assert measured == [1.0]
    assert token_seconds(torch.float32, 1024, other_way=False, most=share + 0.1) == share + 1
    assert token_seconds(torch.float32, 1024, other_way=False, most=share + 1.1) == share + 2
    assert len(measured) == 1 + 2 + 3
