"""One quantized attention head: its integers, and what it computes, in numpy."""

from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Head:
    """The head of `confide.attention.quantized`, as integers and the factors between them.

    projections: int64 (3, width, head width), of queries, keys and values. biases: float64 (3, head width), in units
    of what they are added to. to_qkv: float64 (3,), what a unit of x @ projection is in units of each. to_scores:
    the same of a product of queries and keys. score: of a unit of scores. inputs: int64 (texts, tokens, width).
    outputs: int64 (texts, tokens, head width), in units of probability times value.
    """

    bits: int
    projections: NDArray[np.int64]
    biases: NDArray[np.float64]
    to_qkv: NDArray[np.float64]
    to_scores: float
    score: float
    inputs: NDArray[np.int64]
    outputs: NDArray[np.int64]

    @property
    def levels(self) -> int:
        """The largest integer of `bits` bits with a sign."""
        return (1 << (self.bits - 1)) - 1

    @classmethod
    def load(cls, path: str | Path) -> "Head":
        with np.load(path) as arrays:
            values = {field.name: arrays[field.name] for field in fields(cls)}
        return cls(**{name: value if value.ndim else value.item() for name, value in values.items()})

    def save(self, path: Path) -> None:
        np.savez(path, **{field.name: getattr(self, field.name) for field in fields(self)})
