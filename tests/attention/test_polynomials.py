"""Exponential and inverse: how exact they are, and that the cheapest sufficient ones are chosen."""

from dataclasses import replace

import numpy as np
import pytest

from confide.attention.parameters import CkksParameters, choose_parameters
from confide.attention.plan import Plan
from confide.attention.polynomials import Exponential, Inverse, choose_exponential, choose_inverse
from confide.errors import EvaluationError, InsecureParameters, InvalidPackage
from confide.rlwe.security import MAX_MODULUS_BITS

from .blocks import block


@pytest.mark.parametrize("half_range", [0.25, 2.0, 6.0, 12.0])
def test_the_exponential_holds_its_tolerance(half_range):
    ranges = replace(block().plan.ranges, half_range=(half_range,))
    chosen = choose_exponential(ranges, 2e-3)
    u = np.linspace(-1, 1, 501)
    powers = sum(c * u**n for n, c in enumerate(chosen.coefficients(half_range)))
    assert np.abs(powers ** (2**chosen.squarings) / np.exp(half_range * u) - 1).max() <= 2e-3
    for degree in (3, 7, 15):
        for squarings in range(8):
            other = Exponential(degree, squarings)
            assert other.levels >= chosen.levels or other.relative_error(half_range) > 2e-3


@pytest.mark.parametrize("ratio", [2.25, 30.0, 1000.0])
def test_the_inverse_holds_its_tolerance(ratio):
    ranges = replace(block().plan.ranges, sum_low=((1.0,),), sum_high=((ratio,),))
    chosen = choose_inverse(ranges, 1e-3)
    s = np.linspace(1 - chosen.spread, 1 + chosen.spread, 2001)
    residual = np.polynomial.chebyshev.Chebyshev.basis(2**chosen.steps)((1 - s) / chosen.spread)
    assert np.abs(residual).max() / chosen.at_zero(chosen.steps) <= 1e-3 * (1 + 1e-9)
    assert chosen.sum_ratio >= ratio > Inverse.widest(chosen.steps - 1, 1e-3).sum_ratio


def test_what_costs_nothing_is_wider():
    ranges = block().plan.ranges
    chosen = choose_exponential(replace(ranges, half_range=(1.0,)), 2e-3)
    widest = chosen.widest(2e-3)
    assert widest > 1.0
    assert chosen.relative_error(widest) <= 2e-3 < chosen.relative_error(widest * 1.01)


def test_ranges_too_wide_are_refused():
    ranges = block().plan.ranges
    with pytest.raises(EvaluationError, match="polynomial exponential"):
        choose_exponential(replace(ranges, half_range=(1e4,)), 2e-3)
    with pytest.raises(EvaluationError, match="polynomial inverse"):
        choose_inverse(replace(ranges, sum_low=((1.0,),), sum_high=((1e9,),)), 1e-3)


def test_parameters_keep_to_the_security_table():
    with pytest.raises(InsecureParameters, match="below 128-bit"):
        CkksParameters(ring_degree=32768, levels=19, scale_bits=40)
    with pytest.raises(InsecureParameters, match="fit no ring"):
        choose_parameters(levels=40, slots=1)
    for levels in range(6, 22):
        chosen = choose_parameters(levels, slots=64)
        assert chosen.modulus_bits <= MAX_MODULUS_BITS[chosen.ring_degree]
        assert len(chosen.prime_bits) == levels + 2


def test_a_plan_travels_as_json():
    plan = block().plan
    assert Plan.from_json(plan.to_json()) == plan
    for text in (b"{}", b"[", plan.to_json().replace(b'"ring_degree":', b'"ring_degree":1')):
        with pytest.raises((InvalidPackage, InsecureParameters)):
            Plan.from_json(text)
    with pytest.raises(InvalidPackage, match="circuit"):
        replace(plan, inverse=replace(plan.inverse, steps=plan.inverse.steps + 1))
    with pytest.raises(InvalidPackage, match="heads"):
        replace(plan, ranges=replace(plan.ranges, centre=(0.0,)))
