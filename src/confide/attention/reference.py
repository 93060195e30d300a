"""Attention in floating point, without approximations: what the twin and the ciphertexts are compared with."""

import numpy as np
from numpy.typing import NDArray

from confide.attention.weights import AttentionWeights


def scores(x: NDArray[np.float64], weights: AttentionWeights) -> NDArray[np.float64]:
    """Scaled scores (heads, tokens, tokens) of inputs (tokens, width); -inf above the diagonal."""
    query, key, _ = projections(x, weights)
    scaled = query @ key.swapaxes(1, 2) / np.sqrt(query.shape[-1])
    return np.asarray(np.where(np.tri(len(x), dtype=bool), scaled, -np.inf))


def attention(x: NDArray[np.float64], weights: AttentionWeights) -> NDArray[np.float64]:
    """Context vectors (tokens, heads * head_width) of inputs (tokens, width), before the output projection."""
    exponentials = np.exp(_shifted(scores(x, weights)))
    shares = exponentials / exponentials.sum(axis=-1, keepdims=True)
    context = shares @ projections(x, weights)[2]
    return np.asarray(context.swapaxes(0, 1).reshape(len(x), -1))


def _shifted(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(values - values.max(axis=-1, keepdims=True))


def projections(x: NDArray[np.float64], weights: AttentionWeights) -> NDArray[np.float64]:
    """Queries, keys and values (3, heads, tokens, head_width) of inputs (tokens, width)."""
    matrices, biases = weights.by_role()
    return np.asarray(np.einsum("tw,rhdw->rhtd", x, matrices, optimize=True) + biases[:, :, None, :])
