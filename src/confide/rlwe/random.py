"""The samplers: exact distributions from the uniform bits of a stream.

They use every bit they take or reject it; none of them is biased.
"""

from typing import Final

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.parameters import ERROR_BITS
from confide.rlwe.streams import Stream

_TRITS_PER_BYTE = 5
_TRIT_CODES = 3**_TRITS_PER_BYTE
_TRITS = np.array(
    [[code // 3**place % 3 - 1 for place in range(_TRITS_PER_BYTE)] for code in range(_TRIT_CODES)], np.int8
)


def ternary(stream: Stream, *shape: int) -> Tensor:
    """int8 uniform in {-1, 0, 1}: five base-3 digits of a byte below 243, other bytes rejected."""
    count = int(np.prod(shape))
    needed = -(-count // _TRITS_PER_BYTE)
    accepted = np.empty(0, np.uint8)
    while len(accepted) < needed:
        missing = needed - len(accepted)
        candidates = stream.bytes(missing + missing // 16 + 64)
        accepted = np.concatenate([accepted, candidates[candidates < _TRIT_CODES]])
    trits = np.take(_TRITS, accepted[:needed], axis=0).reshape(-1)[:count]
    return torch.from_numpy(trits.reshape(shape))


def rounded_gaussian(stream: Stream, *shape: int) -> Tensor:
    """int8 RLWE errors: the weight of 42 uniform bits minus 21, a centred binomial of standard deviation 3.24.

    Eight stream bytes a sample, so that sample i of a stream starts at byte 8 i.
    """
    words = np.empty(shape, np.uint64)
    stream.fill(words)
    words &= np.uint64((1 << ERROR_BITS) - 1)
    weights = np.bitwise_count(words).view(np.int8)
    weights -= ERROR_BITS // 2
    return torch.from_numpy(weights)


ERROR_STREAM_BYTES: Final = 8
