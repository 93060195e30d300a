"""Parameters: what they derive, what they refuse, and their noise against what is measured."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InsecureParameters
from confide.rlwe import parameters as module
from confide.rlwe import tokens as tokens_module
from confide.rlwe.digits import value
from confide.rlwe.parameters import MAX_COLUMNS, Norms, Parameters, noise_std, require_noise_fits
from confide.rlwe.random import ternary
from confide.rlwe.security import MAX_MODULUS_BITS, require_secure_ring
from confide.rlwe.streams import Stream
from confide.rlwe.tokens import TokenSecrets

from .helpers import DEGREE, OPEN, PRIVATE, PUBLIC, hint_of, parameters_of, random_weights


def derive(profile=PRIVATE, rows=768, columns=768, row_l1=40_000, row_l2=2_000.0, **limits) -> Parameters:
    return Parameters.derive(profile, Norms(row_l1, row_l2), rows=rows, columns=columns, **limits)


# -- what they derive --------------------------------------------------------------------------------------------


def test_names_and_sizes():
    private, public = derive(columns=2049), derive(OPEN)
    assert (private.name, public.name) == ("n2048_q48_t30_a32", "open_t32")
    assert (private.planes, private.blocks, private.shift, private.answer_shift) == (6, 2, 18, 2)
    assert (public.planes, public.shift, public.answer_shift) == (4, 0, 0)
    assert private.max_activation == 2 ** (private.activation_bits - 1) - 1


@pytest.mark.parametrize(("bits", "largest"), [(30, 2330), (29, 5986), (28, 13022), (27, 26998)])
def test_the_plaintext_modulus_is_the_largest_whose_noise_fits(bits, largest):
    """The design's table; the norms of U and of the hint's error are taken a little larger here than there."""
    assert derive(row_l2=0.97 * largest, row_l1=1000).plaintext_bits == bits
    if bits > 27:
        assert derive(row_l2=1.005 * largest, row_l1=1000).plaintext_bits == bits - 1
    else:
        with pytest.raises(InsecureParameters, match="split the columns"):
            derive(row_l2=1.005 * largest, row_l1=1000)


@given(st.integers(0, (2**29 - 1) // 127))
def test_activations_are_as_wide_as_can_never_wrap(row_l1):
    parameters = derive(row_l1=row_l1)
    assert row_l1 * parameters.max_activation < 2**29
    wider = 2**parameters.activation_bits - 1
    assert parameters.activation_bits == 15 or row_l1 * wider >= 2**29


@pytest.mark.parametrize("bits", range(8, 15))
def test_the_activation_width_changes_exactly_at_the_bound(bits):
    largest = (2**29 - 1) // (2 ** (bits - 1) - 1)
    assert derive(row_l1=largest).activation_bits == bits
    if bits > 8:
        assert derive(row_l1=largest + 1).activation_bits == bits - 1


def test_activations_can_be_kept_narrower():
    assert derive(row_l1=1000, most_activation_bits=9).activation_bits == 9


# -- what they refuse --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_l1", [(2**29 - 1) // 127 + 1, 2**29, 2**40])
def test_rows_too_long_for_8_bit_activations_are_refused(row_l1):
    with pytest.raises(InsecureParameters, match="split the columns"):
        derive(row_l1=row_l1)


@pytest.mark.parametrize("change", [{"columns": 0}, {"columns": MAX_COLUMNS + 1}, {"rows": 0}, {"rows": -3}])
def test_shapes_out_of_range_are_refused(change):
    with pytest.raises(InsecureParameters, match="outside"):
        replace(derive(), **change)


@pytest.mark.parametrize(("profile", "bits"), [(PRIVATE, 26), (PRIVATE, 31), (PRIVATE, 32), (OPEN, 30)])
def test_other_plaintext_moduli_are_refused(profile, bits):
    with pytest.raises(InsecureParameters, match="plaintext modulus"):
        replace(derive(profile), plaintext_bits=bits)


@pytest.mark.parametrize("bits", [7, 16])
def test_other_activations_are_refused(bits):
    with pytest.raises(InsecureParameters, match="bits are outside"):
        replace(derive(), activation_bits=bits)


def test_noise_beyond_the_rule_is_refused():
    parameters = derive()
    room = 2**17 - 2**15
    require_noise_fits(parameters, room / 11.6)
    with pytest.raises(InsecureParameters, match="wrong too often"):
        require_noise_fits(parameters, room / 11.6 + 1)
    require_noise_fits(derive(OPEN), 1e9)


@pytest.mark.parametrize(("name", "unsafe"), [("MODULUS_BITS", 54), ("RING_DEGREE", 1024), ("ERROR_STD", 1.2)])
def test_an_insecure_ring_is_refused(name, unsafe, monkeypatch):
    monkeypatch.setattr(module, name, unsafe)
    with pytest.raises(InsecureParameters):
        derive()


@pytest.mark.parametrize(("degree", "bits"), list(MAX_MODULUS_BITS.items()))
def test_the_security_table_is_a_limit(degree, bits):
    require_secure_ring(degree, bits, 3.24)
    with pytest.raises(InsecureParameters, match="below 128-bit"):
        require_secure_ring(degree, bits + 1, 3.24)


# -- noise ---------------------------------------------------------------------------------------------------------


def noise_of(weights: torch.Tensor, tokens: int, monkeypatch) -> tuple[np.ndarray, float]:
    """The noise of a group's answers before their rounding, int64 (tokens, rows), and the formula's bound."""
    key = bytes(range(1, 33))
    monkeypatch.setattr(tokens_module, "fresh_key", lambda: key)
    parameters = parameters_of(weights)
    hint, u, std = hint_of(weights)
    secrets = TokenSecrets(PUBLIC, tokens)
    s = ternary(Stream(key), tokens, DEGREE).numpy().astype(np.int64)
    p0 = value(np.moveaxis(secrets.p0, 1, -1))
    d = secrets.pads(0, parameters)
    v = (s @ value(np.moveaxis(hint, 1, -1)).T) << 8
    total = d @ weights.numpy().T.astype(np.int64) + p0 @ u.numpy().T.astype(np.int64) + v
    return ((total + 2**47) & (2**48 - 1)) - 2**47, std


@pytest.mark.parametrize(("columns", "largest"), [(768, 127), (768, 7), (3072, 127), (14336, 127)])
def test_measured_noise_is_what_the_formula_says(columns, largest, monkeypatch):
    """Within a few percent, and tails as a Gaussian's: the bound at 11.6 deviations extrapolates from here."""
    weights = (random_weights(48, columns).int() * largest // 127).to(torch.int8)
    noise, bound = noise_of(weights, 64, monkeypatch)
    deviations = noise / bound
    assert 0.95 < deviations.std() < 1.03
    assert abs(deviations.mean()) < 0.06
    for threshold in (1.0, 2.0, 3.0):
        expected = math.erfc(threshold / math.sqrt(2)) * deviations.size
        beyond = np.count_nonzero(np.abs(deviations) > threshold)
        assert beyond < 1.1 * expected + 5 * math.sqrt(expected)
        assert beyond > 0.7 * expected - 5 * math.sqrt(expected)
    assert np.abs(deviations).max() < 6


def test_the_formula_counts_every_part():
    assert noise_std(1, 0, 0) == pytest.approx(math.sqrt(10.5))
    assert noise_std(0, 1, 0) == pytest.approx(math.sqrt(10.5))
    assert noise_std(0, 0, 3) == pytest.approx(math.sqrt(6))


def test_the_failure_bound_is_below_2_to_minus_64_for_a_token():
    outputs = 2**17
    assert math.log2(2 * outputs) - module.NOISE_STDS**2 / 2 * math.log2(math.e) < -64
