"""The layer that every side computes: int8 weights, one token of integer activations, and the exact product."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layer:
    """weights: int8 (rows, columns). activations: int32 (columns,), |x| <= 2^(activation_bits - 1) - 1."""

    weights: NDArray[np.int8]
    activations: NDArray[np.int32]

    @classmethod
    def load(cls, path: str | Path) -> "Layer":
        with np.load(path) as arrays:
            return cls(arrays["weights"], arrays["activations"])

    def save(self, path: Path) -> None:
        np.savez(path, weights=self.weights, activations=self.activations)

    @property
    def name(self) -> str:
        rows, columns = self.weights.shape
        return f"1x{columns} by {columns}x{rows}"

    @property
    def activation_bits(self) -> int:
        return int(np.abs(self.activations).max()).bit_length() + 1

    def exact(self) -> NDArray[np.int64]:
        """W x: int64 (rows,)."""
        return self.weights.astype(np.int64) @ self.activations.astype(np.int64)

    def error(self, result: NDArray[np.generic]) -> float:
        """The largest error of a result (rows,), as a fraction of the largest exact output."""
        exact = self.exact()
        if result.shape != exact.shape:
            raise ValueError(f"A product has shape {result.shape}, and the layer's outputs have {exact.shape}.")
        return float(np.abs(result.astype(np.float64) - exact).max() / np.abs(exact).max())
