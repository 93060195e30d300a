import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.channel import replay
from confide.channel.replay import ReplayGuard
from confide.errors import ChannelRefused


class Clock:
    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_once_only() -> None:
    guard, now = ReplayGuard(clock=(clock := Clock())), clock.now
    guard.admit(b"a", now)
    guard.admit(b"b", now)
    with pytest.raises(ChannelRefused, match="came before"):
        guard.admit(b"a", now)
    clock.now += 100
    with pytest.raises(ChannelRefused, match="came before"):
        guard.admit(b"b", now)


@pytest.mark.parametrize("away", [-121, 121, -1e9, 1e300, float("nan")])
def test_outside_the_window(away: float) -> None:
    guard, now = ReplayGuard(clock=Clock()), Clock.now
    with pytest.raises(ChannelRefused, match="set your clock"):
        guard.admit(b"a", now + away)


def test_a_clock_set_back_opens_nothing_again() -> None:
    clock = Clock()
    guard, then = ReplayGuard(clock=clock), clock.now
    guard.admit(b"a", then)
    clock.now += 500
    guard.admit(b"b", clock.now)
    clock.now = then
    with pytest.raises(ChannelRefused):
        guard.admit(b"a", then)
    with pytest.raises(ChannelRefused):
        guard.admit(b"c", then)


@settings(max_examples=300, deadline=None)
@given(
    steps=st.lists(
        st.tuples(st.integers(0, 5), st.sampled_from([-300, -60, -1, 0, 1, 59, 60, 119, 120, 240, 300]), st.booleans()),
        max_size=12,
    )
)
def test_nothing_is_admitted_twice_however_the_clock_is_turned(steps: list[tuple[int, int, bool]]) -> None:
    """A step: which request, how far the clock is turned before it, and whether it is dated ahead."""
    clock = Clock()
    guard = ReplayGuard(60, clock=clock)
    made: dict[int, float] = {}
    admitted: set[int] = set()
    for name, turn, ahead in steps:
        clock.now += turn
        issued = made.setdefault(name, clock.now + (60 if ahead else 0))
        try:
            guard.admit(b"%d" % name, issued)
        except ChannelRefused:
            continue
        assert name not in admitted
        admitted.add(name)


def test_a_flood_of_dated_requests_locks_nobody_out_and_repeats_nothing() -> None:
    guard, now = ReplayGuard(clock=Clock()), Clock.now
    for index in range(140_000):
        guard.admit(b"%d" % index, now + 119)
    for index in range(1000):
        guard.admit(b"honest %d" % index, now - 5)
    for index in range(0, 140_000, 1000):
        with pytest.raises(ChannelRefused, match="came before"):
            guard.admit(b"%d" % index, now + 119)


def test_the_guard_is_quick() -> None:
    guard = ReplayGuard(clock=Clock())
    started = time.perf_counter()
    for index in range(2000):
        guard.admit(b"%d" % index, Clock.now)
    assert time.perf_counter() - started < 2


def test_nobody_can_choose_which_new_requests_are_taken_for_old_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """A filter this small is soon full; when, depends on a secret of the guard's own."""
    monkeypatch.setattr(replay, "BITS", 1 << 10)
    refused: list[set[int]] = []
    for guard in [ReplayGuard(clock=Clock()) for _ in range(2)]:
        refused.append(set())
        for index in range(500):
            try:
                guard.admit(b"%d" % index, Clock.now)
            except ChannelRefused:
                refused[-1].add(index)
    assert all(0 < len(indices) < 500 for indices in refused)
    assert refused[0] != refused[1]
