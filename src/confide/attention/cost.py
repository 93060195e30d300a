"""What a plan costs, counted by running its circuit on nothing."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from confide.attention.backend import Plain
from confide.attention.circuit import Circuit
from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import Plan
from confide.attention.weights import AttentionWeights


@dataclass
class CountingBackend:
    """Vectors are levels; operations are counted by level. See Backend for every method."""

    rotations: Counter[int] = field(default_factory=Counter)
    multiplications: Counter[int] = field(default_factory=Counter)
    plain_products: Counter[int] = field(default_factory=Counter)
    rescalings: Counter[int] = field(default_factory=Counter)
    steps: set[int] = field(default_factory=set)

    def level(self, vector: int) -> int:
        return vector

    def drop(self, vector: int, level: int) -> int:
        return level

    def add(self, left: int, right: int) -> int:
        return min(left, right)

    def negate(self, vector: int) -> int:
        return vector

    def add_plain(self, vector: int, plain: Plain | float) -> int:
        return vector

    def dot(self, pairs: Sequence[tuple[int, int]]) -> int:
        self.multiplications[pairs[0][0]] += len(pairs)
        return self.rescale(pairs[0][0])

    def plain_dot(self, vectors: Iterable[int], plains: Iterable[Plain]) -> int:
        # Plaintexts are made when used, and here they are not.
        level = 0
        for level in vectors:
            self.plain_products[level] += 1
        return level

    def rescale(self, vector: int) -> int:
        self.rescalings[vector] += 1
        return vector - 1

    def scaled(self, vector: int, factor: float) -> int:
        return vector

    def times_unit(self, vector: int) -> int:
        return vector

    def rotate(self, vector: int, steps: int) -> int:
        self.steps.add(steps)
        self.rotations[vector] += 1
        return vector

    def conjugate(self, vector: int) -> int:
        self.rotations[vector] += 1
        return vector

    def parallel(self, tasks: Sequence[Callable[[], list[int]]]) -> list[list[int]]:
        return [task() for task in tasks]


@dataclass(frozen=True)
class Cost:
    """What evaluating a plan takes of a server, and what travels."""

    plan: Plan
    rotations: int
    multiplications: int
    plain_products: int
    rotation_steps: frozenset[int]
    """Which Galois keys are needed, besides that of conjugation."""
    core_seconds: float
    """Estimated."""

    @property
    def key_bytes(self) -> int:
        """Of all evaluation keys in the server's memory; half of it travels, the other half being seeds."""
        return (len(self.rotation_steps) + 2) * self.plan.parameters.switching_key_bytes

    @property
    def input_bytes(self) -> int:
        """Of the encrypted input, half of it a seed; before compression."""
        return self.plan.parameters.ciphertext_bytes(self.plan.parameters.levels) // 2

    @property
    def output_bytes(self) -> int:
        """Of the two ciphertexts that come back; before compression."""
        return 2 * self.plan.parameters.ciphertext_bytes(0)

    def __str__(self) -> str:
        plan, shape = self.plan, self.plan.shape
        lines = {
            "block": f"{shape.heads} heads of {shape.head_width}, {shape.width} wide, up to {shape.tokens} tokens",
            "exponential": f"degree {plan.exponential.degree}, {plan.exponential.squarings} squarings, relative error "
            f"{plan.exponential.relative_error(max(plan.ranges.half_range)):.1e}",
            "inverse": f"{plan.inverse.steps} steps, relative error {plan.inverse.relative_error:.1e}",
            "levels": f"{plan.parameters.levels} of {plan.parameters.scale_bits} bits, modulus "
            f"{plan.parameters.modulus_bits} bits, ring degree {plan.parameters.ring_degree}",
            "rotations": f"{self.rotations:,}",
            "multiplications": f"{self.multiplications:,} of ciphertexts, {self.plain_products:,} with plaintexts",
            "evaluation keys": f"{len(self.rotation_steps) + 2}, {self.key_bytes / 1e6:,.0f} MB in memory",
            "ciphertexts": f"{self.input_bytes / 1e6:.1f} MB to the server, {self.output_bytes / 1e6:.1f} MB back",
            "estimated": f"{self.core_seconds:.0f} s on one core",
        }
        return "\n".join(f"{name:<16} {text}" for name, text in lines.items())


def count(plan: Plan) -> Cost:
    """The cost of a plan."""
    shape, backend = plan.shape, CountingBackend()
    rows = 3 * shape.heads * shape.head_width
    nothing = AttentionWeights(shape.heads, np.zeros((rows, shape.width)), np.zeros(rows))
    Circuit(backend, Plaintexts(nothing, plan)).evaluate(plan.parameters.levels)
    return Cost(
        plan=plan,
        rotations=backend.rotations.total(),
        multiplications=backend.multiplications.total(),
        plain_products=backend.plain_products.total(),
        rotation_steps=frozenset(backend.steps),
        core_seconds=_core_seconds(backend, plan),
    )


SECONDS_PER_BUTTERFLY = 7e-10
"""Of SEAL's number-theoretic transform on one core of a current server: fitted to a rotation at 20 levels, 0.16 s."""


def _core_seconds(backend: CountingBackend, plan: Plan) -> float:
    """A model of SEAL on one core, in transforms of one polynomial modulo one prime.

    Switching keys at level l takes (l + 1) (l + 2) of them, a product with a plaintext about 1.6 (l + 1), encoding
    included, rescaling about 3 (l + 1).
    """
    degree = plan.parameters.ring_degree
    switchings = backend.rotations + backend.multiplications
    transforms = (
        sum(number * (level + 1) * (level + 2) for level, number in switchings.items())
        + 1.6 * sum(number * (level + 1) for level, number in backend.plain_products.items())
        + 3 * sum(number * (level + 1) for level, number in backend.rescalings.items())
    )
    return float(transforms * SECONDS_PER_BUTTERFLY * degree * np.log2(degree))
