"""What the circuit needs of whatever computes it: ciphertexts, cleartext vectors, or a counter."""

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

Vector = TypeVar("Vector")

Plain = NDArray[np.complex128]


class Backend(Protocol[Vector]):
    """Arithmetic on vectors of complex slots with CKKS's levels.

    Binary operations want equal levels. `drop` brings a vector down; `rescale` follows a product with a plaintext,
    and costs its level.
    """

    def level(self, vector: Vector) -> int:
        """How many rescalings it still takes."""
        ...

    def drop(self, vector: Vector, level: int) -> Vector:
        """The same vector at this lower or equal level."""
        ...

    def add(self, left: Vector, right: Vector) -> Vector:
        """The sum."""
        ...

    def negate(self, vector: Vector) -> Vector:
        """The vector times -1."""
        ...

    def add_plain(self, vector: Vector, plain: Plain | float) -> Vector:
        """The sum with a plaintext."""
        ...

    def dot(self, pairs: Sequence[tuple[Vector, Vector]]) -> Vector:
        """The sum of the products, relinearised and rescaled once: one level down."""
        ...

    def plain_dot(self, vectors: Iterable[Vector], plains: Iterable[Plain]) -> Vector:
        """The sum of the products with plaintexts, not yet rescaled."""
        ...

    def rescale(self, vector: Vector) -> Vector:
        """Ends a product with plaintexts: one level down."""
        ...

    def scaled(self, vector: Vector, factor: float) -> Vector:
        """The vector times a real factor, at no cost. It may only be a factor of products from then on."""
        ...

    def times_unit(self, vector: Vector) -> Vector:
        """The vector times i in even slots and -i in odd ones (layout.unit), at no level."""
        ...

    def rotate(self, vector: Vector, steps: int) -> Vector:
        """Slot k of the result is slot k + steps; it wraps."""
        ...

    def conjugate(self, vector: Vector) -> Vector:
        """The complex conjugate."""
        ...

    def parallel(self, tasks: Sequence[Callable[[], list[Vector]]]) -> list[list[Vector]]:
        """The results of tasks that do not depend on each other, in order."""
        ...
