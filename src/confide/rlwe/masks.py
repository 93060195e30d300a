"""The client's half of the online phase: one-time pads on, and answers off again. Needs no tensor library.

With t = 2^30 and 32-bit answers every step wraps around by itself: the server answers 4 W d - share, the client adds
4 W r + share + noise / 256, which leaves 4 W x plus less than half a step.
"""

import numpy as np
from numpy.typing import NDArray

from confide.rlwe.parameters import ANSWER_BITS, Parameters
from confide.rlwe.streams import Stream

Int32Array = NDArray[np.int32]


def uniform_masks(key: bytes, parameters: Parameters, tokens: int, *, offset: int = 0) -> Int32Array:
    """One-time pads for `tokens` consecutive tokens: int32 (tokens, columns), uniform in [0, t).

    `offset` is where in the key's stream they begin, in bytes.
    """
    masks = Stream(key, offset=offset).words(tokens, parameters.columns)
    masks &= (1 << parameters.plaintext_bits) - 1
    return masks


def mask(activations: Int32Array, masks: Int32Array, parameters: Parameters) -> Int32Array:
    """d = x - r mod t: int32 (tokens, columns) in [0, t), uniform whatever x is."""
    masked = activations - masks
    masked &= (1 << parameters.plaintext_bits) - 1
    return masked


def unmask(answers: Int32Array, values: Int32Array, parameters: Parameters) -> Int32Array:
    """W x from the server's answers and the pack's values: int32 (tokens, rows), centred by the arithmetic shift."""
    shift = ANSWER_BITS - parameters.plaintext_bits
    total = answers + values
    total += 1 << (shift - 1)
    total >>= shift
    return total
