"""ggml's own quantization, for the block types that the `gguf` library can read but not write.

xllamacpp offers no such call to Python, but the library that it brings exports ggml's public C function, which is
called here through ctypes. That is nothing xllamacpp promises, so a row whose outcome is known is tried first.
"""

import ctypes
import os
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Final

import numpy as np
from gguf import GGMLQuantizationType
from gguf.quants import dequantize, quant_shape_to_byte_shape

from confide.errors import ConfideError
from confide.extras import named_extras

Floats = np.ndarray[tuple[int, ...], np.dtype[np.float32]]
Bytes = np.ndarray[tuple[int, ...], np.dtype[np.uint8]]

_ROWS_TOGETHER: Final = 1 << 20
"""Weights that one thread quantizes at a time."""
_RAMP: Final = np.linspace(-1, 1, 256, dtype=np.float32).reshape(1, -1)


def quantize_blocks(values: Floats, kind: GGMLQuantizationType, importance: Floats | None = None) -> Bytes:
    """A matrix in a block type, on all of this process's cores.

    values: float32 (rows, columns), finite, the columns whole blocks. importance: what an error in each column costs,
    float32 (columns,), positive; all the same without. Returns uint8 (rows, bytes of a row).
    Raises NotInstalled without xllamacpp, ConfideError where its library does not do this.
    """
    return _quantize(find_library(), values, kind, importance)


def _quantize(library: ctypes.CDLL, values: Floats, kind: GGMLQuantizationType, importance: Floats | None) -> Bytes:
    values = np.ascontiguousarray(values, np.float32)
    rows, columns = values.shape
    out = np.zeros(quant_shape_to_byte_shape((rows, columns), kind), np.uint8)
    weights = None
    if importance is not None:
        if importance.shape != (columns,):
            raise ValueError(f"{importance.shape} importances of {columns} columns")
        importance = np.ascontiguousarray(importance, np.float32)
        weights = importance.ctypes.data
    step = max(1, _ROWS_TOGETHER // columns)

    def work(start: int) -> None:
        part, stored = values[start : start + step], out[start : start + step]
        written = library.ggml_quantize_chunk(
            kind, part.ctypes.data, stored.ctypes.data, 0, len(part), columns, weights
        )
        if written != stored.nbytes or not library.ggml_validate_row_data(kind, stored.ctypes.data, stored.nbytes):
            raise _other_library()

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as threads:
        list(threads.map(work, range(0, rows, step)))
    return out


@cache
def find_library() -> ctypes.CDLL:
    """xllamacpp's library, tried. Raises as `quantize_blocks`."""
    with named_extras():
        import xllamacpp
    try:
        library = ctypes.CDLL(xllamacpp.xllamacpp.__file__)
        quantize, validate = library.ggml_quantize_chunk, library.ggml_validate_row_data
    except (OSError, AttributeError) as error:
        raise _other_library() from error
    # enum ggml_type, const float * src, void * dst, int64_t start, nrows, n_per_row, const float * imatrix
    quantize.argtypes = [ctypes.c_int, *[ctypes.c_void_p] * 2, *[ctypes.c_int64] * 3, ctypes.c_void_p]
    quantize.restype = ctypes.c_size_t
    validate.argtypes = [ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t]
    validate.restype = ctypes.c_bool
    kind = GGMLQuantizationType.Q6_K
    if abs(dequantize(_quantize(library, _RAMP, kind, None), kind) - _RAMP).max() > 1 / 32:
        raise _other_library()
    return library


def _other_library() -> ConfideError:
    return ConfideError(
        "The installed xllamacpp does not quantize as Confide calls it; install the version that Confide's "
        "constraints.txt names, or choose a type other than q6_k, q5_k_m and q4_k_m."
    )
