"""The client's secrets of some tokens: a fresh ternary s for each, and everything that can be made before x is known.

A token's s serves each layer group once: two d under one s give delta (x - x') away, and one x under two errors
averages them out. So the pads of a group are handed out once, and not to a forked process; and secrets are not copied.
"""

import os
import threading
from typing import Never

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.digits import digits
from confide.rlwe.gemm import int8_matmul, takes_int8
from confide.rlwe.packed import weighted_sum
from confide.rlwe.pads import Int8Array, Int32Array, Int64Array
from confide.rlwe.parameters import ANSWER_BITS, HINT_PLANES, MODULUS_BITS, PLANES, RING_DEGREE, Parameters
from confide.rlwe.public import PublicSeed
from confide.rlwe.random import rounded_gaussian, ternary
from confide.rlwe.ring import inverse, transform
from confide.rlwe.streams import Stream, fresh_key

_MASK = (1 << MODULUS_BITS) - 1
_LIMB_BITS = 24
_HINT_ROWS = 256
"""Rows of a hint multiplied at a time, so that their float64 form (4 MiB) stays in cache."""
_TRANSFORMED = 64
"""Tokens whose transforms (16 KiB each) are multiplied at a time, for the same reason."""


class TokenSecrets:
    """Ternary secrets from the operating system's CSPRNG, one a token, in memory alone.

    p0: int8 (tokens, 6, N), the digit planes of -p1 s + e0, which the server needs once for all groups.
    """

    def __init__(self, public: PublicSeed, tokens: int) -> None:
        self._public = public
        self._stream = Stream(fresh_key())
        self._secret = ternary(self._stream, tokens, RING_DEGREE)
        self._transform = transform(self._secret)
        self._given: set[int] = set()
        self._lock = threading.Lock()
        self._process = os.getpid()
        self.tokens = tokens
        self.p0: Int8Array = self._key()

    def __repr__(self) -> str:
        return f"TokenSecrets(tokens={self.tokens}, <hidden>)"

    def __reduce__(self) -> Never:
        raise TypeError("Secrets of tokens are not copied: each serves a layer group once; make new ones.")

    def pads(self, group: int, parameters: Parameters) -> Int64Array:
        """e - a s mod 2^48 for each input: int64 (tokens, columns).

        ValueError for a group that has had its pads, and in a process that was forked since.
        """
        with self._lock:
            if group in self._given or os.getpid() != self._process:
                raise ValueError("These tokens' secrets have served this layer group; make new ones.")
            self._given.add(group)
        pads = rounded_gaussian(self._stream, self.tokens, parameters.columns).long()
        for block in range(parameters.blocks):
            part = pads[:, block * RING_DEGREE : (block + 1) * RING_DEGREE]
            self._subtract_product(part, self._public.a(group, block))
        pads &= _MASK
        return pads.numpy()

    def values(self, hint: Int8Array, parameters: Parameters) -> Int32Array:
        """What takes the pads off a group's answers again: int32 (tokens, rows).

        hint: int8 (rows, 5, N), which may be mapped from a file. Of v = <h, s> and half a step it is the top 32 bits:
        floor((2^16 z + V) / 2^k) = floor((z + floor(V / 2^16)) / 2^(k - 16)), so nothing is lost.
        """
        values = np.empty((self.tokens, len(hint)), np.int32)
        half = 1 << (MODULUS_BITS - 1 - parameters.plaintext_bits)
        for start in range(0, len(hint), _HINT_ROWS):
            sums = self._inner_products(hint[start : start + _HINT_ROWS])
            sums <<= MODULUS_BITS - 8 * HINT_PLANES
            sums += half
            sums >>= MODULUS_BITS - ANSWER_BITS
            values[:, start : start + _HINT_ROWS] = sums.to(torch.int32).numpy()
        return values

    def _key(self) -> Int8Array:
        key = rounded_gaussian(self._stream, self.tokens, RING_DEGREE).long()
        self._subtract_product(key, self._public.p1())
        return np.ascontiguousarray(np.moveaxis(digits(key.numpy(), PLANES), -1, 1))

    def _subtract_product(self, target: Tensor, polynomial: Tensor) -> None:
        """From int64 (tokens, up to N) take the ring products of all secrets and a polynomial, as far as it goes.

        Exact, not reduced mod 2^48. In two signed limbs of 24 bits: sums stay below 2^34, which float64 transforms
        carry exactly.
        """
        half = 1 << (_LIMB_BITS - 1)
        low = ((polynomial + half) & ((1 << _LIMB_BITS) - 1)) - half
        limbs = transform(torch.stack([low, (polynomial - low) >> _LIMB_BITS]))
        for start in range(0, self.tokens, _TRANSFORMED):
            part = target[start : start + _TRANSFORMED]
            secrets = self._transform[start : start + _TRANSFORMED]
            for limb, shift in ((limbs[0], 0), (limbs[1], _LIMB_BITS)):
                part -= inverse(secrets * limb)[:, : part.shape[1]].round_().long() << shift

    def _inner_products(self, hint: Int8Array) -> Tensor:
        """Rows of a hint times the secrets: int64 (tokens, rows), of the top 40 bits.

        As five int8 products where the processor is fast at them. Elsewhere as one of float64, which is exact: 2048
        terms of at most 2^39 stay below 2^53.
        """
        planes = torch.from_numpy(hint)
        if not takes_int8(torch.device("cpu")):
            return (self._secret.double() @ _values(planes).t()).long()
        products = int8_matmul(planes.view(-1, RING_DEGREE), self._secret.t()).view(len(hint), HINT_PLANES, self.tokens)
        return torch.from_numpy(weighted_sum(products.transpose(0, 1).contiguous().numpy(), 8)).t()


def _values(planes: Tensor) -> Tensor:
    """Five digits, int8 (rows, 5, N) -> what they stand for, float64 (rows, N)."""
    # In 32 bits as far as they hold the digits: half the time of 64.
    high = planes[:, 4].int()
    for place in (3, 2):
        high.mul_(256).add_(planes[:, place])
    low = planes[:, 1].int().mul_(256).add_(planes[:, 0])
    return high.double().mul_(1 << 16).add_(low)
