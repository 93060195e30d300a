"""The plaintext vectors that the circuit multiplies with and adds, made when they are used.

All are complex128 (shape.slots,). Together they are far larger than the weights, so none is kept.
"""

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from confide.attention import layout
from confide.attention.plan import Plan
from confide.attention.weights import AttentionWeights
from confide.errors import ModelMismatch

QUERY, KEY, VALUE = range(3)


@dataclass(frozen=True)
class Plaintexts:
    """Vectors of one block. Raises ModelMismatch where weights and plan are of different shapes."""

    weights: AttentionWeights
    plan: Plan

    def __post_init__(self) -> None:
        if self.weights.shape(self.plan.shape.tokens) != self.plan.shape:
            raise ModelMismatch("The plan was compiled for a block of another shape; compile for these weights.")

    @cached_property
    def _matrices(self) -> NDArray[np.complex128]:
        """(3, output_positions, input_positions), such that Re(matrix @ packed input) = W x / 2."""
        shape, (weights, _) = self.plan.shape, self.weights.by_role()
        half = shape.input_positions
        padded = np.zeros((3, shape.dim_slots, shape.head_slots, 2 * half))
        padded[:, : shape.head_width, : shape.heads, : shape.width] = weights.swapaxes(1, 2)
        # Halved, because the real part of y is taken as (y + conjugate of y).
        pairs = (padded[..., :half] - 1j * padded[..., half:]) / 2
        return np.asarray(pairs.reshape(3, shape.output_positions, half), dtype=np.complex128)

    def diagonal(self, role: int, giant: int, baby: int) -> NDArray[np.complex128]:
        """The matrix's diagonal giant * baby_steps + baby, rotated back by the giant step that follows."""
        shape, matrix = self.plan.shape, self._matrices[role]
        turned = giant * self.plan.baby_steps
        position = np.arange(shape.positions) - turned
        column = (position + turned + baby) % shape.input_positions
        return np.repeat(matrix[position % shape.output_positions, column], shape.token_slots)

    def bias(self, role: int) -> NDArray[np.complex128]:
        """The bias of every output."""
        shape = self.plan.shape
        _, biases = self.weights.with_centred_keys(np.array(self.plan.ranges.key_centre)).by_role()
        grid = np.zeros((shape.dim_slots, shape.head_slots, 1))
        grid[: shape.head_width, : shape.heads, 0] = biases[role].T
        return layout.output_slots(grid, shape)

    def score_mask(self, delta: int) -> NDArray[np.complex128]:
        """Moves the scores of distances delta and delta + half_distances to their places.

        They come as real and imaginary part in every dim; the mask turns each to the real part in dims of that
        distance, scales by 1 / (2 sqrt(head_width) half_range) and drops what the causal mask forbids.
        """
        shape = self.plan.shape
        near = (np.arange(shape.token_slots) < shape.half_distances)[:, None, None]
        turn = np.where(near, 1, -self._unit_after(delta))
        here = self._distances(delta) | self._distances(delta + shape.half_distances)
        scale = self._of_heads(1 / (2 * math.sqrt(shape.head_width) * np.array(self.plan.ranges.half_range)))
        return self._spread(here * turn * scale * layout.causal(shape))

    @cached_property
    def score_shift(self) -> NDArray[np.complex128]:
        """Brings the centre of every head's scores to zero."""
        ranges = self.plan.ranges
        centres = self._of_heads(-np.array(ranges.centre) / np.array(ranges.half_range))
        return self._spread(centres * layout.causal(self.plan.shape))

    @cached_property
    def exponential(self) -> list[NDArray[np.complex128]]:
        """The coefficients, lowest first, for every head and token, scaled so that sums lie around 1 / spread.

        Where the causal mask forbids they are zero, and so is the exponential. The first token's is constant: see
        Ranges.
        """
        plan = self.plan
        by_head = np.array([plan.exponential.coefficients(r) for r in plan.ranges.half_range])
        scales = plan.sum_scales ** (1 / 2**plan.exponential.squarings)
        grid = np.zeros((plan.exponential.degree + 1, plan.shape.head_slots, plan.shape.token_slots))
        grid[:, : plan.shape.heads, : plan.shape.tokens] = by_head.T[:, :, None] * scales
        grid[0, : plan.shape.heads, 0] = scales[:, 0]
        grid[1:, :, 0] = 0
        return [self._spread(c * layout.causal(plan.shape)) for c in grid]

    def share_mask(self, delta: int) -> NDArray[np.complex128]:
        """Keeps the dims of distance delta, as real numbers, and of delta + half_distances, as imaginary ones."""
        half = self.plan.shape.half_distances
        return self._spread(self._distances(delta) + self._unit_after(delta) * self._distances(delta + half))

    def _unit_after(self, delta: int) -> NDArray[np.complex128]:
        """The imaginary unit, token by token, once it has been moved by delta tokens."""
        return np.roll(layout.unit(self.plan.shape.token_slots), delta)

    def _distances(self, delta: int) -> NDArray[np.bool_]:
        return np.asarray(np.arange(self.plan.shape.token_slots) == delta)[:, None, None]

    def _of_heads(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        grid = np.zeros((1, self.plan.shape.head_slots, 1))
        grid[0, : self.plan.shape.heads, 0] = values
        return grid

    def _spread(self, grid: NDArray[np.generic]) -> NDArray[np.complex128]:
        """Slots of (distances, head_slots, token_slots): dims repeat the distances."""
        shape = self.plan.shape
        full = np.broadcast_to(grid, (shape.token_slots, shape.head_slots, shape.token_slots))
        return layout.output_slots(np.tile(full, (shape.dim_slots // shape.token_slots, 1, 1)), shape)
