"""Which matrix gets which type, and that none is given one that has no room for it."""

import ctypes
from collections import Counter
from unittest import mock
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from gguf import MODEL_ARCH
from gguf import GGMLQuantizationType as Kind
from gguf.quants import dequantize, quantize
from hypothesis import example, given
from hypothesis import strategies as st

from confide.errors import ConfideError
from confide.models.gguf.ggml import find_library, quantize_blocks
from confide.models.gguf.mixture import Mixture
from confide.models.gguf.types import GgufType

ROLES = ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
HEAD = ("token_embd.weight", "output.weight")


def mixture(
    type: GgufType, *, arch: MODEL_ARCH = MODEL_ARCH.LLAMA, layers: int = 32, shared: bool = True, tied: bool = False
) -> Mixture:
    matrices = [f"blk.{layer}.{role}.weight" for layer in range(layers) for role in ROLES]
    return Mixture(type, arch, layers, shared, (*HEAD[: 1 if tied else 2], *matrices))


def planned(mixed: Mixture, role: str) -> list[str]:
    """The types of one role's matrices in the order of the layers."""
    return [mixed.planned(f"blk.{layer}.{role}.weight", 4096).name for layer in range(mixed.layers)]


def test_q4_k_m_of_32_layers_is_that_of_the_published_files() -> None:
    """A Llama 2 or 3 of 32 layers in Q4_K_M, as its authors publish it: 193 matrices q4_K, 33 q6_K."""
    mixed = mixture(GgufType.Q4_K_M)
    counts = Counter(mixed.planned(name, 4096) for name in mixed.names)
    assert counts == {Kind.Q4_K: 193, Kind.Q6_K: 33}
    more = [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]
    for role in ("attn_v", "ffn_down"):
        assert [layer for layer, kind in enumerate(planned(mixed, role)) if kind == "Q6_K"] == more
    assert set(planned(mixed, "ffn_up")) == {"Q4_K"}
    assert [mixed.planned(name, 4096).name for name in HEAD] == ["Q4_K", "Q6_K"]


def test_q5_k_m_q6_k_and_a_head_that_is_the_embedding() -> None:
    mixed = mixture(GgufType.Q5_K_M, tied=True)
    counts = Counter(mixed.planned(name, 4096).name for name in mixed.names)
    assert counts == {"Q5_K": 192, "Q6_K": 33}
    assert mixed.planned("token_embd.weight", 4096) is Kind.Q6_K
    assert mixed.planned("token_embd.weight", 4000) is Kind.Q8_0
    six = mixture(GgufType.Q6_K)
    assert {six.planned(name, 4096) for name in six.names} == {Kind.Q6_K}


def test_what_is_special_of_an_architecture() -> None:
    assert Counter(planned(mixture(GgufType.Q4_K_M, layers=80), "attn_v")) == {"Q5_K": 40, "Q6_K": 40}
    assert Counter(planned(mixture(GgufType.Q4_K_M, layers=80, shared=False), "attn_v")) == {"Q4_K": 40, "Q6_K": 40}
    falcon = mixture(GgufType.Q4_K_M, arch=MODEL_ARCH.FALCON)
    assert planned(falcon, "ffn_down")[:5] == ["Q6_K", "Q6_K", "Q5_K", "Q5_K", "Q4_K"]
    assert falcon.planned("output.weight", 4096) is Kind.Q8_0
    assert Counter(planned(falcon, "attn_qkv")) == {"Q4_K": 16, "Q6_K": 16}


def test_embedding_and_head_have_eight_bits_beside_small_blocks() -> None:
    for type in (GgufType.Q8_0, GgufType.Q5_0, GgufType.Q4_0):
        mixed = mixture(type)
        assert {mixed.planned(name, 4096) for name in HEAD} == {Kind.Q8_0}
        assert set(planned(mixed, "ffn_down")) == {type.name}


@pytest.mark.parametrize(
    ("type", "columns", "stored"),
    [
        (GgufType.Q4_K_M, 288, "Q5_0"),
        (GgufType.Q5_K_M, 288, "Q5_1"),
        (GgufType.Q6_K, 288, "Q8_0"),
        (GgufType.Q4_K_M, 250, "F16"),
        (GgufType.Q8_0, 250, "F16"),
        (GgufType.BF16, 250, "BF16"),
    ],
)
def test_rows_that_are_no_whole_blocks_get_what_llama_cpp_gives_them(type: GgufType, columns: int, stored: str) -> None:
    assert mixture(type).stored("blk.5.ffn_up.weight", torch.ones(2, columns)).name == stored


@pytest.mark.parametrize(
    ("type", "value", "stored"),
    [
        (GgufType.F16, 65_504.0, "F16"),
        (GgufType.F16, 70_000.0, "F32"),
        (GgufType.F16, 1e-8, "F32"),
        (GgufType.Q8_0, 1e-7, "F32"),
        (GgufType.Q8_0, 4e-6, "F16"),
        (GgufType.Q8_0, 1e-3, "Q8_0"),
        (GgufType.Q8_0, 70_000.0, "Q8_0"),
        (GgufType.Q8_0, 1e7, "F32"),
        (GgufType.Q5_0, 2e6, "F32"),
        (GgufType.Q4_0, 1e6, "F32"),
        (GgufType.Q4_0, 0.0, "Q4_0"),
        (GgufType.Q6_K, 1e-3, "Q6_K"),
        (GgufType.Q6_K, 1e-4, "Q8_0"),
        (GgufType.Q6_K, 1e9, "F32"),
        (GgufType.Q5_K_M, 1e6, "Q5_K"),
        (GgufType.Q5_K_M, 3e6, "F32"),
        (GgufType.Q4_K_M, 1e-5, "Q5_0"),
        (GgufType.Q4_K_M, 0.0, "Q4_K"),
    ],
)
def test_a_matrix_that_its_type_has_no_room_for_gets_a_wider_one(type: GgufType, value: float, stored: str) -> None:
    weights = torch.randn(4, 256, generator=torch.Generator().manual_seed(1)) + 1
    weights[2] = value
    kind = mixture(type).stored("blk.5.ffn_up.weight", weights)
    assert kind.name == stored
    assert read_back(weights, kind)[2] == pytest.approx([value] * 256, rel=0.26)


def read_back(weights: torch.Tensor, kind: Kind) -> np.ndarray[tuple[int, ...], np.dtype[np.float32]]:
    write = quantize_blocks if kind.name.endswith("_K") else quantize
    return dequantize(write(weights.numpy(), kind), kind)


@example(-6.09375, GgufType.Q5_K_M, 3)
@given(st.floats(-12, 12), st.sampled_from([GgufType.Q6_K, GgufType.Q5_K_M, GgufType.Q4_K_M]), st.integers(0, 9))
def test_no_block_becomes_infinite_or_nothing(exponent: float, type: GgufType, seed: int) -> None:
    weights = torch.randn(2, 256, generator=torch.Generator().manual_seed(seed)) * 10**exponent
    kind = mixture(type).stored("blk.5.ffn_up.weight", weights)
    error = torch.from_numpy(read_back(weights, kind)) - weights
    # Where a block's scale is so small that float16 has few bits left for it, a tenth is lost, and never all.
    assert error.square().sum() < 0.2 * weights.square().sum()


@pytest.mark.parametrize("kind", [Kind.Q6_K, Kind.Q5_K, Kind.Q4_K, Kind.Q5_0, Kind.Q4_0])
def test_importance_moves_the_error_to_where_it_costs_least(kind: Kind) -> None:
    generator = np.random.default_rng(5)
    weights = generator.standard_normal((64, 512)).astype(np.float32)
    importance = generator.random(512).astype(np.float32) ** 4 + np.float32(1e-6)
    plain, weighed = (
        ((dequantize(quantize_blocks(weights, kind, given), kind) - weights) ** 2 * importance).mean()
        for given in (None, importance)
    )
    assert weighed < 0.9 * plain


@pytest.mark.parametrize("kind", [Kind.Q8_0, Kind.Q5_1, Kind.Q5_0, Kind.Q4_0])
def test_ggml_and_the_gguf_library_write_the_same_blocks(kind: Kind) -> None:
    weights = np.random.default_rng(5).standard_normal((8, 256)).astype(np.float32)
    mine, theirs = (dequantize(write(weights, kind), kind) for write in (quantize_blocks, quantize))
    assert (mine != theirs).mean() < 0.01  # halves are rounded either way


class Library:
    """One that has ggml's functions and does nothing in them, but says so."""

    def __init__(self, written: int) -> None:
        self.ggml_quantize_chunk = Mock(return_value=written)
        self.ggml_validate_row_data = Mock(return_value=True)


def test_a_library_that_does_not_quantize_is_found_at_once() -> None:
    find_library.cache_clear()
    for library in (Library(0), Library(210), object()):  # a block of Q6_K has 210 bytes, which stay zeros
        with mock.patch.object(ctypes, "CDLL", return_value=library), pytest.raises(ConfideError, match="xllamacpp"):
            quantize_blocks(np.ones((1, 256), np.float32), Kind.Q6_K)
