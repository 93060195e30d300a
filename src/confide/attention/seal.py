"""The circuit on ciphertexts."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any

from tenseal import sealapi

from confide.attention import layout
from confide.attention.backend import Plain
from confide.attention.ckks import CkksContext, to_bytes
from confide.attention.workers import run_forked

Ciphertext = Any
"""sealapi has no types. Ciphertexts are never changed in place: workers and chains share them."""


@dataclass(frozen=True, eq=False)
class SealBackend:
    """Computes with relinearisation and Galois keys. See Backend for every method."""

    ckks: CkksContext
    relinearisation: Any
    galois: Any
    workers: int

    @cached_property
    def _evaluator(self) -> Any:
        return sealapi.Evaluator(self.ckks.context)

    def level(self, vector: Ciphertext) -> int:
        return self.ckks.level(vector)

    def drop(self, vector: Ciphertext, level: int) -> Ciphertext:
        if level == self.level(vector):
            return vector
        # Switching the modulus keeps the scale, which differs from level to level: a product with 1 corrects it.
        ckks, result = self.ckks, sealapi.Ciphertext()
        self._evaluator.mod_switch_to(vector, ckks.level_ids[level + 1], result)
        correction = ckks.scales[level] * ckks.primes[level + 1] / result.scale
        self._evaluator.multiply_plain(result, ckks.encode(1.0, level + 1, correction), result)
        return self.rescale(result)

    def add(self, left: Ciphertext, right: Ciphertext) -> Ciphertext:
        return self._new(self._evaluator.add, left, right)

    def negate(self, vector: Ciphertext) -> Ciphertext:
        return self._new(self._evaluator.negate, vector)

    def add_plain(self, vector: Ciphertext, plain: Plain | float) -> Ciphertext:
        encoded = self.ckks.encode(plain, self.level(vector), vector.scale)
        return self._new(self._evaluator.add_plain, vector, encoded)

    def dot(self, pairs: Sequence[tuple[Ciphertext, Ciphertext]]) -> Ciphertext:
        total, product = None, sealapi.Ciphertext()
        for left, right in pairs:
            self._evaluator.multiply(left, right, product)
            total = product if total is None else self.add(total, product)
            product = sealapi.Ciphertext()
        relinearised = self._new(self._evaluator.relinearize, total, self.relinearisation)
        return self.rescale(relinearised)

    def plain_dot(self, vectors: Iterable[Ciphertext], plains: Iterable[Plain]) -> Ciphertext:
        total: Ciphertext = None
        for vector, plain in zip(vectors, plains, strict=True):
            level = self.level(vector)
            encoded = self.ckks.encode(plain, level, self.ckks.scales[level])
            product = self._new(self._evaluator.multiply_plain, vector, encoded)
            if total is None:
                total = product
            else:
                self._evaluator.add_inplace(total, product)
        return total

    def rescale(self, vector: Ciphertext) -> Ciphertext:
        result = self._new(self._evaluator.rescale_to_next, vector)
        # SEAL adds equal scales only, so that rounding errors have to go; what `scaled` did is far larger.
        nominal = self.ckks.scales[self.level(result)]
        if math.isclose(result.scale, nominal, rel_tol=1e-9):
            result.scale = nominal
        return result

    def scaled(self, vector: Ciphertext, factor: float) -> Ciphertext:
        # A smaller scale makes the same integers stand for larger numbers.
        result = self._new(self._evaluator.mod_switch_to, vector, vector.parms_id())
        result.scale = vector.scale / factor
        return result

    def times_unit(self, vector: Ciphertext) -> Ciphertext:
        # This vector is the monomial X^(N/2), exact at scale 1: slot k is its value at a root's 3^k-th power.
        unit = self.ckks.encode(layout.unit(2), self.level(vector), 1.0)
        return self._new(self._evaluator.multiply_plain, vector, unit)

    def rotate(self, vector: Ciphertext, steps: int) -> Ciphertext:
        return self._new(self._evaluator.rotate_vector, vector, steps, self.galois)

    def conjugate(self, vector: Ciphertext) -> Ciphertext:
        return self._new(self._evaluator.complex_conjugate, vector, self.galois)

    def parallel(self, tasks: Sequence[Callable[[], list[Ciphertext]]]) -> list[list[Ciphertext]]:
        """SEAL computes on one core: tasks run in forked processes, which share keys and ciphertexts with this one."""
        if self.workers == 1:
            return [task() for task in tasks]
        serialised = [partial(_serialised, task) for task in tasks]
        return [list(map(self.ckks.load_ciphertext, parts)) for parts in run_forked(serialised, self.workers)]

    @staticmethod
    def _new(operation: Callable[..., None], *operands: Any) -> Ciphertext:
        result = sealapi.Ciphertext()
        operation(*operands, result)
        return result


def _serialised(task: Callable[[], list[Ciphertext]]) -> list[bytes]:
    return [to_bytes(vector) for vector in task()]
