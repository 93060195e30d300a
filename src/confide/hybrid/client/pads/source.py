"""Where pads come from: RLWE under a fresh secret for every token, or, for open weights, plain random numbers.

The online code sees the same two arrays either way: what is added to an activation, and what is added to its answer.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from confide.packages.manifest import Manifest
from confide.rlwe.open_weights import open_pads
from confide.rlwe.parameters import Parameters
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets


@dataclass(frozen=True)
class Pads:
    """What hides some tokens in one layer group, and what takes it off again. Secret.

    pads: int64 (tokens, columns), added to activations. values: int32 (tokens, rows), added to answers.
    """

    pads: NDArray[np.int64] = field(repr=False)
    values: NDArray[np.int32] = field(repr=False)

    @property
    def nbytes(self) -> int:
        """Bytes of both."""
        return self.pads.nbytes + self.values.nbytes


class TokenPads(Protocol):
    """Secrets of some tokens, from which each layer group's pads are made, once."""

    @property
    def p0(self) -> NDArray[np.int8] | None:
        """What the server gets of the secrets ahead: int8 (tokens, 6, N); None where there is nothing to get."""
        ...

    def group(self, index: int) -> Pads:
        """The pads of a layer group."""
        ...


PadSource = Callable[[int], TokenPads]
"""Draws secrets for a number of tokens, from the operating system's randomness."""


class _LatticePads:
    def __init__(
        self, public: PublicSeed, hint: Callable[[int], NDArray[np.int8]], parameters: Sequence[Parameters], tokens: int
    ) -> None:
        self._secrets = TokenSecrets(public, tokens)
        self._hint = hint
        self._parameters = parameters

    @property
    def p0(self) -> NDArray[np.int8] | None:
        return self._secrets.p0

    def group(self, index: int) -> Pads:
        parameters = self._parameters[index]
        return Pads(self._secrets.pads(index, parameters), self._secrets.values(self._hint(index), parameters))


def lattice_pads(
    manifest: Manifest, hint: Callable[[int], NDArray[np.int8]], parameters: Sequence[Parameters]
) -> PadSource:
    """For private weights. hint: of each layer group, int8 (rows, 5, N), verified."""
    public = PublicSeed(bytes.fromhex(manifest.model_digest), manifest.epoch)
    return lambda tokens: _LatticePads(public, hint, parameters, tokens)


class _OneTimePads:
    p0 = None

    def __init__(self, weights: Callable[[int], Tensor], tokens: int) -> None:
        self._weights = weights
        self._tokens = tokens

    def group(self, index: int) -> Pads:
        return Pads(*open_pads(self._weights(index), self._tokens))


def one_time_pads(weights: Callable[[int], Tensor]) -> PadSource:
    """For open weights: int8 (rows, columns) of each layer group."""
    return lambda tokens: _OneTimePads(weights, tokens)
