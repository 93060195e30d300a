"""The public polynomials of a model: the same for everybody, expanded from what the model is.

Nobody chooses them: they come from a hash. Each purpose, group and block has a stream of its own, because an a that two
groups shared, or that were equal to p1, would give the difference of two inputs away.
"""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.parameters import RING_DEGREE
from confide.rlwe.streams import Stream, derive_key

_COEFFICIENT_BYTES = 6


@dataclass(frozen=True)
class PublicSeed:
    """What the polynomials of a model are expanded from. model_digest: 32 bytes. epoch: of the hint, from 0."""

    model_digest: bytes
    epoch: int

    def a(self, group: int, block: int) -> Tensor:
        """The polynomial that hides inputs 2048 block.. of a layer group: int64 (N,), uniform below 2^48."""
        return self._uniform("a", group.to_bytes(4, "big") + block.to_bytes(4, "big"))

    def p1(self) -> Tensor:
        """The polynomial under which each token's key is sent: int64 (N,), uniform below 2^48."""
        return self._uniform("p1", b"")

    def _uniform(self, purpose: str, context: bytes) -> Tensor:
        seed = hashlib.sha256(b"confide/3 public" + self.epoch.to_bytes(4, "big") + self.model_digest).digest()
        content = Stream(derive_key(seed, f"public {purpose}", context)).bytes(RING_DEGREE * _COEFFICIENT_BYTES)
        words = np.zeros((RING_DEGREE, 8), np.uint8)
        words[:, :_COEFFICIENT_BYTES] = content.reshape(RING_DEGREE, _COEFFICIENT_BYTES)
        return torch.from_numpy(words.view(np.int64)[:, 0])
