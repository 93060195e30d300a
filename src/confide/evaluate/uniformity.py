"""A chi-square test of whether numbers are uniform: an illustration of what a layer server sees, not a proof."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

BINS = 1024


def uniformity_p_value(values: Iterable[NDArray[np.int32]], bits: int) -> float:
    """The p-value of Pearson's chi-square test that integers are uniform in [0, 2^bits), over 1024 equal bins.

    Under uniformity it is itself uniform in [0, 1]; a value near 0 says that they are not. The tail of the
    chi-square distribution with k degrees of freedom is the regularized upper incomplete gamma Q(k/2, x/2).
    """
    counts = np.zeros(BINS, np.int64)
    for part in values:
        counts += np.bincount(part.reshape(-1) >> (bits - BINS.bit_length() + 1), minlength=BINS)
    expected = counts.sum() / BINS
    statistic = float(((counts - expected) ** 2).sum() / expected)
    tail = torch.special.gammaincc(torch.tensor((BINS - 1) / 2).double(), torch.tensor(statistic / 2).double())
    return float(tail)
