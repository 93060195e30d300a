"""One-time pads: uniform, seekable, and taken off again without a remainder."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.rlwe.masks import mask, uniform_masks, unmask
from confide.rlwe.parameters import Parameters

from .helpers import MASK_KEY, PRIVATE

T = 1 << 30
PARAMETERS = Parameters.for_shape(PRIVATE, rows=4, columns=7, activation_bits=14)
INT32 = st.integers(-(2**31), 2**31 - 1)


def test_masks_are_30_bits_of_the_stream():
    masks = uniform_masks(MASK_KEY, PARAMETERS, 1000)
    assert masks.shape == (1000, 7)
    assert masks.min() >= 0
    assert masks.max() < T
    assert masks.max() > T - T // 1000


@pytest.mark.parametrize("shift", [0, 11, 22])
def test_masks_are_uniform(shift):
    values = uniform_masks(MASK_KEY, PARAMETERS, 20_000).ravel() >> shift & 0xFF
    counts = np.bincount(values, minlength=256)
    expected = len(values) / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * math.sqrt(2 * 255)


@given(st.integers(0, 40), st.integers(1, 10))
def test_masks_can_be_read_from_any_token(first, tokens):
    whole = uniform_masks(MASK_KEY, PARAMETERS, first + tokens)
    part = uniform_masks(MASK_KEY, PARAMETERS, tokens, offset=4 * 7 * first)
    assert np.array_equal(part, whole[first:])


def test_keys_separate():
    other = uniform_masks(bytes(32), PARAMETERS, 100)
    assert (uniform_masks(MASK_KEY, PARAMETERS, 100) == other).mean() < 0.01


@given(st.lists(st.tuples(INT32, st.integers(0, T - 1)), min_size=1, max_size=30))
def test_masking_is_subtraction_mod_t(pairs):
    activations, masks = (np.array([column], np.int32) for column in zip(*pairs, strict=True))
    expected = [(int(value) - int(pad)) % T for value, pad in pairs]
    assert mask(activations, masks, PARAMETERS).tolist() == [expected]


def test_masking_leaves_its_inputs_alone():
    activations, masks = np.array([[5, -3]], np.int32), np.array([[9, 1]], np.int32)
    mask(activations, masks, PARAMETERS)
    assert (activations.tolist(), masks.tolist()) == ([[5, -3]], [[9, 1]])


@pytest.mark.parametrize("activation", [-16383, 0, 1, 16383])
def test_masked_activations_are_uniform_whatever_they_hide(activation):
    masks = uniform_masks(MASK_KEY, PARAMETERS, 20_000)
    masked = mask(np.full_like(masks, activation), masks, PARAMETERS).ravel()
    counts = np.bincount(masked >> 22, minlength=256)
    expected = len(masked) / 256
    assert abs(((counts - expected) ** 2 / expected).sum() - 255) < 6 * math.sqrt(2 * 255)


@settings(max_examples=300)
@given(st.integers(-(2**29) + 1, 2**29 - 1), INT32, st.integers(-2, 1))
def test_unmasking_rounds_noise_away(product, share, noise):
    answer = np.array([[_wrapped(-share)]], np.int32)
    value = np.array([[_wrapped(4 * product + share + noise)]], np.int32)
    assert unmask(answer, value, PARAMETERS).tolist() == [[product]]


@pytest.mark.parametrize("noise", [-3, 2])
def test_the_room_for_noise_is_half_a_step(noise):
    zero = np.zeros((1, 1), np.int32)
    assert unmask(zero, zero + noise, PARAMETERS).tolist() != [[0]]


@pytest.mark.parametrize("product", [2**29 - 1, -(2**29) + 1])
@pytest.mark.parametrize("noise", [-2, 1])
def test_the_largest_products_do_not_wrap(product, noise):
    zero = np.zeros((1, 1), np.int32)
    assert unmask(zero, zero + 4 * product + noise, PARAMETERS).tolist() == [[product]]


def _wrapped(value: int) -> int:
    return (value + 2**31) % 2**32 - 2**31


def test_masks_are_pinned():
    assert uniform_masks(MASK_KEY, PARAMETERS, 1).tolist() == [
        [725895155, 545207245, 753080732, 741201939, 687709781, 54851970, 504932716]
    ]
