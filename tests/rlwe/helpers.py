"""What the tests of the arithmetic share: plain references in Python integers, and one whole exchange."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from confide.rlwe.encryption import PackSecret
from confide.rlwe.evaluation import OfflineProduct, RequestKey, shares
from confide.rlwe.masks import mask, uniform_masks, unmask
from torch import Tensor

from confide.rlwe import online
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.random import ternary
from confide.rlwe.ring import product, transform
from confide.rlwe.streams import Stream, derive_key

DEGREE = 4096
CLIENT_SEED = bytes(range(32))
MASK_KEY = bytes(range(32, 64))
SERVER_KEY = bytes(range(64, 96))
P1_SEED = bytes(range(96, 128))
PRIVATE, OPEN = Profile.PRIVATE_WEIGHTS, Profile.OPEN_WEIGHTS


# -- Python integers ---------------------------------------------------------------------------------------------


def centred(value, bits):
    """A value mod 2^bits -> its representative in [-2^(bits-1), 2^(bits-1)). Integers, int64 tensors, object arrays."""
    half = 1 << (bits - 1)
    return ((value + half) & ((1 << bits) - 1)) - half


def digit_value(words: Tensor) -> list[int]:
    """int32 digit words (words, N) -> the N integers that their balanced base-256 digits make up."""
    digits = words.contiguous().numpy().view(np.int8).reshape(*words.shape, 4).astype(object)
    places = [digits[word, :, byte] << 8 * (4 * word + byte) for word in range(len(words)) for byte in range(4)]
    return sum(places).tolist()


def word_value(words: Tensor) -> list[int]:
    """int32 words (words, N) -> the N non-negative integers whose plain binary they are."""
    plain = words.contiguous().numpy().view(np.uint32).astype(object)
    return sum(plain[word] << 32 * word for word in range(len(words))).tolist()


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


def parameters_of(weights: Tensor, profile: Profile = PRIVATE) -> Parameters:
    """The parameters that these weights' own norms give."""
    norm = float(weights.double().norm(dim=1).max())
    l1 = int(weights.long().abs().sum(1).max())
    return Parameters.derive(profile, rows=weights.shape[0], columns=weights.shape[1], row_l1=l1, row_l2=norm)


def pack_masks(parameters: Parameters, key: bytes = MASK_KEY) -> np.ndarray:
    """All one-time pads of a pack: int32 (tokens, columns)."""
    return uniform_masks(key, parameters, parameters.tokens)


def encrypt(secret: PackSecret, masks: np.ndarray, parameters: Parameters, group: int = 0) -> Tensor:
    """The b halves of all of a pack's masks (tokens, columns)."""
    return secret.encrypt_rows(torch.from_numpy(masks.T.copy()), parameters, group, 0)


def bind(*parts: bytes) -> RequestKey:
    """The request key of a server that binds it to the whole request, here: to these parts."""
    return RequestKey.bind(SERVER_KEY, hashlib.sha256(b"".join(parts)).digest())


def serve(
    weights: Tensor,
    parameters: Parameters,
    secret: PackSecret,
    words: Tensor,
    request: RequestKey,
    group: int = 0,
) -> tuple[Tensor, Tensor]:
    """The server's whole answer: high int32 and low uint8 (2, rows, N)."""
    product_ = OfflineProduct(weights, parameters)
    product_.add_rows(0, words)
    p0 = secret.public_key(P1_SEED, parameters)
    blocks = list(product_.answer(secret.public_seed(group), P1_SEED, p0, request))
    return torch.cat([high for _, high, _ in blocks], 1), torch.cat([low for _, _, low in blocks], 1)


@dataclass
class Exchange:
    """The offline phase of one group, seen by both sides at once."""

    weights: Tensor
    parameters: Parameters
    secret: PackSecret
    masks: np.ndarray
    request: RequestKey
    high: Tensor
    low: Tensor
    values: np.ndarray

    def share(self, token: int, tokens: int = 1) -> Tensor | None:
        """What the server subtracts online."""
        if self.parameters.profile is OPEN:
            return None
        return shares(self.request, self.parameters.rows, token, tokens)

    def online(self, activations: np.ndarray, token: int) -> np.ndarray:
        """Activations (tokens, columns) under the masks from `token` on -> what the client computes: (tokens, rows)."""
        tokens = slice(token, token + len(activations))
        masked = mask(activations, self.masks[tokens], self.parameters)
        share = self.share(token, len(activations))
        answer = online.answer(self.weights, torch.from_numpy(masked), share, self.parameters)
        return unmask(answer.numpy(), self.values[tokens], self.parameters)


def exchange(weights: Tensor, profile: Profile = PRIVATE, seed: bytes = CLIENT_SEED) -> Exchange:
    """Run the offline phase for these weights."""
    parameters = parameters_of(weights, profile)
    secret = PackSecret(seed, parameters.ring_degree)
    masks = pack_masks(parameters)
    words = encrypt(secret, masks, parameters)
    request = bind(words.numpy().tobytes())
    high, low = serve(weights, parameters, secret, words, request)
    values = secret.decrypt_rows(high, low).t().contiguous().numpy()
    return Exchange(weights, parameters, secret, masks, request, high, low, values)


def clear_product(weights: Tensor, activations: np.ndarray) -> np.ndarray:
    """W x in 64-bit integers: (tokens, rows)."""
    return activations.astype(np.int64) @ weights.numpy().astype(np.int64).T


# -- what only a test may look at --------------------------------------------------------------------------------


def secret_key(seed: bytes = CLIENT_SEED) -> Tensor:
    """The ternary s that a PackSecret of this seed has: int8 (N)."""
    return ternary(Stream(derive_key(seed, "secret key")), DEGREE)


def kept_value(high: Tensor, low: Tensor) -> Tensor:
    """The 40 kept bits as signed int64."""
    return (high.long() << 8) + low.long()


def exact_phase(high: Tensor, low: Tensor, key: Tensor) -> Tensor:
    """b + a s mod 2^40 of the server's answer, in exact arithmetic: int64 (rows, N)."""
    a, b = kept_value(high, low)
    spectrum = transform(key)
    lower, upper = product(transform(a & 0xFFFFF), spectrum), product(transform(a >> 20), spectrum)
    return (lower + (upper << 20) + b) & ((1 << 40) - 1)
