"""GPT-2's attention in integers of few bits: an integer twin for the question how many bits attention needs.

This repeats the study of Zama's GPT-2 example (Concrete ML, "Encrypted Large Language Model with FHE", 2023): inputs,
weights, queries, keys, values, scores and every step of the softmax have n bits, with one symmetric scale for each
tensor, found on calibration texts. Their TFHE circuit looks up exp and the inverse in tables, so both are exact here
but for the rounding of what goes in and out. Two things differ: the bias is added before values are rounded to n bits,
not rounded by itself, and the output projection is not part of it, because the client has it in the clear.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers.models.gpt2.modeling_gpt2 import GPT2Attention

from confide.errors import ConfideError

FEWEST_BITS, MOST_BITS = 2, 11
"""From three levels to what nobody can tell from float."""


@dataclass(frozen=True)
class Quantizer:
    """Symmetric uniform quantization: integers from -levels to levels, each worth `scale`."""

    scale: float
    levels: int

    @classmethod
    def covering(cls, largest: float, bits: int) -> "Quantizer":
        """For values up to `largest` in magnitude, on 2^(bits - 1) - 1 levels on each side of zero."""
        levels = 2 ** (bits - 1) - 1
        return cls((largest or 1.0) / levels, levels)

    def quantize(self, values: Tensor) -> Tensor:
        """The nearest integers, as float64; what is beyond the range becomes the largest."""
        return (values.double() / self.scale).round().clamp(-self.levels, self.levels)


@dataclass(frozen=True)
class HeadWeights:
    """What some heads of one attention module compute with, in float64.

    projection (3, heads, width, head width) and bias (3, heads, 1, head width) of queries, keys and values.
    scaling: of the scores.
    """

    projection: Tensor
    bias: Tensor
    scaling: float

    @classmethod
    def of(cls, attention: GPT2Attention, heads: Sequence[int]) -> "HeadWeights":
        """Those of a stock module, whose c_attn has queries, keys and values side by side."""
        weight, bias = attention.c_attn.weight.detach().double(), attention.c_attn.bias.detach().double()
        width, head_width = len(weight), attention.head_dim
        by_head = weight.view(width, 3, width // head_width, head_width).permute(1, 2, 0, 3)
        biases = bias.view(3, width // head_width, 1, head_width)
        return cls(by_head[:, list(heads)], biases[:, list(heads)], attention.scaling)

    def project(self, x: Tensor) -> Tensor:
        """x (tokens, width) -> queries, keys and values (3, heads, tokens, head width)."""
        return x.double() @ self.projection + self.bias

    def scores(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Scaled scores (heads, tokens, tokens), without the mask."""
        return queries @ keys.transpose(-1, -2) * self.scaling


@dataclass(frozen=True)
class Magnitudes:
    """The largest magnitude of each activation on calibration texts. qkv: of queries, of keys and of values."""

    inputs: float
    qkv: tuple[float, ...]
    scores: float

    @classmethod
    def calibrate(cls, weights: HeadWeights, texts: Sequence[Tensor]) -> "Magnitudes":
        """texts: inputs of the attention module, (tokens, width) each. Raises ConfideError where there are none."""
        if not texts:
            raise ConfideError("There is nothing to calibrate on; give the inputs of one text or more.")
        found = [cls._of(weights, x) for x in texts]
        qkv = tuple(max(largest) for largest in zip(*(of.qkv for of in found), strict=True))
        return cls(max(of.inputs for of in found), qkv, max(of.scores for of in found))

    @classmethod
    def _of(cls, weights: HeadWeights, x: Tensor) -> "Magnitudes":
        qkv = weights.project(x)
        scores = weights.scores(qkv[0], qkv[1]).tril()
        return cls(float(x.abs().max()), tuple(qkv.abs().amax((1, 2, 3)).tolist()), float(scores.abs().max()))


class QuantizedHeads:
    """Some heads of an attention module, with `bits` for weights and activations.

    Products are sums of integers below 2^53, which float64 holds exactly and multiplies fast.
    """

    def __init__(self, weights: HeadWeights, magnitudes: Magnitudes, bits: int) -> None:
        """Raises ConfideError for bits outside FEWEST_BITS to MOST_BITS."""
        if not FEWEST_BITS <= bits <= MOST_BITS:
            raise ConfideError(f"The study covers {FEWEST_BITS} to {MOST_BITS} bits, not {bits}; choose among them.")
        self._weights = weights
        largest = float(weights.projection.abs().max())
        self._projection = Quantizer.covering(largest, bits)
        self._integers = self._projection.quantize(weights.projection)
        self._inputs = Quantizer.covering(magnitudes.inputs, bits)
        self._qkv = [Quantizer.covering(of, bits) for of in magnitudes.qkv]
        self._scores = Quantizer.covering(magnitudes.scores, bits)
        # exp of what is at most 0, the inverse of a sum that is at least 1, and their product.
        self._unit = Quantizer.covering(1.0, bits)

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """x (tokens, width), after the block's first norm -> context vectors float64 (tokens, heads * head width)."""
        queries, keys, values = self._project(x)
        probabilities = self._softmax(self._score(queries, keys))
        context = (probabilities @ values) * (self._unit.scale * self._qkv[2].scale)
        return context.transpose(0, 1).flatten(1)

    def _project(self, x: Tensor) -> list[Tensor]:
        """Integer queries, keys and values, (heads, tokens, head width) each."""
        products = (self._inputs.quantize(x) @ self._integers) * (self._inputs.scale * self._projection.scale)
        qkv = products + self._weights.bias
        return [quantizer.quantize(each) for quantizer, each in zip(self._qkv, qkv, strict=True)]

    def _score(self, queries: Tensor, keys: Tensor) -> Tensor:
        """Integer scores (heads, tokens, tokens)."""
        return self._scores.quantize(self._weights.scores(queries, keys) * (self._qkv[0].scale * self._qkv[1].scale))

    def _softmax(self, scores: Tensor) -> Tensor:
        """Integer probabilities of integer scores, causal: zero for tokens to come."""
        tokens = scores.shape[-1]
        seen = torch.ones(tokens, tokens, dtype=torch.bool, device=scores.device).tril()
        scores = scores.masked_fill(~seen, -math.inf)
        exponentials = self._unit.quantize(torch.exp((scores - scores.amax(-1, keepdim=True)) * self._scores.scale))
        inverse = self._unit.quantize(1 / (exponentials.sum(-1, keepdim=True) * self._unit.scale))
        return self._unit.quantize(exponentials * inverse * self._unit.scale**2)
