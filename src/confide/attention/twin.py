"""The circuit in clear numbers: the same polynomials, the same levels, no encryption and so no noise."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np
from numpy.typing import NDArray

from confide.attention import layout
from confide.attention.backend import Plain
from confide.attention.checks import Result
from confide.attention.circuit import Circuit
from confide.attention.plaintexts import Plaintexts


@dataclass(frozen=True)
class ClearVector:
    """Slots in the clear (slots,), and the level that a ciphertext would have."""

    slots: NDArray[np.complex128]
    level: int


class ClearBackend:
    """Computes on cleartext slots, and holds the circuit to its levels."""

    def level(self, vector: ClearVector) -> int:
        """See Backend, as for every method here."""
        return vector.level

    def drop(self, vector: ClearVector, level: int) -> ClearVector:
        if level > vector.level:
            raise ValueError("a vector cannot be brought up")
        return ClearVector(vector.slots, level)

    def add(self, left: ClearVector, right: ClearVector) -> ClearVector:
        return ClearVector(left.slots + right.slots, _common(left, right))

    def negate(self, vector: ClearVector) -> ClearVector:
        return ClearVector(-vector.slots, vector.level)

    def add_plain(self, vector: ClearVector, plain: Plain | float) -> ClearVector:
        return ClearVector(vector.slots + plain, vector.level)

    def dot(self, pairs: Sequence[tuple[ClearVector, ClearVector]]) -> ClearVector:
        products = [ClearVector(left.slots * right.slots, _common(left, right)) for left, right in pairs]
        return self.rescale(reduce(self.add, products))

    def plain_dot(self, vectors: Iterable[ClearVector], plains: Iterable[Plain]) -> ClearVector:
        products = [ClearVector(v.slots * plain, v.level) for v, plain in zip(vectors, plains, strict=True)]
        return reduce(self.add, products)

    def rescale(self, vector: ClearVector) -> ClearVector:
        if vector.level < 1:
            raise ValueError("no level is left")
        return ClearVector(vector.slots, vector.level - 1)

    def scaled(self, vector: ClearVector, factor: float) -> ClearVector:
        return ClearVector(vector.slots * factor, vector.level)

    def times_unit(self, vector: ClearVector) -> ClearVector:
        return ClearVector(layout.unit(len(vector.slots)) * vector.slots, vector.level)

    def rotate(self, vector: ClearVector, steps: int) -> ClearVector:
        return ClearVector(np.roll(vector.slots, -steps), vector.level)

    def conjugate(self, vector: ClearVector) -> ClearVector:
        return ClearVector(vector.slots.conj(), vector.level)

    def parallel(self, tasks: Sequence[Callable[[], list[ClearVector]]]) -> list[list[ClearVector]]:
        return [task() for task in tasks]


def twin(x: NDArray[np.float64], plaintexts: Plaintexts) -> Result:
    """What the encrypted block returns for inputs (tokens, width), without its noise. Raises InvalidActivation."""
    plan = plaintexts.plan
    packed = ClearVector(layout.pack_input(x, plan.shape), plan.parameters.levels)
    outputs = Circuit(ClearBackend(), plaintexts).evaluate(packed)
    return Result.from_slots(outputs.context.slots, outputs.checks.slots, len(x), plan)


def _common(left: ClearVector, right: ClearVector) -> int:
    if left.level != right.level:
        raise ValueError("vectors at different levels")
    return left.level
