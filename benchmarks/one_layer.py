"""One layer of 6144 x 2048: what does encryption cost next to the plain float layer, online and ahead?"""

import statistics
from collections.abc import Iterator

import torch

from benchmarks.both_parties import BLOCK_TOKENS, Block, BothParties
from benchmarks.measure import Figure, in_turn, seconds, write

ROWS, COLUMNS = 6144, 2048
ROUNDS = 5


def main() -> list[Figure]:
    torch.manual_seed(0)
    weights = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8)
    with torch.inference_mode():
        parties = BothParties(weights)
        blocks = [parties.block()]  # the first one warms up
        ahead = statistics.median(seconds(lambda: blocks.append(parties.block())) for _ in range(ROUNDS))
        ours, clear, ratio = _online(weights, parties, blocks)
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
            "the same, ahead, all parties, per token",
            ahead / BLOCK_TOKENS * 1e3,
            "ms",
            0.4,
            0.2,
            f"median of {ROUNDS} blocks of {BLOCK_TOKENS} tokens; hint {parties.hint_bytes / 1e6:.0f} MB, once",
        ),
    ]
    write("one_layer", figures)
    return figures


def _online(weights: torch.Tensor, parties: BothParties, blocks: list[Block]) -> tuple[float, float, float]:
    """Median seconds of our product and of the float layer, run in turn, and the median of their ratios."""
    bound = parties.parameters.max_activation
    x = torch.randint(-bound, bound + 1, (1, COLUMNS), dtype=torch.int32)
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    activation = x.float()
    expected = (x.double() @ weights.double().t()).int()
    pads: Iterator[tuple[Block, int]] = ((block, token) for block in blocks for token in range(BLOCK_TOKENS))
    results = []

    def private() -> None:
        results.append(parties.product(x.numpy(), *next(pads)))

    timings = in_turn(private, lambda: layer(activation), 300)
    assert all((torch.from_numpy(result) == expected).all() for result in results)
    return timings
