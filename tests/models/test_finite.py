"""Weights that are no numbers."""

import math

import pytest
import torch

from confide.errors import ModelNotSupported
from confide.models import finite
from confide.models.finite import require_finite


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e5m2])
@pytest.mark.parametrize("place", [0, 6, 19])
def test_one_of_them_is_enough(odd: float, dtype: torch.dtype, place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(finite, "PART", 7)
    weight = torch.linspace(-1, 1, 20).to(dtype)
    require_finite({"a.weight": weight, "b": torch.arange(3), "c": torch.zeros(0)})
    weight[place] = odd
    with pytest.raises(ModelNotSupported, match="weights of b are not all finite"):
        require_finite({"a.weight": torch.ones(2), "b.weight": weight.reshape(4, 5)})
