"""Progress bars for people who use the library itself: in terminals and in notebooks, by what tqdm finds.

Commands show bars of their own.
"""

from typing import Any

from tqdm import auto

from confide.models.calibration import OnTokens
from confide.models.quantized import OnProgress as OnGroup
from confide.packages.hint import OnBytes

_make: Any = auto.tqdm  # its own types say nothing


class _Bar:
    """A bar that opens with the first step and closes with the last."""

    def __init__(self, what: str, unit: str) -> None:
        self._what = what
        self._unit = unit
        self._bar: Any = None

    def step(self, name: str, done: int, total: int) -> None:
        if self._bar is None:
            self._bar = _make(total=total, desc=self._what, unit=self._unit, leave=False)
        self._bar.set_postfix_str(name[-28:], refresh=False)
        self._bar.update(done - self._bar.n)
        if done >= total:
            self._bar.close()
            self._bar = None


def group_bar(what: str) -> OnGroup:
    """For work on one layer group after another."""
    return _Bar(what, "group").step


def byte_bar(what: str) -> OnBytes:
    """For reading much, whose size nobody says."""
    bar = _make(desc=what, unit="B", unit_scale=True, leave=False)
    return lambda count: bar.update(count)


def token_count() -> OnTokens:
    """For work of unknown length on texts."""
    bar = _make(desc="calibrating", unit="token", leave=False)
    return lambda tokens: bar.update(tokens - bar.n)
