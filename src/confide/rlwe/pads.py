"""The client's online half: pads on, and answers off again. Needs no tensor library, and knows no source of pads.

With private weights pads are e - a s mod 2^48 and values come from the hint; with open weights they are uniform mod
2^32 and values are W times them. What is done with them here is the same.
"""

import numpy as np
from numpy.typing import NDArray

from confide.rlwe.digits import digits
from confide.rlwe.parameters import Parameters

Int8Array = NDArray[np.int8]
Int32Array = NDArray[np.int32]
Int64Array = NDArray[np.int64]


def mask(activations: Int32Array, pads: Int64Array, parameters: Parameters) -> Int8Array:
    """d = delta x + pad, as the digit planes that travel: int32 and int64 (tokens, columns) -> int8 (planes, tokens,
    columns), contiguous.
    """
    hidden = activations.astype(np.int64) << parameters.shift
    hidden += pads
    return np.ascontiguousarray(np.moveaxis(digits(hidden, parameters.planes), -1, 0))


def unmask(answers: Int32Array, values: Int32Array, parameters: Parameters) -> Int32Array:
    """W x from the server's answers and the pads' values: int32 (tokens, rows), centred by the arithmetic shift."""
    total = answers + values
    total >>= parameters.answer_shift
    return total
