"""Random attention blocks for the tests."""

from dataclasses import dataclass

import numpy as np

from confide.attention.plaintexts import Plaintexts
from confide.attention.plan import Plan, compile_plan
from confide.attention.weights import AttentionWeights


@dataclass
class Block:
    weights: AttentionWeights
    plan: Plan
    generator: np.random.Generator

    @property
    def plaintexts(self) -> Plaintexts:
        return Plaintexts(self.weights, self.plan)

    def input(self, tokens: int | None = None) -> np.ndarray:
        """Unit variance, as after a layer norm."""
        return self.generator.standard_normal((tokens or self.plan.shape.tokens, self.plan.shape.width))


def block(width=16, heads=2, head_width=8, tokens=4, gain=0.3, calibration=200) -> Block:
    """`gain` is the standard deviation of queries, keys and values; the scores' is about its square."""
    generator = np.random.default_rng(11)
    rows = 3 * heads * head_width
    weights = AttentionWeights(
        heads,
        generator.standard_normal((rows, width)) * gain / np.sqrt(width),
        generator.standard_normal(rows) * 0.1,
    )
    texts = [generator.standard_normal((tokens, width)) for _ in range(calibration)]
    return Block(weights, compile_plan(weights, weights.shape(tokens), texts), generator)
