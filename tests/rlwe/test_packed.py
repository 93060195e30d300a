"""Products with packed weights against 64-bit integers; where there is no exact kernel they are not used."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from confide.rlwe import packed as module
from confide.rlwe.online import answer, matrix_product
from confide.rlwe.packed import MOST_TOKENS, PackedMatrix

from .helpers import parameters_of, random_weights
from .test_online import random_int32, wrapped

needs_kernel = pytest.mark.skipif(not module._has_kernel(""), reason="this processor has no VNNI")


def exact(weights: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    return wrapped(values.long() @ weights.long().t())


@needs_kernel
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 9), st.integers(0, 2**32))
def test_the_product_is_exact_mod_32_bits(rows: int, columns: int, tokens: int, seed: int) -> None:
    weights, values = random_weights(rows, columns, seed), random_int32(tokens, columns, seed=seed)
    assert torch.equal(PackedMatrix(weights).product(values), exact(weights, values))


@needs_kernel
@pytest.mark.parametrize("weight", [127, -127])
@pytest.mark.parametrize("value", [0, 2**30 - 1, 2**29, 0x7F7F7F7F, 0x7F7F7F80, 2**31 - 1, -(2**31), -1])
@pytest.mark.parametrize("columns", [1032, 1033, 3077])
def test_extreme_products_are_exact_mod_32_bits(weight: int, value: int, columns: int) -> None:
    weights = torch.full((3, columns), weight, dtype=torch.int8)
    values = torch.full((2, columns), value, dtype=torch.int32)
    assert torch.equal(PackedMatrix(weights).product(values), exact(weights, values))


@pytest.mark.parametrize(("columns", "parts"), [(1032, 1), (1033, 2), (3077, 3)])
def test_columns_are_cut_where_a_float32_would_not_hold_a_sum(columns: int, parts: int) -> None:
    weights = torch.full((2, columns), 127, dtype=torch.int8)
    cut = module._exact_parts(weights)
    assert len(cut) == parts
    assert [column for part in cut for column in range(columns)[part]] == list(range(columns))
    assert all(127 * 128 * len(range(columns)[part]) <= 2**24 for part in cut)


@needs_kernel
def test_a_matrix_gives_the_same_answers_packed_and_not() -> None:
    weights = random_weights(600, 600)
    matrix = PackedMatrix.where_faster(weights)
    assert isinstance(matrix, PackedMatrix)
    for tokens in (1, 5, MOST_TOKENS, MOST_TOKENS + 1):
        values = random_int32(tokens, 600, seed=tokens)
        assert torch.equal(matrix_product(matrix, values), matrix_product(weights, values))


@needs_kernel
def test_more_vectors_than_gain_anything_take_the_plain_product(monkeypatch: pytest.MonkeyPatch) -> None:
    matrix = PackedMatrix(random_weights(8, 8))
    monkeypatch.setattr(PackedMatrix, "product", lambda *_: pytest.fail("packed"))
    matrix_product(matrix, random_int32(MOST_TOKENS + 1, 8))


def test_small_matrices_stay_as_they_are() -> None:
    weights = random_weights(100, 100)
    assert PackedMatrix.where_faster(weights) is weights


@pytest.mark.parametrize("reason", ["fp32", "no VNNI", "saturates"])
def test_without_an_exact_kernel_matrices_stay_as_they_are(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    weights = random_weights(600, 600)
    module._has_kernel.cache_clear()
    if reason == "fp32":
        monkeypatch.setenv("CONFIDE_GEMM", "fp32")
    elif reason == "no VNNI":
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True})
    else:
        monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_vnni": True})
        monkeypatch.setattr(module, "_pack", lambda weights: weights)
        monkeypatch.setattr(module, "_kernel", saturating)
    try:
        assert PackedMatrix.where_faster(weights) is weights
    finally:
        module._has_kernel.cache_clear()


def saturating(packed: torch.Tensor, digits: torch.Tensor) -> torch.Tensor:
    """Pairs of products added in 16 bits, as kernels without VNNI do."""
    products = digits.long()[:, None, :] * packed.long()[None]
    pairs = torch.nn.functional.pad(products, (0, products.shape[-1] % 2)).unflatten(-1, (-1, 2)).sum(-1)
    return (pairs.clamp(-(2**15), 2**15 - 1).sum(-1) - 128 * packed.long().sum(-1)).float()


def test_the_saturating_kernel_is_exact_on_small_values() -> None:
    weights, digits = random_weights(4, 30) % 16, torch.arange(60, dtype=torch.uint8).view(2, 30)
    assert torch.equal(saturating(weights, digits).long(), (digits.long() - 128) @ weights.long().t())


@needs_kernel
def test_an_answer_is_the_same_with_packed_weights() -> None:
    weights, masked, share = random_weights(9, 40), random_int32(2, 40), random_int32(2, 9)
    parameters = parameters_of(weights)
    packed, plain = (answer(matrix, masked, share, parameters) for matrix in (PackedMatrix(weights), weights))
    assert torch.equal(packed, plain)
