"""Pads where the client may hold the weights: uniform mod 2^32, a one-time pad, and no lattice.

Values are W times the pads, computed by the client itself for many tokens at a time.
"""

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.online import matrix_product
from confide.rlwe.pads import Int32Array, Int64Array
from confide.rlwe.streams import Stream, fresh_key


def open_pads(weights: Tensor, tokens: int) -> tuple[Int64Array, Int32Array]:
    """Pads and their values for fresh tokens of one group: int64 (tokens, columns) and int32 (tokens, rows).

    weights: int8 (rows, columns). d = x - r and z = W d, so z + W r is W x, mod 2^32.
    """
    pads = Stream(fresh_key()).words(tokens, weights.shape[1])
    values = matrix_product(weights, torch.from_numpy(pads)).numpy()
    negated: Int64Array = -pads.astype(np.int64)
    return negated, values
