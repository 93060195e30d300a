"""The owner's half: the hint of a layer group, and the matrix U that goes to the server beside the weights.

For output j the hint is h_j = sum_b w~_jb a_b + U_j p1 + e1_j, where w~ makes the constant coefficient of w~ g the
product of g with W's row. Under U, which nobody but server and owner knows, it is a sample of ring-LWE. It is kept as
the row whose product with s is the constant coefficient of h s, and so is U.

U and e1 are drawn from the owner's key, bound to the model, the epoch, the group and the very weights: two draws under
one a, or one draw for two matrices, would give the difference of the matrices away.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from confide.rlwe.digits import digits
from confide.rlwe.pads import Int8Array
from confide.rlwe.parameters import HINT_PLANES, MODULUS_BITS, RING_DEGREE, U_BITS, noise_std
from confide.rlwe.public import PublicSeed
from confide.rlwe.random import ERROR_STREAM_BYTES, rounded_gaussian
from confide.rlwe.ring import inverse, transform
from confide.rlwe.streams import Stream, derive_key

TILE_ROWS = 32
"""Rows made at a time: their transforms stay in cache."""
ROW_BYTES = HINT_PLANES * RING_DEGREE
_LIMB_BITS = 16
_MASK = (1 << MODULUS_BITS) - 1


@dataclass(frozen=True)
class HintTile:
    """Consecutive rows of a hint. hint: int8 (rows, 5, N), balanced digits of the top 40 bits. u: int8 (rows, N).

    noise_std: the largest standard deviation, of exact norms, that a row's noise can have.
    """

    first_row: int
    hint: Int8Array
    u: Int8Array
    noise_std: float


class HintMaker:
    """Makes the rows of one group's hint, any range of them at a time and always the same.

    weights: int8 (rows, columns). owner_key: 32 secret bytes that serve nothing else.
    """

    def __init__(self, weights: Tensor, public: PublicSeed, owner_key: bytes, group: int) -> None:
        self._weights = weights
        blocks = -(-weights.shape[1] // RING_DEGREE)
        self._a = torch.stack([_limbs(public.a(group, block)) for block in range(blocks)])
        self._p1 = _limbs(public.p1())
        content = hashlib.sha256(np.ascontiguousarray(weights.numpy()).data).digest()
        numbers = b"".join(number.to_bytes(4, "big") for number in (public.epoch, group, *weights.shape))
        bound = public.model_digest + numbers + content
        self._u_key = derive_key(owner_key, "hint u", bound)
        self._error_key = derive_key(owner_key, "hint error", bound)

    def __repr__(self) -> str:
        return "HintMaker(<hidden>)"

    def rows(self, first: int = 0) -> Iterator[HintTile]:
        """Tiles of rows, in order, from a row that is a multiple of TILE_ROWS."""
        for start in range(first, len(self._weights), TILE_ROWS):
            yield self.tile(start)

    def u(self) -> Int8Array:
        """All of U in row form: int8 (rows, N)."""
        return u_rows(self._u_key, 0, len(self._weights))

    def tile(self, first: int) -> HintTile:
        """The one that begins with this row, a multiple of TILE_ROWS."""
        weights = self._weights[first : first + TILE_ROWS]
        u = u_rows(self._u_key, first, len(weights))
        error = error_rows(self._error_key, first, len(weights))
        total = _products(torch.from_numpy(u), self._p1)
        for block, a in enumerate(self._a):
            columns = weights[:, block * RING_DEGREE : (block + 1) * RING_DEGREE]
            total += _products(torch.nn.functional.pad(columns, (0, RING_DEGREE - columns.shape[1])), a)
        exact = (total + error) & _MASK
        dropped = MODULUS_BITS - 8 * HINT_PLANES
        half = (1 << dropped) >> 1
        kept = ((exact + half) >> dropped).numpy()
        rounding = (((exact + half) & ((1 << dropped) - 1)) - half).neg_()
        hint_error = (error + rounding).double().square_().sum(1)
        norms = (_squares(weights), _squares(torch.from_numpy(u)), hint_error)
        std = max(noise_std(w**0.5, v**0.5, h**0.5) for w, v, h in zip(*(norm.tolist() for norm in norms), strict=True))
        planes = np.ascontiguousarray(np.moveaxis(digits(kept, HINT_PLANES), -1, 1))
        return HintTile(first, planes, u, std)


def u_rows(key: bytes, first: int, rows: int) -> Int8Array:
    """Rows of U in row form, the same for a key in whatever parts they are drawn: int8 (rows, N), in [-32, 31]."""
    content = Stream(key, offset=first * RING_DEGREE).bytes(rows * RING_DEGREE)
    signed = content.view(np.int8).reshape(rows, RING_DEGREE)
    shifted: Int8Array = signed >> (8 - U_BITS)  # the top six bits, with their sign: uniform
    return shifted


def error_rows(key: bytes, first: int, rows: int) -> Tensor:
    """Rows of e1 in row form, as `u_rows`: int64 (rows, N), of the ring's error distribution."""
    stream = Stream(key, offset=first * RING_DEGREE * ERROR_STREAM_BYTES)
    return rounded_gaussian(stream, rows, RING_DEGREE).long()


def _limbs(polynomial: Tensor) -> Tensor:
    """A polynomial mod 2^48, turned for row forms -> transforms of its three signed 16-bit limbs, complex (3, N/2).

    The row form of w~ a is what W's row gives with a turned matrix; that matrix is again a ring product, with the
    polynomial a(1/X): coefficient 0 stays and coefficient i becomes minus coefficient N - i.
    """
    turned = torch.cat([polynomial[:1], -polynomial[1:].flip(-1)])
    limbs = []
    rest = turned
    for _ in range(MODULUS_BITS // _LIMB_BITS):
        limb = ((rest + (1 << (_LIMB_BITS - 1))) & ((1 << _LIMB_BITS) - 1)) - (1 << (_LIMB_BITS - 1))
        limbs.append(limb)
        rest = (rest - limb) >> _LIMB_BITS
    return transform(torch.stack(limbs))


def _products(rows: Tensor, limbs: Tensor) -> Tensor:
    """int8 rows (r, N) times a polynomial in limbs -> int64 (r, N), exact mod 2^48: sums stay below 2^34."""
    left = transform(rows)
    total = torch.zeros(rows.shape, dtype=torch.int64)
    for place, limb in enumerate(limbs):
        total += inverse(left * limb).round_().long() << (_LIMB_BITS * place)
    return total


def _squares(rows: Tensor) -> Tensor:
    return rows.double().square_().sum(1)
