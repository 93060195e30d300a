"""What the server multiplies with: the weights of queries, keys and values."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from torch import nn

from confide.attention.shape import AttentionShape
from confide.errors import ModelNotSupported


@dataclass(frozen=True, eq=False)
class AttentionWeights:
    """Projections to queries, keys and values of some heads; the output projection stays with the client.

    `qkv` is float64 (3 * heads * head_width, width), `qkv_bias` float64 (3 * heads * head_width,): queries of all
    heads, then keys, then values.
    """

    heads: int
    qkv: NDArray[np.float64] = field(repr=False)
    qkv_bias: NDArray[np.float64] = field(repr=False)

    def __post_init__(self) -> None:
        rows = self.qkv.shape[0] if self.qkv.ndim == 2 else 0
        if rows == 0 or rows % (3 * self.heads) or self.qkv_bias.shape != (rows,):
            raise ModelNotSupported(
                f"qkv must be (3 * heads * head_width, width) with one bias a row; for {self.heads} heads got "
                f"{self.qkv.shape} and {self.qkv_bias.shape}."
            )

    @classmethod
    def from_gpt2(cls, attention: nn.Module, heads: Sequence[int] | None = None) -> "AttentionWeights":
        """Those of a GPT2Attention module, of all its heads or of the given ones. Raises ModelNotSupported."""
        projection, count = getattr(attention, "c_attn", None), getattr(attention, "num_heads", None)
        if projection is None or count is None:
            raise ModelNotSupported("Encrypted attention is for GPT-2: give a GPT2Attention module.")
        chosen = list(range(count)) if heads is None else list(heads)
        if not chosen or not set(chosen) <= set(range(count)) or len(set(chosen)) < len(chosen):
            raise ModelNotSupported(f"heads must name some of 0 to {count - 1}, each once; got {chosen}.")
        weight = projection.weight.detach().double().cpu().numpy()  # Conv1D keeps (inputs, outputs)
        bias = projection.bias.detach().double().cpu().numpy()
        width = weight.shape[0]
        by_head = weight.T.reshape(3, count, width // count, width)[:, chosen]
        return cls(
            heads=len(chosen),
            qkv=np.ascontiguousarray(by_head.reshape(-1, width)),
            qkv_bias=bias.reshape(3, count, width // count)[:, chosen].reshape(-1),
        )

    def shape(self, tokens: int) -> AttentionShape:
        """The block's shape with this many tokens at most."""
        rows, width = self.qkv.shape
        return AttentionShape(width=width, heads=self.heads, head_width=rows // (3 * self.heads), tokens=tokens)

    def by_role(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """The weights (3, heads, head_width, width) and biases (3, heads, head_width) of query, key and value."""
        width = self.qkv.shape[1]
        return self.qkv.reshape(3, self.heads, -1, width), self.qkv_bias.reshape(3, self.heads, -1)

    def with_centred_keys(self, centre: NDArray[np.float64]) -> "AttentionWeights":
        """The same attention with this vector, (heads, head_width), taken from every key.

        It takes the same number from every score of a query, which softmax does not see.
        """
        bias = self.by_role()[1].copy()
        bias[1] -= centre
        return AttentionWeights(self.heads, self.qkv, bias.reshape(-1))
