"""Which tensor of a GGUF file gets which type: the mixtures by name, and a wider type where one has no room."""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Final

from gguf import GGML_QUANT_SIZES, MODEL_ARCH
from gguf import GGMLQuantizationType as Kind
from torch import Tensor, nn

from confide.models.gguf.types import GgufType

WHOLE: Final = (GgufType.F16, GgufType.BF16)
"""Types of single weights, not of blocks."""
_MAIN: Final = {type: Kind[type.name.removesuffix("_M")] for type in GgufType}
_KEPT_F32: Final = ("position_embd.weight", "rope_freqs.weight")
_EMBEDDING: Final = "token_embd.weight"
_HEAD: Final = "output.weight"
_LAYER: Final = re.compile(r"blk\.(\d+)\.(\w+)\.weight")
_SHORT_ROWS: Final = {Kind.Q4_K: Kind.Q5_0, Kind.Q5_K: Kind.Q5_1, Kind.Q6_K: Kind.Q8_0}
"""What llama.cpp takes for rows that are not whole blocks of 256."""
_BLOCK: Final = 32
_STEPS: Final = {
    Kind.F16: (1, 1),
    Kind.Q8_0: (127, 127),
    Kind.Q5_1: (1, 31),
    Kind.Q5_0: (16, 16),
    Kind.Q4_0: (8, 8),
    Kind.Q6_K: (32 * 64, 32 * 128),
    Kind.Q5_K: (32, 31 * 63),
    Kind.Q4_K: (32, 15 * 63),
}
"""By which numbers the largest weight of a block is divided to get its float16 scales, the smallest and the largest.

The K types have one scale for the scales of sub-blocks, and another for their smallest weights; they search for the
best, which may be some larger. From the block layouts in ggml-common.h.
"""
_TOLERATED: Final = (1 / 4, 1 / 100)
"""How far the scale of a block may be off, and a float16 that is the largest of 32 weights."""


@dataclass(frozen=True)
class Mixture:
    """The types of one model's matrices.

    layers: of the model. shared: whether several query heads share a head of keys and values.
    names: of all tensors, which say whether the head is the embedding.
    """

    type: GgufType
    arch: MODEL_ARCH
    layers: int
    shared: bool
    names: Collection[str]

    def planned(self, name: str, columns: int) -> Kind:
        """The type of a matrix by its place.

        Embedding and head, to which few bits do the most harm, have at least 8 beside blocks of 32. For the K types
        this is the rule of llama.cpp's src/llama-quant.cpp for models without experts: a head has 6 bits, an embedding
        that is not the head as most; and `_m` gives the values of attention and the matrix that leads out of a layer 6
        in the first and the last eighth of the layers and in every third between.
        """
        main = _MAIN[self.type]
        if self.type in WHOLE:
            return main
        if GGML_QUANT_SIZES[main][0] == _BLOCK:
            return Kind.Q8_0 if name in (_EMBEDDING, _HEAD) else main
        if name == _HEAD or (name == _EMBEDDING and _HEAD not in self.names):
            return Kind.Q8_0 if self.arch is MODEL_ARCH.FALCON or columns % GGML_QUANT_SIZES[main][0] else Kind.Q6_K
        if self.type.name.endswith("_M") and (found := _LAYER.fullmatch(name)):
            return self._mixed(int(found[1]), found[2], main)
        return main

    def _mixed(self, layer: int, role: str, main: Kind) -> Kind:
        eighth = self.layers // 8
        more = layer < eighth or layer >= 7 * self.layers // 8 or (layer - eighth) % 3 == 2
        if role in ("attn_v", "attn_qkv"):
            if more:
                return Kind.Q6_K
            # 70 billion weights: values that eight heads share are few, so one more bit costs nothing
            seventy = self.layers == 80 and (self.arch is MODEL_ARCH.QWEN2 or self.shared)
            return Kind.Q5_K if seventy and self.arch in (MODEL_ARCH.LLAMA, MODEL_ARCH.QWEN2) else main
        if role != "ffn_down":
            return main
        if self.type is GgufType.Q4_K_M and self.arch is MODEL_ARCH.FALCON:
            return Kind.Q6_K if layer < self.layers // 16 else Kind.Q5_K if more else main
        return Kind.Q6_K if more else main

    def stored(self, name: str, tensor: Tensor) -> Kind:
        """The type that a tensor gets: the planned one, or the next wider that has room for its rows and its weights.

        Vectors, positions and rotary frequencies stay float32.
        """
        if not is_matrix(name, tensor):
            return Kind.F32
        kind = self.planned(name, tensor.shape[-1])
        shorter = [_SHORT_ROWS[kind]] if kind in _SHORT_ROWS else []
        return next(one for one in (kind, *shorter, Kind.F16, Kind.F32) if _holds(tensor, one))


def is_matrix(name: str, tensor: Tensor) -> bool:
    """Whether a tensor is stored in fewer bits."""
    return tensor.ndim > 1 and name not in _KEPT_F32


def _holds(tensor: Tensor, kind: Kind) -> bool:
    """Whether a type has room for the largest and the smallest blocks of a matrix.

    A float16 ends at 65,504, and below 1e-7 there is none but zero. It is each weight, or else the scale of a block,
    which is the largest weight of the block over the steps that the type has.
    """
    if kind in (Kind.F32, Kind.BF16):
        return True
    block, _ = GGML_QUANT_SIZES[kind]
    if tensor.shape[-1] % block:
        return False
    fewest, most = _STEPS[kind]
    block = max(block, _BLOCK)
    flat = tensor.detach().float().reshape(-1)
    largest = nn.functional.pad(flat, (0, -len(flat) % block)).reshape(-1, block).abs().amax(1)
    smallest_scale = largest / most
    off = (smallest_scale.half().float() - smallest_scale).abs()
    fits = (largest / fewest).half().isfinite()
    return bool((fits & (off <= _TOLERATED[kind is Kind.F16] * smallest_scale)).all())
