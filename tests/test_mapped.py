"""The same work for many things: all of it, in order, and not much of it ahead."""

import threading
import time
from collections.abc import Iterator

import pytest

from confide.mapped import Mapped, on_cores, one_by_one

WAYS: list[Mapped] = [one_by_one, on_cores]
ways = pytest.mark.parametrize("mapped", WAYS, ids=["one by one", "on cores"])


def slow_square(number: int) -> int:
    time.sleep(0.002 * (number % 3))
    return number * number


@ways
def test_results_come_in_order(mapped: Mapped) -> None:
    assert list(mapped(slow_square, range(50))) == [number**2 for number in range(50)]
    assert list(mapped(slow_square, [])) == []


@ways
def test_little_is_made_before_it_is_taken(mapped: Mapped) -> None:
    begun: list[int] = []

    def items() -> Iterator[int]:
        for number in range(1000):
            begun.append(number)
            yield number

    results = mapped(slow_square, items())
    for _ in range(3):
        next(results)
    assert len(begun) < 600


@ways
def test_what_fails_is_raised_where_it_is_taken(mapped: Mapped) -> None:
    def work(number: int) -> int:
        return 10 // (5 - number)

    results = mapped(work, range(10))
    assert [next(results) for _ in range(5)] == [2, 2, 3, 5, 10]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_nobody_works_on_once_the_results_are_not_wanted() -> None:
    before = threading.active_count()
    results = on_cores(slow_square, range(10**9))
    next(results)
    results.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before
