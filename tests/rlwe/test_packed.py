"""Products with packed weights against 64-bit integers; where there is no exact kernel they are not used."""

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st

from confide.rlwe import packed as module
from confide.rlwe.digits import digits
from confide.rlwe.packed import PackedMatrix, weighted_sum

from .helpers import random_weights

KERNELS = [kernel for kernel in [*module.candidates(), module.FLOAT] if module.is_exact(kernel)]
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda kernel: kernel.pack.__name__)


def planes_of(values: np.ndarray, count: int) -> np.ndarray:
    return np.ascontiguousarray(np.moveaxis(digits(values, count), -1, 0))


def exact(weights: torch.Tensor, values: np.ndarray, bits: int) -> np.ndarray:
    return values.astype(object) @ weights.numpy().T.astype(object) % 2**bits


@each_kernel
@settings(max_examples=50)
@given(
    st.integers(1, 40),
    st.integers(1, 300),
    st.integers(1, 9),
    st.sampled_from([4, 6]),
    st.booleans(),
    st.integers(0, 2**32),
)
def test_the_product_is_exact(kernel, rows, columns, tokens, count, narrow, seed):
    weights = random_weights(rows, columns, seed) >> (1 if narrow else 0)
    values = np.random.default_rng(seed).integers(0, 2 ** (8 * count), (tokens, columns))
    product = PackedMatrix(weights, kernel).product(planes_of(values, count))
    assert np.array_equal(product.astype(object) % 2 ** (8 * count), exact(weights, values, 8 * count))


@each_kernel
@pytest.mark.parametrize("weight", [127, -127, 64, -64, 65, 32])
@pytest.mark.parametrize("value", [0, 0x7F7F7F7F7F7F, 0x7F7F7F7F7F80, 2**47 - 1, 2**47, 2**48 - 1])
@pytest.mark.parametrize("columns", [1032, 1033, 3077, 28672])
def test_extreme_products_are_exact(kernel, weight, value, columns):
    weights = torch.full((3, columns), weight, dtype=torch.int8)
    values = np.full((2, columns), value)
    product = PackedMatrix(weights, kernel).product(planes_of(values, 6))
    assert set(product.flatten() % 2**48) == {columns * weight * value % 2**48}


@pytest.mark.parametrize(("columns", "parts"), [(1032, 1), (1033, 2), (3077, 3)])
def test_columns_are_cut_where_a_float32_would_not_hold_a_sum(columns, parts):
    weights = torch.full((2, columns), 127, dtype=torch.int8)
    cut = module.exact_parts(weights)
    assert len(cut) == parts
    assert [column for part in cut for column in range(columns)[part]] == list(range(columns))
    assert all(127 * 128 * len(range(columns)[part]) <= 2**24 for part in cut)


@given(st.lists(st.integers(-(2**29), 2**29), min_size=1, max_size=8), st.sampled_from([7, 8]))
@example([0, 0, 0, 0, -1, 0, 0, -(2**29)], 8)  # four planes of eight bits do not fit into a float64
def test_weighted_sums_are_exact_mod_64_bits(sums, bits):
    total = weighted_sum(np.array(sums, np.int32)[:, None], bits)
    assert (int(total[0]) - sum(value << (bits * place) for place, value in enumerate(sums))) % 2**64 == 0


def test_small_matrices_stay_as_they_are():
    weights = random_weights(100, 100)
    assert PackedMatrix.where_faster(weights) is weights


@pytest.fixture
def unmeasured():
    module.fastest.cache_clear()
    yield
    module.fastest.cache_clear()


@pytest.mark.parametrize("reason", ["fp32", "saturates", "slow", "absent"])
def test_without_an_exact_and_faster_kernel_matrices_stay_as_they_are(reason, monkeypatch, unmeasured):
    weights = random_weights(600, 600)
    kernels = {
        "fp32": KERNELS,
        "saturates": [module.Kernel(lambda weights: weights, saturating, saturates=False)],
        "slow": [module.Kernel(lambda weights: weights, slow, saturates=False)],
        "absent": [module.Kernel(lambda weights: torch.ops.quantized.no_such_kernel(weights), plain, saturates=False)],
    }
    monkeypatch.setattr(module, "candidates", lambda: kernels[reason])
    if reason == "fp32":
        monkeypatch.setenv("CONFIDE_GEMM", "fp32")
    assert PackedMatrix.where_faster(weights) is weights


def test_the_faster_of_exact_kernels_is_taken(monkeypatch, unmeasured):
    fast, late = (module.Kernel(lambda weights: weights, kernel, saturates=False) for kernel in (plain, slow))
    monkeypatch.setattr(module, "candidates", lambda: [late, fast])
    times = iter([2.0, 2.0, 1.0, 2.5, 0.5, 2.0])  # of lone tokens and a prompt, for each
    monkeypatch.setattr(module, "shortest_run", lambda product: next(times))
    matrix = PackedMatrix.where_faster(random_weights(600, 600))
    assert isinstance(matrix, PackedMatrix)
    assert matrix.kernel is fast


def test_the_kernel_is_named(monkeypatch, unmeasured):
    monkeypatch.setattr(module, "candidates", lambda: [module.Kernel(lambda weights: weights, plain, False, "ours")])
    times = iter([3.0, 3.0, 2.0, 2.0])
    monkeypatch.setattr(module, "shortest_run", lambda product: next(times))
    assert module.chosen_kernel() == "ours"
    monkeypatch.setenv("CONFIDE_GEMM", "fp32")
    assert module.chosen_kernel() == "float32"


def plain(packed, digits, zero):
    return ((digits.long() - zero) @ packed.long().t()).float()


def slow(packed, digits, zero):
    for _ in range(3):
        product = plain(packed, digits, zero)
    return product


def saturating(packed, digits, zero):
    """Pairs of products added in 16 bits, as kernels without VNNI do."""
    products = digits.long()[:, None, :] * packed.long()[None]
    pairs = torch.nn.functional.pad(products, (0, products.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return (pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - zero * packed.long().sum(-1)).float()


def test_a_saturating_kernel_passes_with_the_digits_that_its_weights_allow():
    assert module.is_exact(module.Kernel(lambda weights: weights, saturating, saturates=True))
    assert not module.is_exact(module.Kernel(lambda weights: weights, saturating, saturates=False))


@pytest.mark.parametrize("largest", [64, 65, 127])
def test_digits_are_as_narrow_as_weights_demand(largest):
    """Eight bits with weights of 65 would add 33,150 in a pair."""
    weights = torch.full((4, 10), largest, dtype=torch.int8)
    matrix = PackedMatrix(weights, module.Kernel(lambda weights: weights, saturating, saturates=True))
    values = np.full((2, 10), 0x7F7F7F7F7F7F)
    assert set(matrix.product(planes_of(values, 6)).flatten() % 2**48) == {10 * largest * 0x7F7F7F7F7F7F % 2**48}
