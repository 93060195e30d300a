"""What is measured of this machine makes sense, and the rates are those that the measurements imply."""

import time
from dataclasses import asdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.evaluate.calibrate import SHAPES, calibrate, fit
from confide.evaluate.cost_model import GroupRate, GroupShape

positive = st.floats(1e-9, 1e-3)


@given(positive, positive, positive, positive)
def test_a_fit_finds_the_rates_behind_exact_times(fixed: float, row: float, column: float, weight: float) -> None:
    truth = GroupRate(fixed, row, column, weight)
    times = [truth.seconds(GroupShape(*shape)) for shape in SHAPES[1:]]
    found = fit(SHAPES[1:], times)
    for shape in (*SHAPES, (3072, 768), (768, 3072)):
        assert found.seconds(GroupShape(*shape)) == pytest.approx(truth.seconds(GroupShape(*shape)), rel=1e-3)


@given(st.lists(st.floats(1e-6, 10.0), min_size=4, max_size=4))
def test_no_rate_is_below_zero_whatever_was_measured(times: list[float]) -> None:
    rates = asdict(fit(SHAPES[1:], times)).values()
    assert all(rate >= 0 for rate in rates)
    assert any(rate > 0 for rate in rates)


@pytest.mark.slow
def test_calibration_gives_usable_rates_in_about_five_seconds() -> None:
    started = time.process_time()
    rates = calibrate()
    assert time.process_time() - started < 10
    for rate in (rates.kept_token, rates.kept_prompt_token):
        assert 0 < rate < 1e-6
    shapes = [GroupShape(*shape) for shape in SHAPES]
    for rate in (rates.ahead, rates.token, rates.prompt_token):
        assert all(0 < rate.seconds(shape) < 60 for shape in shapes)
    # One token among many shares the round trip with them.
    assert rates.prompt_token.seconds(shapes[0]) < rates.token.seconds(shapes[0])
