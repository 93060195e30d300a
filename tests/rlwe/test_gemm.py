"""The exact int8 product against 64-bit integers, in both kernels."""

import time

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.rlwe import gemm
from confide.rlwe.gemm import FP32_CHUNK, int8_matmul

CPU = torch.device("cpu")


@pytest.fixture(params=["int8", "fp32"])
def kernel(request, monkeypatch):
    """Each of the two kernels in turn, chosen as a user would."""
    monkeypatch.setenv("CONFIDE_GEMM", request.param)
    gemm.prefers_int8.cache_clear()
    yield request.param
    gemm.prefers_int8.cache_clear()


def random_int8(rows: int, columns: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-128, 128, (rows, columns), dtype=torch.int8, generator=generator)


def expected(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    return (left.long() @ right.long()).int()


def saturating_kernel(left, right, out):
    """What int8 instructions without VNNI do: unsigned times signed bytes, added in pairs that saturate at 16 bits."""
    unsigned, signed = left.long() + 128, right.long()
    if left.shape[1] % 2:
        unsigned = torch.nn.functional.pad(unsigned, (0, 1))
        signed = torch.nn.functional.pad(signed, (0, 0, 0, 1))
    products = unsigned[:, :, None] * signed[None]
    pairs = (products[:, 0::2] + products[:, 1::2]).clamp(-(2**15), 2**15 - 1)
    result = (pairs.sum(1) - 128 * right.long().sum(0)).int()
    return result if out is None else out.copy_(result)


def saturating_kernel_of_the_transpose(left, right, out):
    """The same with the right operand unsigned."""
    result = saturating_kernel(right.t(), left.t(), None).t().contiguous()
    return result if out is None else out.copy_(result)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 40), st.integers(1, 300), st.integers(1, 40), st.integers(0, 2**32))
def test_products_are_exact_for_any_shape(kernel, rows, inner, columns, seed):
    left, right = random_int8(rows, inner, seed), random_int8(inner, columns, seed + 1)
    assert torch.equal(int8_matmul(left, right), expected(left, right))


@pytest.mark.parametrize("inner", [FP32_CHUNK - 1, FP32_CHUNK, FP32_CHUNK + 1, 3 * FP32_CHUNK + 7, 1 << 16])
@pytest.mark.parametrize("left_value", [127, -127, -128])
@pytest.mark.parametrize("right_value", [127, -128])
def test_extreme_sums_are_exact(kernel, inner, left_value, right_value):
    left = torch.full((3, inner), left_value, dtype=torch.int8)
    right = torch.full((inner, 4), right_value, dtype=torch.int8)
    assert torch.equal(int8_matmul(left, right), expected(left, right))


@pytest.mark.parametrize(("rows", "inner", "columns"), [(1, 768, 4), (1, 1, 1), (7, 2050, 1), (17, 1030, 9)])
def test_odd_shapes_are_exact(kernel, rows, inner, columns):
    left, right = random_int8(rows, inner, 1), random_int8(inner, columns, 2)
    assert torch.equal(int8_matmul(left, right), expected(left, right))


def test_the_result_is_written_where_it_is_asked_for(kernel):
    left, right = random_int8(5, 1100, 3), random_int8(1100, 6, 4)
    out = torch.full((5, 6), 99, dtype=torch.int32)
    assert int8_matmul(left, right, out).data_ptr() == out.data_ptr()
    assert torch.equal(out, expected(left, right))


def test_transposed_operands_are_exact(kernel):
    left, right = random_int8(70, 9, 5).t(), random_int8(5, 70, 6).t()
    assert torch.equal(int8_matmul(left, right), expected(left, right))


def test_the_environment_chooses_the_kernel(kernel, monkeypatch):
    calls = []
    for name in ("int8_kernel", "fp32_kernel"):
        real = getattr(gemm, name)
        monkeypatch.setattr(gemm, name, lambda *args, name=name, real=real: calls.append(name) or real(*args))
    gemm.prefers_int8(CPU, kernel)
    calls.clear()
    int8_matmul(random_int8(2, 8, 0), random_int8(8, 2, 0))
    assert calls == [f"{kernel}_kernel"]


@pytest.mark.parametrize("saturating", [saturating_kernel, saturating_kernel_of_the_transpose])
def test_a_kernel_that_saturates_is_not_used(monkeypatch, saturating):
    monkeypatch.delenv("CONFIDE_GEMM", raising=False)
    gemm.prefers_int8.cache_clear()
    monkeypatch.setattr(gemm, "int8_kernel", saturating)
    left, right = torch.full((2, 64), 127, dtype=torch.int8), torch.full((64, 2), 127, dtype=torch.int8)
    try:
        assert not torch.equal(saturating(left, right, None), expected(left, right))
        assert torch.equal(int8_matmul(left, right), expected(left, right))
        assert not gemm.prefers_int8(CPU, "")
    finally:
        gemm.prefers_int8.cache_clear()


def test_the_saturating_takes_int8_on_small_values():
    left, right = random_int8(4, 30, 7) % 16, random_int8(30, 5, 8) % 16
    assert torch.equal(saturating_kernel(left, right, None), expected(left, right))


def test_the_self_test_accepts_an_exact_kernel(monkeypatch):
    monkeypatch.setattr(gemm, "int8_kernel", lambda left, right, out: expected(left, right))
    assert gemm.int8_is_exact(CPU)


@pytest.mark.parametrize("limit", [2**15 - 1, 2**16, 2**20])
def test_the_self_test_finds_a_saturating_accumulator(monkeypatch, limit):
    clamped = lambda left, right, out: (left.long() @ right.long()).clamp(-limit, limit).int()  # noqa: E731
    monkeypatch.setattr(gemm, "int8_kernel", clamped)
    assert not gemm.int8_is_exact(CPU)


def test_an_unknown_choice_is_refused(monkeypatch):
    monkeypatch.setenv("CONFIDE_GEMM", "int4")
    with pytest.raises(ValueError, match="int4"):
        int8_matmul(random_int8(2, 8, 0), random_int8(8, 2, 0))


@pytest.mark.parametrize("slow", ["int8_kernel", "fp32_kernel"])
def test_the_faster_kernel_is_taken(monkeypatch, slow):
    """A processor without VNNI has an int8 kernel that is exact and a hundred times slower."""

    def kernel(seconds):
        def product(*operands):
            time.sleep(seconds)
            return torch.zeros(1, 1)

        return product

    for name in ("fp32_kernel", "int8_kernel"):
        monkeypatch.setattr(gemm, name, kernel(0.2 if name == slow else 0))
    monkeypatch.setattr(gemm, "int8_is_exact", lambda _: True)
    gemm.prefers_int8.cache_clear()
    try:
        assert gemm.prefers_int8(CPU, "") == (slow == "fp32_kernel")
        assert gemm.prefers_int8(CPU, "int8")
    finally:
        gemm.prefers_int8.cache_clear()
