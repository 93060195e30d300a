"""The server's half of the offline phase: W times encrypted masks, re-randomised, drowned and secret-shared.

For integers times polynomials a homomorphic matrix product *is* a matrix product: one int8 product per digit plane.
Three things then keep the weights private: a fresh encryption of zero under the client's public key, drowning noise
that hides what the decryption noise would say of W, and the server's share, which masks every bit of the b half.
All of them are drawn from a key that is bound to the whole request, so the same request gets the same bytes.
"""

import functools
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.digits import carry_to_words, digit_word_values, words_to_planes
from confide.rlwe.encryption import TILE_ROWS, ciphertext_mask, public_key_mask
from confide.rlwe.gemm import int8_matmul
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.random import drowning, rounded_gaussian, ternary
from confide.rlwe.ring import product, transform
from confide.rlwe.streams import Stream, derive_key

BLOCK_ROWS = 512
"""Output rows computed at a time."""
BLOCK_COLUMNS = 1024
"""Tokens in one product: a block's int32 plane is 2 MiB and stays in cache through the carry."""
MEMORY_LIMIT = 1 << 30
"""Above this the digit planes live in a temporary file that the operating system pages."""


@dataclass(frozen=True)
class RequestKey:
    """What a request's randomness is drawn from: the server's key bound to the digest of the whole request."""

    key: bytes

    @classmethod
    def bind(cls, server_key: bytes, digest: bytes) -> "RequestKey":
        """The key of the request with this digest."""
        return cls(derive_key(server_key, "request", digest))

    def __repr__(self) -> str:
        return "RequestKey(<hidden>)"

    @functools.cached_property
    def _share_key(self) -> bytes:
        return derive_key(self.key, "share")

    def stream(self, label: str) -> Stream:
        """The stream of one purpose within the request."""
        return Stream(derive_key(self.key, label))

    def share_stream(self, offset: int) -> Stream:
        """The stream of the shares, from an offset; its key is kept, since every token comes here."""
        return Stream(self._share_key, offset=offset)


def shares(request: RequestKey, rows: int, first_token: int, tokens: int) -> Tensor:
    """The server's secret shares of consecutive tokens: int32 (tokens, rows), the top 32 of each share's 40 bits."""
    # Whole cipher blocks a token, so that any token's shares can be read without the ones before.
    width = -(-rows // 4) * 4
    words = request.share_stream(first_token * width * 4).words(tokens, width)
    return torch.from_numpy(words)[:, :rows]


class OfflineProduct:
    """The offline product of one group: takes the encrypted masks row by row, gives the answer block by block.

    weights: int8 (rows, columns), within [-127, 127]. The digit planes take 24 bytes per column and token (16 with
    open weights); everything else is bounded by the block sizes and the shares (4 bytes per row and token).
    """

    def __init__(self, weights: Tensor, parameters: Parameters) -> None:
        self._weights = weights
        self._parameters = parameters
        size = (2, parameters.planes, parameters.columns, parameters.ring_degree)
        self._planes = _workspace(size, weights.device)

    def add_rows(self, first_row: int, words: Tensor) -> None:
        """Take the b halves of inputs first_row..: int32 digit words (rows, words, N)."""
        rows = slice(first_row, first_row + words.shape[0])
        words_to_planes(words.to(self._weights.device), self._planes[1, :, rows])

    def answer(
        self, mask_seed: bytes, p1_seed: bytes, p0: Tensor, request: RequestKey
    ) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (first row, high, low): int32 and uint8 (2, rows, N), the 40 kept bits of the a and b halves.

        mask_seed: the client's seed of the a halves. p0: the client's public key as int32 digit words (words, N).
        """
        self._expand_masks(mask_seed)
        parameters = self._parameters
        private = parameters.profile is Profile.PRIVATE_WEIGHTS
        zero = _FreshZero(parameters, p1_seed, p0, request, self._weights.device) if private else None
        share = _Share(parameters, request, self._weights.device) if private else None
        for first in range(0, parameters.rows, BLOCK_ROWS):
            weights = self._weights[first : first + BLOCK_ROWS]
            zeros = zero.next_rows(weights.shape[0]) if zero else (None, None)
            halves = [
                _switched_product(weights, planes, addend, parameters)
                for planes, addend in zip(self._planes, zeros, strict=True)
            ]
            if share:
                share.add(first, *halves[1])
            yield first, torch.stack([high for high, _ in halves]), torch.stack([low for _, low in halves])

    def _expand_masks(self, seed: bytes) -> None:
        for first in range(0, self._parameters.columns, BLOCK_ROWS):
            count = min(BLOCK_ROWS, self._parameters.columns - first)
            words = ciphertext_mask(seed, self._parameters, first, count)
            words_to_planes(words.to(self._weights.device), self._planes[0, :, first : first + count])


def _workspace(shape: tuple[int, ...], device: torch.device) -> Tensor:
    size = int(np.prod(shape))
    if device.type != "cpu" or size <= MEMORY_LIMIT:
        return torch.empty(shape, dtype=torch.int8, device=device)
    with tempfile.TemporaryFile() as file:
        return torch.from_numpy(np.memmap(file, np.int8, "w+", shape=shape))


def _switched_product(
    weights: Tensor, planes: Tensor, zero: Tensor | None, parameters: Parameters
) -> tuple[Tensor, Tensor]:
    """W times digit planes (L, columns, N), plus zero, rounded to the kept 40 bits: int32 (rows, N), uint8 (rows, N).

    zero: int32 words (words, rows, N) or None. The planes below the kept ones only carry.
    """
    rows, degree = weights.shape[0], planes.shape[-1]
    high = torch.empty(rows, degree, dtype=torch.int32, device=weights.device)
    low = torch.empty(rows, degree, dtype=torch.uint8, device=weights.device)
    scratch = torch.empty(2, rows, min(BLOCK_COLUMNS, degree), dtype=torch.int32, device=weights.device)
    lowest_kept = parameters.planes - parameters.kept_planes
    for start in range(0, degree, BLOCK_COLUMNS):
        tile = slice(start, min(start + BLOCK_COLUMNS, degree))
        plane, spare = scratch[:, :, : tile.stop - start]
        carry: Tensor | None = None
        for index in range(lowest_kept + 1):
            int8_matmul(weights, planes[index, :, tile], plane)
            if carry is not None:
                plane += carry
            if zero is not None:
                word = zero[index // 4, :, tile]
                plane += torch.bitwise_right_shift(word, 8 * (index % 4), out=spare).bitwise_and_(0xFF)
            if index == lowest_kept:
                low[:, tile] = plane & 0xFF
            elif index == lowest_kept - 1:
                plane += 128  # the switch rounds to nearest
            carry = plane.bitwise_right_shift_(8)
            plane, spare = spare, plane
        top = high[:, tile]
        top.copy_(spare)  # the last carry
        if zero is not None:
            top += zero[-1, :, tile]
        for place in range(4):
            top.add_(int8_matmul(weights, planes[lowest_kept + 1 + place, :, tile], plane), alpha=1 << (8 * place))
    return high, low


class _FreshZero:
    """Encryptions of zero under the client's public key, (u p1 + e1, u p0 + e2), row block by row block."""

    def __init__(
        self, parameters: Parameters, p1_seed: bytes, p0: Tensor, request: RequestKey, device: torch.device
    ) -> None:
        self._parameters = parameters
        self._device = device
        p1 = public_key_mask(p1_seed, parameters)
        self._public_key = transform(digit_word_values(torch.stack([p1, p0])).to(device))
        shape = (2, parameters.words, min(parameters.rows, BLOCK_ROWS), parameters.ring_degree)
        self._buffer = torch.empty(shape, dtype=torch.int32, device=device)
        self._ternary = request.stream("u")
        self._error = request.stream("e1")
        self._drowning = request.stream("e2")

    def next_rows(self, rows: int) -> tuple[Tensor, Tensor]:
        """The next rows' a and b halves, each as int32 words (words, rows, N), in a buffer that the next call reuses.

        At most BLOCK_ROWS rows at a time.
        """
        zeros = self._buffer[:, :, :rows]
        for start in range(0, rows, TILE_ROWS):
            self._fill(zeros[:, :, start : start + TILE_ROWS])
        return zeros[0], zeros[1]

    def _fill(self, zeros: Tensor) -> None:
        rows, degree = zeros.shape[2:]
        blinding = transform(ternary(self._ternary, rows, degree).to(self._device))[:, None]
        errors = (
            rounded_gaussian(self._error, rows, degree),
            drowning(self._drowning, self._parameters.drowning_bits, rows, degree),
        )
        for half, key, error in zip(zeros, self._public_key, errors, strict=True):
            limbs = list(product(blinding, key).unbind(1))
            limbs[0] += error.to(self._device)
            carry_to_words(limbs, half)


class _Share:
    """The server's share of a whole pack, added to every bit of the b half."""

    def __init__(self, parameters: Parameters, request: RequestKey, device: torch.device) -> None:
        self._top = shares(request, parameters.rows, 0, parameters.ring_degree).to(device).t().contiguous()
        self._low = request.stream("share, low byte")
        self._device = device

    def add(self, first: int, high: Tensor, low: Tensor) -> None:
        """Add the share of rows first.. to high int32 (rows, N) and low uint8 (rows, N), in place, mod 2^40."""
        for start in range(0, high.shape[0], TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            top = self._top[first + start : first + start + TILE_ROWS]
            self._add_tile(high[tile], low[tile], top[: high[tile].shape[0]])

    def _add_tile(self, high: Tensor, low: Tensor, top: Tensor) -> None:
        bottom = torch.from_numpy(self._low.bytes(low.numel())).view(low.shape).to(self._device)
        total = low.to(torch.int16) + bottom
        low.copy_(total)  # keeps the low byte
        high.add_(total.bitwise_right_shift_(8)).add_(top)
