"""The online product against 64-bit integers, and the whole protocol: what the client computes is W x."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.rlwe.digits import digits
from confide.rlwe.online import Ahead, GroupMatrix, matrix_product
from confide.rlwe.open_weights import open_pads
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import MAX_COLUMNS, Profile, require_noise_fits

from .helpers import DEGREE, MODULUS, OPEN, Party, clear_product, hint_of, parameters_of, random_weights

WORDS = st.integers(0, 2**32)
KERNELS = pytest.mark.parametrize("kernel", ["", "fp32"])


def random_int32(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def wrapped(values: torch.Tensor) -> torch.Tensor:
    """int64 mod 2^32 as int32."""
    return ((values + 2**31) % 2**32 - 2**31).to(torch.int32)


# -- one product -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 70), st.integers(1, 9), WORDS)
def test_the_product_is_exact_mod_32_bits(rows, columns, tokens, seed):
    weights, values = random_weights(rows, columns, seed), random_int32(tokens, columns, seed=seed)
    assert torch.equal(matrix_product(weights, values), wrapped(values.long() @ weights.long().t()))


@KERNELS
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("value", [0x7F7F7F7F, 0x7F7F7F80, 2**31 - 1, -(2**31)])
@pytest.mark.parametrize("tokens", [1, 3])
def test_extreme_products_are_exact_mod_32_bits(kernel, weight, value, tokens, monkeypatch):
    monkeypatch.setenv("CONFIDE_GEMM", kernel)
    weights = torch.full((3, MAX_COLUMNS), weight, dtype=torch.int8)
    values = torch.full((tokens, MAX_COLUMNS), value, dtype=torch.int32)
    assert torch.equal(matrix_product(weights, values), wrapped(values.long() @ weights.long().t()))


@KERNELS
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("d", [0x7F7F7F7F7F7F, 0x7F7F7F7F7F80, 2**47])
@pytest.mark.parametrize("columns", [1, 2048, MAX_COLUMNS])
def test_extreme_answers_are_the_top_32_bits_rounded(kernel, weight, d, columns, monkeypatch):
    monkeypatch.setenv("CONFIDE_GEMM", kernel)
    rows = 300 if columns == 2048 else 3  # the packed kernels take large matrices only
    weights = torch.full((rows, columns), weight, dtype=torch.int8)
    u = torch.full((rows, DEGREE), -32, dtype=torch.int8)
    server = GroupMatrix(weights, u)
    planes = np.moveaxis(digits(np.full((2, columns), d, np.int64), 6), -1, 0)
    p0 = np.moveaxis(digits(np.full((2, DEGREE), d, np.int64), 6), -1, 1)
    answers = server.answer(np.ascontiguousarray(planes), server.ahead(np.ascontiguousarray(p0)))
    exact = (columns * weight - 32 * DEGREE) * d % MODULUS
    assert set((answers.astype(np.int64) % 2**32).flatten()) == {(exact + 2**15 >> 16) % 2**32}


@settings(max_examples=20)
@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 5), WORDS)
def test_answers_are_the_top_32_bits_rounded(rows, columns, tokens, seed):
    generator = np.random.default_rng(seed)
    weights, u = random_weights(rows, columns, seed), random_weights(rows, DEGREE, seed + 1) >> 2
    d, p0 = generator.integers(0, MODULUS, (tokens, columns)), generator.integers(0, MODULUS, (tokens, DEGREE))
    exact = d.astype(object) @ weights.numpy().T.astype(object) + p0.astype(object) @ u.numpy().T.astype(object)
    server = GroupMatrix(weights, u)
    ahead = server.ahead(np.ascontiguousarray(np.moveaxis(digits(p0, 6), -1, 1)))
    answers = server.answer(np.ascontiguousarray(np.moveaxis(digits(d, 6), -1, 0)), ahead)
    assert np.array_equal(answers.astype(np.int64) % 2**32, (exact + 2**15 >> 16) % 2**32)


@pytest.mark.parametrize("shape", [(9, 33), (600, 600)])
def test_a_token_s_answer_does_not_depend_on_its_batch(shape):
    weights, values = random_weights(*shape), random_int32(133, shape[1])
    rows = [matrix_product(weights, values[token : token + 1]) for token in range(133)]
    assert torch.equal(torch.cat(rows), matrix_product(weights, values))


def test_work_ahead_is_cut_and_joined():
    server = GroupMatrix(random_weights(5, 4), random_weights(5, DEGREE) >> 2)
    p0 = np.random.default_rng(0).integers(-128, 128, (7, 6, DEGREE)).astype(np.int8)
    whole = server.ahead(p0)
    parts = Ahead.join([whole[:3], server.ahead(p0[3:])])
    assert np.array_equal(parts.high, whole.high)
    assert np.array_equal(parts.low, whole.low)
    assert whole.nbytes == 7 * 5 * 6


def test_private_weights_are_not_multiplied_without_keys_nor_open_ones_with():
    private, public = (
        GroupMatrix(random_weights(2, 3), random_weights(2, DEGREE)),
        GroupMatrix(random_weights(2, 3), None),
    )
    planes, p0 = np.zeros((6, 1, 3), np.int8), np.zeros((1, 6, DEGREE), np.int8)
    with pytest.raises(ValueError, match="tokens' keys"):
        private.answer(planes, None)
    with pytest.raises(ValueError, match="tokens' keys"):
        public.answer(planes, private.ahead(p0))
    with pytest.raises(ValueError, match="send none"):
        public.ahead(p0)


# -- the whole protocol ------------------------------------------------------------------------------------------


def activations_of(weights: torch.Tensor, tokens: int, largest: int, seed: int) -> np.ndarray:
    """int32 (tokens, columns): all at +largest, all at -largest, the largest |W x| there is, the rest random."""
    generator = np.random.default_rng(seed)
    values = generator.integers(-largest, largest + 1, (tokens, weights.shape[1]), dtype=np.int32)
    values[0], values[1:2] = largest, -largest
    values[-1] = np.sign(weights[generator.integers(len(weights))].numpy().astype(np.int32)) * largest
    return values


@settings(max_examples=20)
@given(
    st.integers(1, 40),
    st.one_of(st.integers(1, 70), st.integers(2040, 2060), st.integers(4090, 4100)),
    st.integers(1, 5),
    st.sampled_from(["random", "largest", "smallest", "both", "zero"]),
    WORDS,
)
def test_the_client_computes_w_x(rows, columns, tokens, extreme, seed):
    weights = random_weights(rows, columns, seed)
    if extreme in ("largest", "both"):
        weights[0] = 127
    if extreme in ("smallest", "both"):
        weights[-1] = -127
    if extreme == "zero":
        weights[0] = 0
    party = Party.of(weights, tokens)
    activations = activations_of(weights, tokens, party.parameters.max_activation, seed)
    assert np.array_equal(party.exchange(activations), clear_product(weights, activations))


@pytest.mark.parametrize(("columns", "plaintext_bits"), [(768, 30), (11008, 29), (MAX_COLUMNS, 29)])
def test_usual_rows_of_any_length_compute_w_x(columns, plaintext_bits):
    generator = torch.Generator().manual_seed(columns)
    normal = torch.randn(3, columns, generator=generator)
    weights = (normal / normal.abs().amax(1, keepdim=True) * 127).round().to(torch.int8)
    party = Party.of(weights, 3)
    assert party.parameters.plaintext_bits == plaintext_bits
    activations = activations_of(weights, 3, party.parameters.max_activation, 1)
    assert np.array_equal(party.exchange(activations), clear_product(weights, activations))


def test_rows_that_need_a_smaller_plaintext_modulus_compute_w_x():
    weights = random_weights(4, 14336)
    party = Party.of(weights, 3)
    assert party.parameters.plaintext_bits == 28
    require_noise_fits(party.parameters, party.noise_std)
    activations = activations_of(weights, 3, party.parameters.max_activation, 2)
    assert np.array_equal(party.exchange(activations), clear_product(weights, activations))


def test_a_matrix_for_the_packed_kernel_computes_w_x():
    weights = random_weights(400, 768)
    weights[0], weights[1] = 127, -127
    party = Party.of(weights, 130)
    activations = activations_of(weights, 130, party.parameters.max_activation, 3)
    assert np.array_equal(party.exchange(activations), clear_product(weights, activations))


@settings(max_examples=30)
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 5), WORDS)
def test_open_weights_compute_w_x(rows, columns, tokens, seed):
    weights = random_weights(rows, columns, seed)
    parameters = parameters_of(weights, OPEN)
    activations = activations_of(weights, tokens, parameters.max_activation, seed)
    pads, values = open_pads(weights, tokens)
    answers = GroupMatrix(weights, None).answer(mask(activations, pads, parameters), None)
    assert np.array_equal(unmask(answers, values, parameters), clear_product(weights, activations))


@pytest.mark.parametrize("profile", list(Profile))
def test_what_travels_says_nothing_of_constant_inputs(profile):
    """Each plane of d is uniform: Pearson's statistic of its bytes over ten standard deviations would show."""
    weights = random_weights(1, 4000)
    parameters = parameters_of(weights, profile)
    party_pads = Party.of(weights, 20).secrets.pads(0, parameters) if parameters.private else open_pads(weights, 20)[0]
    for plane in mask(np.full((20, 4000), 77, np.int32), party_pads, parameters):
        observed = np.bincount(plane.view(np.uint8).flatten(), minlength=256)
        statistic = ((observed - 312.5) ** 2 / 312.5).sum()
        assert abs(statistic - 255) < 10 * (2 * 255) ** 0.5


def test_hints_of_equal_weights_differ_by_group():
    weights = random_weights(3, 20)
    assert np.mean(hint_of(weights, 0)[0] == hint_of(weights, 1)[0]) < 0.02
