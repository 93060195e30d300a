"""Balanced base-256 digits against decompositions in Python integers."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe.digits import (
    BIAS,
    carry_to_digit_words,
    carry_to_words,
    digit_word_values,
    value_digits,
    words_to_planes,
)

from .helpers import digit_value, word_value

LIMB = st.integers(-(2**62) + 1, 2**62 - 1)
EDGES = [0, 1, -1, 127, 128, -128, -129, 0x7F7F7F7F, 0x7F7F7F80, -BIAS, -BIAS - 1, 2**31 - 1, -(2**31), 2**62 - 1]


def balanced_digits(value: int, count: int) -> list[int]:
    """The digits in [-128, 127], least significant first, of a value mod 256^count."""
    digits = []
    for _ in range(count):
        digit = (value + 128) % 256 - 128
        digits.append(digit)
        value = (value - digit) >> 8
    return digits


def limbs_of(*limbs: int) -> list[torch.Tensor]:
    return [torch.tensor([limb]) for limb in limbs]


def plain(limbs) -> int:
    return sum(limb << 32 * place for place, limb in enumerate(limbs))


def plain_words(limbs):
    words = torch.empty(len(limbs), *limbs[0].shape, dtype=torch.int32)
    carry_to_words(limbs, words)
    return words


@given(st.lists(LIMB, min_size=1, max_size=3))
def test_carry_to_digit_words_gives_the_balanced_digits(limbs):
    words = torch.stack(carry_to_digit_words(limbs_of(*limbs)))
    digits = words.view(torch.int8).flatten().tolist()
    assert digits == balanced_digits(plain(limbs), 4 * len(limbs))


@pytest.mark.parametrize("low", EDGES)
@pytest.mark.parametrize("high", EDGES)
def test_carries_at_the_edges(low, high):
    limbs = [low, high, 0]
    expected = plain(limbs)
    assert (digit_value(torch.stack(carry_to_digit_words(limbs_of(*limbs))))[0] - expected) % 2**96 == 0
    assert word_value(plain_words(limbs_of(*limbs))) == [expected % 2**96]


@given(st.lists(LIMB, min_size=1, max_size=3))
def test_carry_to_words_gives_the_value(limbs):
    words = plain_words(limbs_of(*limbs))
    assert word_value(words) == [plain(limbs) % 2 ** (32 * len(limbs))]


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_digit_word_values_are_the_digits_sum(words):
    tensor = torch.tensor([words], dtype=torch.int32)
    values = digit_word_values(tensor)[0]
    assert [int(value) for value in values] == digit_value(tensor)
    assert values.min() >= -BIAS
    assert values.max() <= 0x7F7F7F7F


def test_the_range_of_digit_words_is_reached():
    words = torch.tensor([0x80808080 - 2**32, 0x7F7F7F7F], dtype=torch.int32)
    assert digit_word_values(words).tolist() == [-BIAS, 0x7F7F7F7F]


@given(st.integers(1, 5), st.integers(1, 3), st.integers(1, 9), st.integers(0, 2**32))
def test_planes_hold_each_byte_once(rows, count, length, seed):
    words = torch.randint(-(2**31), 2**31, (rows, count, length), generator=torch.Generator().manual_seed(seed))
    words = words.to(torch.int32)
    planes = torch.empty(4 * count, rows, length, dtype=torch.int8)
    words_to_planes(words, planes)
    for row in range(rows):
        value = sum(planes[place, row].numpy().astype(object) << 8 * place for place in range(4 * count))
        assert value.tolist() == digit_value(words[row])


def test_planes_can_be_written_into_a_slice():
    words = torch.arange(24, dtype=torch.int32).reshape(2, 3, 4)
    whole = torch.zeros(12, 5, 4, dtype=torch.int8)
    words_to_planes(words, whole[:, 1:3])
    assert whole[0, 1:3].tolist() == words[:, 0].tolist()
    assert not whole[:, [0, 3, 4]].any()


@given(st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=20))
def test_value_digits_are_the_balanced_digits(values):
    digits = value_digits(torch.tensor(values, dtype=torch.int32))
    assert digits.tolist() == [balanced_digits(value, 4) for value in values]


@pytest.mark.parametrize("value", [edge for edge in EDGES if -(2**31) <= edge < 2**31])
def test_value_digits_at_the_edges(value):
    assert value_digits(torch.tensor([[value]], dtype=torch.int32)).tolist() == [[balanced_digits(value, 4)]]
