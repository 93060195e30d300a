"""The attention block, written once for ciphertexts, for the cleartext twin and for counting what it costs."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from typing import Generic, NamedTuple

from confide.attention.backend import Backend, Vector
from confide.attention.plaintexts import KEY, QUERY, VALUE, Plaintexts

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, stages done and stages in all."""

STAGES = ("rotations of the input", "queries, keys, values", "scores", "exponentials", "weighted sum")


class Outputs(NamedTuple, Generic[Vector]):
    """What the circuit returns, at level 0."""

    context: Vector
    """Context vectors."""
    checks: Vector
    """Real parts: scaled scores, within [-1, 1] where calibrated. Times layout.unit: sums of exponentials."""


@dataclass(frozen=True)
class Circuit(Generic[Vector]):
    """One attention block over a backend."""

    backend: Backend[Vector]
    plaintexts: Plaintexts
    progress: Progress = lambda stage, done, total: None

    def evaluate(self, x: Vector) -> Outputs[Vector]:
        """Queries, keys and values, scores, softmax and weighted sum of a packed input at the plan's top level."""
        plan, backend = self.plaintexts.plan, self.backend
        self._report(0)
        babies = self._babies(x)
        self._report(1)
        query, key, value = self._projections(babies)
        self._report(2)
        scores = self._scores(query, key)
        self._report(3)
        exponentials = self._exponentials(scores)
        sums = self._sum_over_dims(exponentials, plan.shape.token_slots)
        self._report(4)
        (inverse,), (mixed,) = backend.parallel(
            [lambda: [self._inverse(sums)], lambda: [self._weighted_sum(exponentials, value)]]
        )
        # Sums came divided by the spread, and a real part is taken twice.
        context = self._multiply(backend.scaled(mixed, plan.inverse.spread / 2), inverse)
        checks = backend.add(backend.drop(scores, 0), backend.times_unit(backend.drop(sums, 0)))
        self._report(5)
        return Outputs(context, checks)

    def _report(self, done: int) -> None:
        self.progress(STAGES[done] if done < len(STAGES) else "done", done, len(STAGES))

    def _babies(self, x: Vector) -> list[Vector]:
        """x rotated by 0, 1, ... baby_steps - 1 positions: two chains of single steps."""
        plan = self.plaintexts.plan
        half, step = plan.baby_steps // 2, plan.shape.token_slots

        def chain(start: int) -> list[Vector]:
            rotated = [self.backend.rotate(x, start * step) if start else x]
            while len(rotated) < half:
                rotated.append(self.backend.rotate(rotated[-1], step))
            return rotated

        low, high = self.backend.parallel([lambda: chain(0), lambda: chain(half)])
        return low + high

    def _projections(self, babies: list[Vector]) -> tuple[Vector, Vector, Vector]:
        """Queries and keys at the level that is next, values where the weighted sum wants them."""
        low = [self.backend.drop(baby, self.plaintexts.plan.value_level + 1) for baby in babies]
        tasks = [
            lambda: [self._projection(babies, QUERY)],
            lambda: [self._projection(babies, KEY)],
            lambda: [self._projection(low, VALUE)],
        ]
        (query,), (key,), (value,) = self.backend.parallel(tasks)
        return query, key, value

    def _projection(self, babies: list[Vector], role: int) -> Vector:
        """W x + b by diagonals, baby steps and giant steps (Halevi and Shoup 2014)."""
        backend, plan, shape = self.backend, self.plaintexts.plan, self.plaintexts.plan.shape
        total: Vector | None = None
        for giant in reversed(range(plan.giant_steps)):
            diagonals = (self.plaintexts.diagonal(role, giant, baby) for baby in range(plan.baby_steps))
            inner = backend.plain_dot(babies, diagonals)
            turned = None if total is None else backend.rotate(total, plan.baby_steps * shape.token_slots)
            total = inner if turned is None else backend.add(turned, inner)
        assert total is not None  # noqa: S101 - giant_steps >= 1
        return backend.add_plain(self._real(self._fold(backend.rescale(total))), self.plaintexts.bias(role))

    def _fold(self, vector: Vector) -> Vector:
        """Sums the parts of a product whose input has more positions than its output."""
        shape = self.plaintexts.plan.shape
        positions = shape.output_positions
        while positions < shape.input_positions:
            vector = self.backend.add(vector, self.backend.rotate(vector, positions * shape.token_slots))
            positions *= 2
        return vector

    def _scores(self, query: Vector, key: Vector) -> Vector:
        """Scaled and centred scores, each in the dims of its distance; zero where the causal mask forbids."""
        backend, shape = self.backend, self.plaintexts.plan.shape
        shifted = self._shifts(backend.add(key, backend.times_unit(backend.rotate(key, -shape.half_distances))))

        def masked(delta: int) -> list[Vector]:
            everywhere = self._sum_over_dims(self._multiply(query, shifted[delta]), shape.dim_slots)
            return [backend.plain_dot([everywhere], [self.plaintexts.score_mask(delta)])]

        distances = range(shape.half_distances)
        parts = backend.parallel([lambda delta=delta: masked(delta) for delta in distances])  # type: ignore[misc]
        merged = backend.rescale(reduce(backend.add, [part for (part,) in parts]))
        return backend.add_plain(self._real(merged), self.plaintexts.score_shift)

    def _exponentials(self, scores: Vector) -> Vector:
        """The polynomial, then the squarings."""
        exponential = self.plaintexts.plan.exponential
        powers = [scores]
        while 2 ** len(powers) < exponential.degree:
            powers.append(self._multiply(powers[-1], powers[-1]))
        result = self._polynomial(0, exponential.degree + 1, powers)
        for _ in range(exponential.squarings):
            result = self._multiply(result, result)
        return result

    def _polynomial(self, first: int, count: int, powers: list[Vector]) -> Vector:
        """The sum of coefficient[first + k] u^k for k < count, a power of two, by halving."""
        coefficients = self.plaintexts.exponential
        if count == 2:
            linear = self.backend.rescale(self.backend.plain_dot(powers[:1], [coefficients[first + 1]]))
            return self.backend.add_plain(linear, coefficients[first])
        half = count // 2
        high = self._multiply(self._polynomial(first + half, half, powers), powers[half.bit_length() - 1])
        low = self._polynomial(first, half, powers)
        return self.backend.add(self.backend.drop(low, self.backend.level(high)), high)

    def _inverse(self, sums: Vector) -> Vector:
        """1 / sums, see Inverse. The sums come divided by the spread."""
        backend, inverse = self.backend, self.plaintexts.plan.inverse
        # The first polynomial is y = y0 - s / spread itself.
        polynomial = backend.add_plain(backend.negate(sums), inverse.at_zero(0))
        result: Vector | None = None
        for step in range(inverse.steps):
            at_zero = inverse.at_zero(step)
            factor = backend.scaled(backend.add_plain(polynomial, at_zero), 2 * at_zero / inverse.at_zero(step + 1))
            result = factor if result is None else self._multiply(result, factor)
            if step + 1 < inverse.steps:
                square = self._multiply(polynomial, polynomial)
                polynomial = backend.add_plain(backend.add(square, square), -1.0)
        assert result is not None  # noqa: S101 - steps >= 1
        return result

    def _weighted_sum(self, exponentials: Vector, value: Vector) -> Vector:
        """Values weighted with exponentials, summed over distances; two distances in one complex product."""
        backend, plan = self.backend, self.plaintexts.plan
        half = plan.shape.half_distances
        shifted = self._shifts(backend.add(value, backend.negate(backend.times_unit(backend.rotate(value, -half)))))
        low = backend.drop(exponentials, plan.value_level + 1)
        pairs = []
        for delta in range(half):
            kept = backend.rescale(backend.plain_dot([low], [self.plaintexts.share_mask(delta)]))
            pairs.append((self._sum_over_dims(kept, plan.shape.token_slots), shifted[delta]))
        return self._real(backend.dot(pairs))

    def _shifts(self, vector: Vector) -> list[Vector]:
        """The vector moved by 0, 1, ... half_distances - 1 tokens: slot t gets what token t - delta has."""
        shifted = [vector]
        while len(shifted) < self.plaintexts.plan.shape.half_distances:
            shifted.append(self.backend.rotate(shifted[-1], -1))
        return shifted

    def _sum_over_dims(self, vector: Vector, dims: int) -> Vector:
        """In every dim the sum over itself and the next dims - 1; dims is a power of two."""
        step = self.plaintexts.plan.shape.dim_step
        while dims > 1:
            vector = self.backend.add(vector, self.backend.rotate(vector, step))
            step, dims = 2 * step, dims // 2
        return vector

    def _real(self, vector: Vector) -> Vector:
        """Twice the real part."""
        return self.backend.add(vector, self.backend.conjugate(vector))

    def _multiply(self, left: Vector, right: Vector) -> Vector:
        """The product, one below the lower of the two levels."""
        level = min(self.backend.level(left), self.backend.level(right))
        return self.backend.dot([(self.backend.drop(left, level), self.backend.drop(right, level))])
