"""Integer products that remember their results, to hold one run against another."""

from torch import Tensor

from confide.models.protected import IntegerProduct


class Recording:
    """An IntegerProduct that remembers what another one gave: (group, int32 (tokens, rows)) for each call."""

    def __init__(self, product: IntegerProduct) -> None:
        self._product = product
        self.given: list[tuple[int, Tensor]] = []

    def __call__(self, group: int, x: Tensor) -> Tensor:
        result = self._product(group, x)
        self.given.append((group, result))
        return result
