"""How many bits of answers it takes to solve for a row of weights: what the weights' own entropy allows at most.

Whoever meters answers compares them with this. Counting 8 bits a weight would be wrong where weights have fewer
values: a row of n ternary weights is known after n log2(3) bits.
"""

import numpy as np
from numpy.typing import NDArray

_WEIGHTS_AT_A_TIME = 1 << 22
_VALUES = 256


def row_entropy(weights: NDArray[np.int8]) -> float:
    """The least entropy, in bits, of a row of int8 (rows, columns).

    A row counts as n log2(2 max|w| + 1) bits, and as no more than n times the empirical entropy of its values. Rows
    of one value hold nothing to solve for and are passed over; where all are such, the result is 8 bits a weight.
    """
    rows, columns = weights.shape
    at_a_time = max(1, _WEIGHTS_AT_A_TIME // max(columns, _VALUES))
    least: float = 8.0 * columns
    for start in range(0, rows, at_a_time):
        part = weights[start : start + at_a_time].astype(np.int64)
        counts = np.bincount(
            (part + 128 + _VALUES * np.arange(len(part))[:, None]).ravel(), minlength=_VALUES * len(part)
        ).reshape(len(part), _VALUES)
        shares = counts / columns
        empirical = -(shares * np.log2(shares, where=shares > 0, out=np.zeros_like(shares))).sum(axis=1)
        ranges = np.log2(2 * np.abs(part).max(axis=1) + 1)
        entropies = columns * np.minimum(empirical, ranges)
        telling = (counts > 0).sum(axis=1) > 1
        least = float(entropies[telling].min(initial=least))
    return max(1.0, least)
