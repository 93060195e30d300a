import pytest

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
    assert len(guard._seen) == 1


def test_a_burst_shortens_the_window_and_repeats_nothing() -> None:
    guard, now = ReplayGuard(capacity=10, clock=Clock()), Clock.now
    for index in range(100):
        guard.admit(b"%d" % index, now + index / 100)
    assert len(guard._seen) == len(guard._by_time) == 10
    for index in range(100):
        with pytest.raises(ChannelRefused):
            guard.admit(b"%d" % index, now + index / 100)
    guard.admit(b"new", now + 1)


def test_equal_times_at_the_brim() -> None:
    guard, now = ReplayGuard(capacity=2, clock=Clock()), Clock.now
    for name in (b"a", b"b", b"c"):
        guard.admit(name, now)
    for name in (b"a", b"b", b"c"):
        with pytest.raises(ChannelRefused):
            guard.admit(name, now)
