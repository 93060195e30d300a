"""What the tests of the arithmetic share: plain references in Python integers, and one group's whole exchange."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.hint import HintMaker
from confide.rlwe.online import GroupMatrix
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import Norms, Parameters, Profile
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets

DEGREE = 2048
MODULUS = 1 << 48
OWNER_KEY = bytes(range(32))
PUBLIC = PublicSeed(bytes(range(64, 96)), 3)
PRIVATE, OPEN = Profile.PRIVATE_WEIGHTS, Profile.OPEN_WEIGHTS


# -- Python integers ---------------------------------------------------------------------------------------------


def centred(value, bits):
    """A value mod 2^bits -> its representative in [-2^(bits-1), 2^(bits-1)). Integers, int64 tensors, object arrays."""
    half = 1 << (bits - 1)
    return ((value + half) & ((1 << bits) - 1)) - half


def _evaluate(coefficients: list[int], size: int) -> int:
    """The polynomial at 2^(8 size), by its positive and its negative part."""
    positive = b"".join(max(value, 0).to_bytes(size, "little") for value in coefficients)
    negative = b"".join(max(-value, 0).to_bytes(size, "little") for value in coefficients)
    return int.from_bytes(positive, "little") - int.from_bytes(negative, "little")


def negacyclic(left: list[int], right: list[int]) -> list[int]:
    """The product in Z[X]/(X^N + 1), by one product of two very long integers (Kronecker substitution)."""
    degree = len(left)
    bound = max(1, max(map(abs, left))) * max(1, max(map(abs, right))) * degree
    size = bound.bit_length() // 8 + 1
    bias = 1 << (8 * size - 1)
    offset = int.from_bytes(bias.to_bytes(size, "little") * (2 * degree), "little")
    raw = (_evaluate(left, size) * _evaluate(right, size) + offset).to_bytes(2 * degree * size + 1, "little")
    parts = [int.from_bytes(raw[start : start + size], "little") for start in range(0, 2 * degree * size, size)]
    return [lower - upper for lower, upper in zip(parts[:degree], parts[degree:], strict=True)]


# -- one group's exchange ----------------------------------------------------------------------------------------


def random_weights(rows: int, columns: int, seed: int = 0) -> Tensor:
    """int8 (rows, columns), uniform over [-127, 127]."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-127, 128, (rows, columns), dtype=torch.int8, generator=generator)


def norms_of(weights: Tensor) -> Norms:
    """The largest norms of the rows."""
    wide = weights.long().abs()
    return Norms(int(wide.sum(1).max()), float(wide.double().norm(dim=1).max()))


def parameters_of(weights: Tensor, profile: Profile = PRIVATE, most_activation_bits: int = 15) -> Parameters:
    """The parameters that these weights' own norms give."""
    rows, columns = weights.shape
    norms = norms_of(weights)
    return Parameters.derive(profile, norms, rows=rows, columns=columns, most_activation_bits=most_activation_bits)


def clear_product(weights: Tensor, activations: np.ndarray) -> np.ndarray:
    """W x in 64-bit integers, as int32 (tokens, rows)."""
    return (torch.from_numpy(activations).long() @ weights.long().t()).int().numpy()


def hint_of(weights: Tensor, group: int = 0) -> tuple[np.ndarray, Tensor, float]:
    """A group's whole hint, its U and the largest standard deviation of its noise."""
    tiles = list(HintMaker(weights, PUBLIC, OWNER_KEY, group).rows())
    hint = np.concatenate([tile.hint for tile in tiles])
    return hint, torch.from_numpy(np.concatenate([tile.u for tile in tiles])), max(tile.noise_std for tile in tiles)


@dataclass
class Party:
    """Both parties of one private group, for some tokens."""

    weights: Tensor
    parameters: Parameters
    secrets: TokenSecrets
    hint: np.ndarray
    server: GroupMatrix
    noise_std: float

    @classmethod
    def of(cls, weights: Tensor, tokens: int, parameters: Parameters | None = None) -> "Party":
        hint, u, std = hint_of(weights)
        secrets = TokenSecrets(PUBLIC, tokens)
        return cls(weights, parameters or parameters_of(weights), secrets, hint, GroupMatrix(weights, u), std)

    def exchange(self, activations: np.ndarray) -> np.ndarray:
        """What the client computes of int32 (tokens, columns)."""
        planes = mask(activations, self.secrets.pads(0, self.parameters), self.parameters)
        answers = self.server.answer(planes, self.server.ahead(self.secrets.p0))
        return unmask(answers, self.secrets.values(self.hint, self.parameters), self.parameters)
