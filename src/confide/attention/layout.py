"""Where numbers lie: inputs into slots, results out of slots. See AttentionShape for the order."""

import numpy as np
from numpy.typing import NDArray

from confide.attention.shape import AttentionShape
from confide.errors import InvalidActivation


def pack_input(x: NDArray[np.float64], shape: AttentionShape) -> NDArray[np.complex128]:
    """The slots (shape.slots,) of inputs (tokens, width): features of the first half real, of the second imaginary.

    Fewer tokens than the shape's are padded with zeros. Raises InvalidActivation.
    """
    if x.ndim != 2 or x.shape[1] != shape.width or not 1 <= x.shape[0] <= shape.tokens:
        raise InvalidActivation(
            f"This attention block takes (1 to {shape.tokens}, {shape.width}) numbers, not {x.shape}."
        )
    if not np.isfinite(x).all():
        raise InvalidActivation("The attention block's input holds a number that is not finite; look at the model.")
    grid = np.zeros((shape.input_positions, shape.token_slots), dtype=np.complex128)
    half = shape.input_positions
    first, second = x[:, :half], x[:, half:]
    grid[: first.shape[1], : len(x)] += first.T
    grid[: second.shape[1], : len(x)] += 1j * second.T
    return np.tile(grid.reshape(-1), shape.positions // shape.input_positions)


def unpack_output(slots: NDArray[np.float64], shape: AttentionShape) -> NDArray[np.float64]:
    """Context vectors (tokens, heads * head_width) out of slots (shape.slots,)."""
    grid = output_grid(slots, shape)[: shape.head_width, : shape.heads, : shape.tokens]
    return np.ascontiguousarray(grid.transpose(2, 1, 0)).reshape(shape.tokens, -1)


def unpack_scores(slots: NDArray[np.float64], shape: AttentionShape) -> NDArray[np.float64]:
    """What lies at the place of each score: (heads, tokens, distances), distances up to shape.token_slots.

    The place of distance delta is dim delta. Of token t, distances above t mean nothing.
    """
    grid = output_grid(slots, shape)[: shape.token_slots, : shape.heads, : shape.tokens]
    return grid.transpose(1, 2, 0)


def unpack_sums(slots: NDArray[np.float64], shape: AttentionShape) -> NDArray[np.float64]:
    """One number for each head and token: (heads, tokens). They lie in every dim."""
    return output_grid(slots, shape)[0, : shape.heads, : shape.tokens]


def unit(slots: int) -> NDArray[np.complex128]:
    """i in even slots, -i in odd ones: a root of -1 that costs no level. Rotating by one slot changes its sign."""
    return np.tile([1j, -1j], slots // 2)


def output_grid(slots: NDArray[np.float64], shape: AttentionShape) -> NDArray[np.float64]:
    """The first period of output slots as (dim_slots, head_slots, token_slots)."""
    period = shape.output_positions * shape.token_slots
    return slots[:period].reshape(shape.dim_slots, shape.head_slots, shape.token_slots)


def output_slots(grid: NDArray[np.generic], shape: AttentionShape) -> NDArray[np.complex128]:
    """The slots (shape.slots,) of a grid that broadcasts to (dim_slots, head_slots, token_slots)."""
    full = np.broadcast_to(grid, (shape.dim_slots, shape.head_slots, shape.token_slots)).astype(np.complex128)
    return np.tile(full.reshape(-1), shape.positions // shape.output_positions)


def causal(shape: AttentionShape) -> NDArray[np.bool_]:
    """Which (distance, head, token) stand for a key that the token attends to: distance <= token < tokens."""
    distance = np.arange(shape.token_slots)[:, None, None]
    head = np.arange(shape.head_slots)[None, :, None]
    token = np.arange(shape.token_slots)[None, None, :]
    return (distance <= token) & (head < shape.heads) & (token < shape.tokens)
