"""The online product against 64-bit integers, and the whole protocol: what the client computes is W x."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.rlwe.online import answer, matrix_product
from confide.rlwe.parameters import Profile

from .helpers import DEGREE, OPEN, PRIVATE, clear_product, exchange, parameters_of, random_weights

BOTH = pytest.mark.parametrize("profile", list(Profile))
WORDS = st.integers(0, 2**32)


def random_int32(*shape: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-(2**31), 2**31, shape, generator=generator).to(torch.int32)


def wrapped(values: torch.Tensor) -> torch.Tensor:
    """int64 mod 2^32 as int32."""
    return ((values + 2**31) % 2**32 - 2**31).to(torch.int32)


# -- one product -------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(2, 70), st.integers(1, 9), WORDS)
def test_the_product_is_exact_mod_32_bits(rows, columns, tokens, seed):
    weights, values = random_weights(rows, columns, seed), random_int32(tokens, columns, seed=seed)
    assert torch.equal(matrix_product(weights, values), wrapped(values.long() @ weights.long().t()))


@pytest.mark.parametrize("kernel", ["int8", "fp32"])
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("value", [0, 2**30 - 1, 2**29, 0x7F7F7F7F, 0x7F7F7F80, 2**31 - 1, -(2**31), -1])
@pytest.mark.parametrize("tokens", [1, 3])
def test_extreme_products_are_exact_mod_32_bits(kernel, weight, value, tokens, monkeypatch):
    monkeypatch.setenv("CONFIDE_GEMM", kernel)
    weights = torch.full((3, 3077), weight, dtype=torch.int8)
    values = torch.full((tokens, 3077), value, dtype=torch.int32)
    assert torch.equal(matrix_product(weights, values), wrapped(values.long() @ weights.long().t()))


@pytest.mark.parametrize(("rows", "tokens"), [(1, 1), (1, 5), (8, 1), (2, 2), (8, 5)])
def test_one_column_is_exact_too(rows, tokens):
    weights, values = random_weights(rows, 1), random_int32(tokens, 1)
    assert torch.equal(matrix_product(weights, values), wrapped(values.long() @ weights.long().t()))


def test_a_token_s_answer_does_not_depend_on_its_batch():
    weights, values = random_weights(9, 33), random_int32(5, 33)
    rows = [matrix_product(weights, values[token : token + 1]) for token in range(5)]
    assert torch.equal(torch.cat(rows), matrix_product(weights, values))


@given(st.integers(1, 6), st.integers(1, 4), WORDS)
def test_the_answer_is_four_times_the_product_less_the_share(rows, tokens, seed):
    weights = random_weights(rows, 5, seed)
    masked, share = random_int32(tokens, 5, seed=seed), random_int32(tokens, rows, seed=seed + 1)
    product = 4 * (masked.long() @ weights.long().t())
    private, public = parameters_of(weights, PRIVATE), parameters_of(weights, OPEN)
    assert torch.equal(answer(weights, masked, share, private), wrapped(product - share.long()))
    assert torch.equal(answer(weights, masked, None, public), wrapped(product))


# -- the whole protocol ------------------------------------------------------------------------------------------


def activations_of(generator: np.random.Generator, tokens: int, columns: int, largest: int) -> np.ndarray:
    """int32 (tokens, columns): the first at +largest, the second at -largest, the rest random."""
    values = generator.integers(-largest, largest + 1, (tokens, columns), dtype=np.int32)
    values[0], values[1:2] = largest, -largest
    return values


def check_tokens(done, generator: np.random.Generator, tokens: list[int]) -> None:
    largest = done.parameters.max_activation
    weights = done.weights.numpy()
    for token in tokens:
        count = min(3, DEGREE - token)
        activations = activations_of(generator, count, done.parameters.columns, largest)
        # The largest |W x| there is: the signs of one row.
        activations[-1] = np.sign(weights[generator.integers(len(weights))]).astype(np.int32) * largest
        assert np.array_equal(done.online(activations, token), clear_product(done.weights, activations))


@settings(max_examples=25)
@given(
    st.sampled_from(list(Profile)),
    st.integers(1, 40),
    st.integers(2, 70),
    st.sampled_from(["random", "largest", "smallest", "both", "zero"]),
    WORDS,
)
def test_the_client_computes_w_x(profile, rows, columns, extreme, seed):
    weights = random_weights(rows, columns, seed)
    if extreme in ("largest", "both"):
        weights[0] = 127
    if extreme in ("smallest", "both"):
        weights[-1] = -127
    if extreme == "zero":
        weights[0] = 0
    generator = np.random.default_rng(seed)
    done = exchange(weights, profile, seed=generator.bytes(32))
    inner = generator.integers(1, DEGREE - 4, 2).tolist()
    check_tokens(done, generator, [0, *inner, DEGREE - 3, DEGREE - 1])


@BOTH
def test_every_slot_of_a_pack_computes_w_x(profile):
    done = exchange(random_weights(7, 21), profile)
    generator = np.random.default_rng(0)
    largest = done.parameters.max_activation
    activations = generator.integers(-largest, largest + 1, (DEGREE, 21), dtype=np.int32)
    assert np.array_equal(done.online(activations, 0), clear_product(done.weights, activations))


def test_more_rows_than_a_block():
    done = exchange(random_weights(515, 5))
    check_tokens(done, np.random.default_rng(1), [0, 2048, DEGREE - 1])


@BOTH
def test_long_rows_at_their_widest_activations(profile):
    weights = random_weights(2, 600)
    weights[0] = 127
    weights[1, ::2] = -127
    done = exchange(weights, profile)
    assert done.parameters.activation_bits == 13
    check_tokens(done, np.random.default_rng(2), [0, 1000, DEGREE - 1])


@pytest.mark.slow
@BOTH
def test_a_real_layer_computes_w_x(profile):
    done = exchange(random_weights(768, 768), profile)
    check_tokens(done, np.random.default_rng(3), [0, 1, 17, 2048, DEGREE - 1])


@pytest.mark.slow
@settings(max_examples=40)
@given(st.sampled_from(list(Profile)), st.integers(1, 80), st.integers(2, 300), WORDS)
def test_the_client_computes_w_x_at_length(profile, rows, columns, seed):
    generator = np.random.default_rng(seed)
    done = exchange(random_weights(rows, columns, seed), profile, seed=generator.bytes(32))
    check_tokens(done, generator, [0, *generator.integers(0, DEGREE, 20).tolist(), DEGREE - 1])
