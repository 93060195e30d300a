"""Temperatures and thresholds as people write them."""

import math

import pytest

from confide.enclave.engines.engine import Sampling
from confide.errors import RequestRefused
from confide.models.sampling import SMALLEST_TEMPERATURE, generation_options


@pytest.mark.parametrize("temperature", [0, -0.0, 1e-6, 1e-38, 1e-45, 1e-310])
def test_what_engines_cannot_divide_by_is_greedy(temperature: float) -> None:
    assert generation_options(temperature, top_p=0.5) == {"do_sample": False}
    assert Sampling(1, temperature).temperature == 0


def test_others_are_as_they_were_asked_for() -> None:
    assert generation_options() == {"do_sample": False}
    assert generation_options(SMALLEST_TEMPERATURE) == {"do_sample": True, "temperature": SMALLEST_TEMPERATURE}
    assert generation_options(0.5, 3, 1) == {"do_sample": True, "temperature": 0.5, "top_k": 3, "top_p": 1}
    assert Sampling(1, 0.5).temperature == 0.5


@pytest.mark.parametrize(
    ("given", "field"),
    [
        *(({"temperature": odd}, "temperature") for odd in (-1, -1e-40, math.nan, math.inf)),
        *(({"top_k": odd}, "top_k") for odd in (0, -1)),
        *(({"top_p": odd}, "top_p") for odd in (0, -0.5, 1.5, 2, math.nan)),
    ],
)
def test_what_means_nothing_is_refused_by_name(given: dict[str, float], field: str) -> None:
    with pytest.raises(RequestRefused) as refused:
        generation_options(**given)  # type: ignore[arg-type]
    assert refused.value.field == field
