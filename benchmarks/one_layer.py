"""One layer of 6144 x 2048: what does encryption cost next to the plain float layer, online and offline?"""

import torch

from benchmarks.both_parties import Pack, prepare, private_weights, product
from benchmarks.measure import Figure, in_turn, seconds, write
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import Parameters

ROWS, COLUMNS = 6144, 2048


def main() -> list[Figure]:
    torch.manual_seed(0)
    weights = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8)
    parameters = private_weights(weights)
    with torch.inference_mode():
        packs: list[Pack] = []
        offline = sorted(seconds(lambda: packs.append(prepare(weights, parameters))) for _ in range(3))
        ours, clear, ratio = _online(weights, parameters, packs[0])
    figures = [
        Figure(
            "one layer 6144x2048, online / fp32 nn.Linear",
            ratio,
            "ratio",
            0.5,
            0.25,
            f"{ours * 1e3:.2f} ms against {clear * 1e3:.2f} ms",
        ),
        Figure(
            "the same, offline, all parties, per token",
            offline[1] / parameters.tokens * 1e3,
            "ms",
            1.2,
            0.7,
            "median of three packs of 4,096 tokens",
        ),
    ]
    write("one_layer", figures)
    return figures


def _online(weights: torch.Tensor, parameters: Parameters, pack: Pack) -> tuple[float, float, float]:
    """Median seconds of our product and of the float layer, run in turn, and the median of their ratios."""
    bound = parameters.max_activation
    x = torch.randint(-bound, bound + 1, (1, COLUMNS), dtype=torch.int32)
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    activation = x.float()
    packed = PackedMatrix.where_faster(weights)
    index = iter(range(parameters.tokens))
    results = []
    expected = (x.double() @ weights.double().t()).int()

    def private() -> None:
        results.append(product(packed, x.numpy(), pack, next(index), parameters))

    timings = in_turn(private, lambda: layer(activation), 300)
    assert all((torch.from_numpy(result) == expected).all() for result in results)
    return timings
