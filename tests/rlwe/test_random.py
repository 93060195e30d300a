"""The samplers' distributions on fixed keys, and their definitions against the stream's bytes.

Keys are fixed, so each check has one outcome; the thresholds leave room beyond six standard deviations.
"""

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe.parameters import ERROR_BITS, ERROR_STD
from confide.rlwe.random import ERROR_STREAM_BYTES, rounded_gaussian, ternary
from confide.rlwe.streams import Stream, derive_key

KEY = bytes(range(32))
KEYS = [derive_key(KEY, str(number)) for number in range(4)]
SAMPLES = 1 << 18


def chi_square(values: torch.Tensor, probabilities: list[float]) -> float:
    """Pearson's statistic of values 0.. against probabilities, in standard deviations from its mean."""
    observed = torch.bincount(values.flatten().long(), minlength=len(probabilities)).double()
    expected = torch.tensor(probabilities, dtype=torch.float64) * values.numel()
    assert expected.min() > 20
    statistic = float(((observed - expected) ** 2 / expected).sum())
    freedom = len(probabilities) - 1
    return (statistic - freedom) / math.sqrt(2 * freedom)


@pytest.mark.parametrize("key", KEYS, ids=range(4))
def test_ternary_is_uniform(key):
    assert abs(chi_square(ternary(Stream(key), SAMPLES) + 1, [1 / 3] * 3)) < 6


@pytest.mark.parametrize("key", KEYS, ids=range(4))
def test_neighbouring_trits_are_independent(key):
    trits = ternary(Stream(key), SAMPLES).long() + 1
    for distance in range(1, 6):
        pairs = 3 * trits[:-distance] + trits[distance:]
        assert abs(chi_square(pairs, [1 / 9] * 9)) < 6


@given(st.integers(1, 3000))
def test_ternary_is_the_base_3_digits_of_accepted_bytes(count):
    source = Stream(KEY).bytes(2 * count + 100)
    codes = source[source < 243][: -(-count // 5)]
    expected = [int(code) // 3**place % 3 - 1 for code in codes for place in range(5)][:count]
    assert ternary(Stream(KEY), count).tolist() == expected


def test_ternary_survives_a_run_of_rejections():
    class Stubborn:
        """A stream whose first reads hold only bytes that must be rejected."""

        reads = 0

        def bytes(self, count):
            self.reads += 1
            return np.full(count, 255 if self.reads < 4 else 242, np.uint8)

    assert ternary(Stubborn(), 2, 7).tolist() == [[1] * 7] * 2


def test_ternary_takes_any_shape():
    values = ternary(Stream(KEY), 3, 5, 7)
    assert values.shape == (3, 5, 7)
    assert values.dtype == torch.int8
    assert torch.equal(values.flatten(), ternary(Stream(KEY), 105))


@pytest.mark.parametrize("key", KEYS, ids=range(4))
def test_errors_are_the_centred_binomial(key):
    values = rounded_gaussian(Stream(key), SAMPLES).long()
    inner = values[values.abs() <= 11] + 11
    weights = [math.comb(ERROR_BITS, ERROR_BITS // 2 + value) for value in range(-11, 12)]
    total = sum(weights)
    assert abs(chi_square(inner, [weight / total for weight in weights])) < 6
    outside = 1 - total / 2**ERROR_BITS
    assert (len(values) - len(inner)) < 10 + 2 * outside * SAMPLES


@pytest.mark.parametrize("key", KEYS, ids=range(4))
def test_errors_have_the_stated_moments(key):
    values = rounded_gaussian(Stream(key), SAMPLES).double()
    assert abs(float(values.mean())) < 6 * ERROR_STD / math.sqrt(SAMPLES)
    assert abs(float(values.std()) - ERROR_STD) < 6 * ERROR_STD / math.sqrt(2 * SAMPLES)
    assert pytest.approx(math.sqrt(42) / 2) == ERROR_STD


def test_an_error_is_the_weight_of_42_of_its_8_bytes_bits():
    words = Stream(KEY).bytes(8 * 500).reshape(500, 8)
    expected = []
    for word in words:
        low = int.from_bytes(word.tobytes(), "little") % 2**42
        expected.append(low.bit_count() - 21)
    assert rounded_gaussian(Stream(KEY), 500).tolist() == expected


def test_errors_can_be_read_from_the_middle_of_their_stream():
    whole = rounded_gaussian(Stream(KEY), 10, 16)
    tail = rounded_gaussian(Stream(KEY, offset=7 * 16 * ERROR_STREAM_BYTES), 3, 16)
    assert torch.equal(whole[7:], tail)


def test_samples_are_pinned():
    assert ternary(Stream(KEY), 24).tolist() == [
        1,
        1,
        1,
        1,
        1,
        -1,
        -1,
        0,
        1,
        0,
        -1,
        -1,
        -1,
        -1,
        -1,
        1,
        -1,
        1,
        -1,
        1,
        -1,
        1,
        0,
        0,
    ]
    assert rounded_gaussian(Stream(KEY), 12).tolist() == [-5, 4, 2, 0, 3, -7, -3, -1, 3, 1, -1, -2]
