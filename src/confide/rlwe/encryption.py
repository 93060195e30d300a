"""The client's half of the offline phase: keys, the encryption of masks, and what it makes of the server's answer.

Ciphertexts are (a, b) with b = -a s + e + (q/t) r. Only b travels: a is expanded by both sides from a seed that the
client chose, and so is the public key's p1 from seeds that both chose, because a party that could choose the
polynomial itself would read the other's secret from the product with it.
"""

import torch
from torch import Tensor

from confide.rlwe.digits import carry_to_digit_words, digit_word_values
from confide.rlwe.parameters import ANSWER_BITS, Parameters
from confide.rlwe.random import ERROR_STREAM_BYTES, rounded_gaussian, ternary
from confide.rlwe.ring import inverse, product, transform
from confide.rlwe.streams import Stream, derive_key

TILE_ROWS = 32
"""Polynomials handled at a time: their transforms (1 MiB) stay in cache."""


def expand_public(seed: bytes, label: str, parameters: Parameters, first_row: int, rows: int) -> Tensor:
    """Uniform polynomials from a public seed: int32 digit words (rows, words, N), row i the same for any split."""
    row_bytes = parameters.modulus_bits // 8 * parameters.ring_degree
    stream = Stream(derive_key(seed, label), offset=first_row * row_bytes)
    return torch.from_numpy(stream.words(rows, parameters.words, parameters.ring_degree))


def public_key_mask(seed: bytes, parameters: Parameters) -> Tensor:
    """p1 as int32 digit words (words, N), from the seed that client and server made together."""
    return expand_public(seed, "p1", parameters, 0, 1)[0]


def ciphertext_mask(seed: bytes, parameters: Parameters, first_row: int, rows: int) -> Tensor:
    """The a halves of the mask ciphertexts as int32 digit words (rows, words, N), from the client's public seed."""
    return expand_public(seed, "a", parameters, first_row, rows)


class PackSecret:
    """The client's secret for one pack: a ternary key s and the streams of its errors, all from one seed.

    The same seed gives the same bytes again, so an interrupted preparation can be resumed; encrypting one set of
    masks twice with different errors would give them away.
    """

    def __init__(self, seed: bytes, ring_degree: int, device: torch.device | str = "cpu") -> None:
        self._seed = seed
        self._device = torch.device(device)
        key = ternary(Stream(derive_key(seed, "secret key")), ring_degree)
        self._transform = transform(key.to(self._device))

    def __repr__(self) -> str:
        return "PackSecret(<hidden>)"

    def public_seed(self, group: int) -> bytes:
        """The public seed of one layer group's a polynomials."""
        return derive_key(self._seed, "ciphertext seed", group.to_bytes(4, "big"))

    def public_key(self, p1_seed: bytes, parameters: Parameters) -> Tensor:
        """p0 = -p1 s + e as int32 digit words (words, N).

        The error hangs on p1 as well: one error under two p1 would leave (p1 - p1') s in their difference, and so s.
        """
        mask = public_key_mask(p1_seed, parameters).to(self._device)
        stream = Stream(derive_key(self._seed, "public key error", p1_seed))
        error = rounded_gaussian(stream, parameters.ring_degree).to(self._device)
        return self._hide(mask[None], error[None], None, parameters)[0].cpu()

    def encrypt_rows(self, masks: Tensor, parameters: Parameters, group: int, first_row: int) -> Tensor:
        """Encrypt masks (rows, N), int32 in [0, t), of inputs first_row.. of a group.

        Returns the b halves as int32 digit words (rows, words, N).
        """
        rows, degree = masks.shape
        key = derive_key(self._seed, "mask error", group.to_bytes(4, "big"))
        errors = Stream(key, offset=first_row * degree * ERROR_STREAM_BYTES)
        seed = self.public_seed(group)
        words = torch.empty(rows, parameters.words, degree, dtype=torch.int32)
        for start in range(0, rows, TILE_ROWS):
            tile = slice(start, min(start + TILE_ROWS, rows))
            count = tile.stop - tile.start
            a = ciphertext_mask(seed, parameters, first_row + start, count).to(self._device)
            error = rounded_gaussian(errors, count, degree).to(self._device)
            words[tile] = self._hide(a, error, masks[tile].to(self._device), parameters)
        return words

    def _hide(self, a: Tensor, error: Tensor, masks: Tensor | None, parameters: Parameters) -> Tensor:
        """-a s + error + (q/t) masks, as digit words."""
        limbs = list(product(transform(digit_word_values(a)), -self._transform).unbind(1))
        limbs[0] += error
        if masks is not None:
            limbs[-1] += masks.long() << (ANSWER_BITS - parameters.plaintext_bits)
        return torch.stack(carry_to_digit_words(limbs), dim=1)

    def decrypt_rows(self, high: Tensor, low: Tensor) -> Tensor:
        """The server's answer for some rows -> int32 (rows, N): what unmasks online answers, mod 2^32.

        high: int32 (2, rows, N), low: uint8 (2, rows, N); together the 40 kept bits of the a and the b half. The
        value is 4 W r + share + noise/256, where `share` is what the server will subtract online. The constant 128
        takes off the mean of the share's low byte.
        """
        values = torch.empty(high.shape[1:], dtype=torch.int32)
        for start in range(0, values.shape[0], TILE_ROWS):
            tile = slice(start, start + TILE_ROWS)
            (a_high, b_high), (a_low, b_low) = high[:, tile].to(self._device), low[:, tile].to(self._device)
            a = a_high.to(torch.float64).mul_(256).add_(a_low)
            phase = inverse(transform(a).mul_(self._transform)).add_(b_low).sub_(128 - 0.5).floor_()
            values[tile] = phase.to(torch.int64).bitwise_right_shift_(8).to(torch.int32).add_(b_high)
        return values
