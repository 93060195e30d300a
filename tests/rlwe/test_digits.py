"""Balanced base-256 digits against decompositions in Python integers."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe.digits import digits, value

INT64 = st.integers(-(2**63), 2**63 - 1)
EDGES = [
    0,
    1,
    -1,
    127,
    128,
    -128,
    -129,
    0x7F7F7F7F7F7F,
    0x7F7F7F7F7F80,
    -0x808080808080,
    -0x808080808081,
    2**47,
    -(2**47),
]


def balanced_digits(number: int, count: int) -> list[int]:
    """The digits in [-128, 127], least significant first, of a value mod 256^count."""
    found = []
    for _ in range(count):
        digit = (number + 128) % 256 - 128
        found.append(digit)
        number = (number - digit) >> 8
    return found


@given(st.lists(INT64, min_size=1, max_size=9), st.integers(1, 8))
def test_digits_are_the_balanced_ones(numbers: list[int], count: int) -> None:
    planes = digits(np.array(numbers, np.int64), count)
    assert planes.tolist() == [balanced_digits(number, count) for number in numbers]


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("count", [4, 5, 6])
def test_edges_survive_mod_their_size(edge: int, count: int) -> None:
    back = int(value(digits(np.array([edge], np.int64), count))[0])
    assert (back - edge) % 256**count == 0
    assert -(2 ** (8 * count - 1)) * 256 / 255 <= back < 2 ** (8 * count - 1)


@given(st.lists(INT64, min_size=1, max_size=9), st.integers(1, 7))
def test_value_undoes_digits(numbers: list[int], count: int) -> None:
    back = value(digits(np.array(numbers, np.int64), count)).tolist()
    assert all((result - number) % 256**count == 0 for result, number in zip(back, numbers, strict=True))


def test_shapes_are_kept() -> None:
    assert digits(np.zeros((3, 4), np.int64), 6).shape == (3, 4, 6)
