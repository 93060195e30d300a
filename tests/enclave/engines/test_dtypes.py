"""Which type a model is computed in: by a measurement that has an end, and float32 wherever that gains little."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from confide.enclave.engines import dtypes
from confide.enclave.engines.dtypes import GAIN, faster, fastest_dtype, shortest
from confide.enclave.engines.engine import Dtype


@pytest.mark.parametrize(
    ("bf16", "chosen"), [(9.0, Dtype.F32), (1.0, Dtype.F32), (GAIN + 0.01, Dtype.F32), (GAIN - 0.01, Dtype.BF16)]
)
def test_a_type_that_rounds_has_to_be_worth_it(bf16: float, chosen: Dtype) -> None:
    assert faster({Dtype.F32: 1.0, Dtype.BF16: bf16}) is chosen


@pytest.mark.parametrize(("seconds", "runs"), [(0.001, 4), (0.03, 3), (0.2, 2), (60.0, 2)])
def test_what_takes_long_is_not_measured_often(seconds: float, runs: int) -> None:
    now, done = [0.0], []

    def product() -> Tensor:
        done.append(None)
        now[0] += seconds if len(done) > 1 else 2 * seconds  # the first one warms up
        return torch.zeros(1)

    assert shortest(product, lambda: now[0]) == pytest.approx(seconds)
    assert len(done) == runs


@pytest.mark.parametrize("width", [64, 1000, 1 << 24])
def test_prompts_and_answers_are_measured_as_they_are_computed(
    width: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """With shapes instead of times: a token of an answer goes through all weights, a prompt's share of a layer."""
    asked: list[tuple[int, ...]] = []

    def seen(x: Tensor, weights: Tensor) -> Tensor:
        asked.append((len(x), *weights.shape))
        assert x.dtype is weights.dtype
        return x

    def counted(product: Callable[[], Tensor]) -> float:
        slow = product().dtype is torch.float32
        return 2.0 if slow else 1.0

    monkeypatch.setattr(dtypes, "linear", seen)
    monkeypatch.setattr(dtypes, "shortest", counted)
    with caplog.at_level(logging.INFO, "confide"):
        assert fastest_dtype(width) is Dtype.BF16
    assert "computed in bf16" in caplog.text
    assert "f32" in caplog.text
    for tokens, rows, columns in asked:
        assert columns == min(width, 1 << 22)
        assert rows * columns == pytest.approx((1 << 22) if tokens > 1 else (1 << 24), rel=0.01)
    assert [tokens for tokens, _, _ in asked] == [32, 1] * 2
