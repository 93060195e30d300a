"""One layer of 6144 x 2048: what does encryption cost next to the plain float layer, online and offline?"""

import os

import torch

from benchmarks.measure import Figure, in_turn, seconds, write
from confide.rlwe import masks, online
from confide.rlwe.encryption import PackSecret
from confide.rlwe.evaluation import OfflineProduct, RequestKey, shares
from confide.rlwe.parameters import Parameters, Profile

ROWS, COLUMNS = 6144, 2048


def main() -> list[Figure]:
    torch.manual_seed(0)
    weights = torch.randint(-127, 128, (ROWS, COLUMNS), dtype=torch.int8)
    l1, l2 = int(weights.long().abs().sum(1).max()), float(weights.double().norm(dim=1).max())
    parameters = Parameters.derive(Profile.PRIVATE_WEIGHTS, rows=ROWS, columns=COLUMNS, row_l1=l1, row_l2=l2)
    with torch.inference_mode():
        offline = [_offline(weights, parameters) for _ in range(3)]
        values, pads, request, _ = offline[0]
        ours, clear, ratio = _online(weights, parameters, values, pads, request)
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
            sorted(run[3] for run in offline)[1] * 1e3,
            "ms",
            1.2,
            0.7,
            "median of three packs of 4,096 tokens",
        ),
    ]
    write("one_layer", figures)
    return figures


def _offline(weights: torch.Tensor, parameters: Parameters):  # type: ignore[no-untyped-def]
    """A whole pack, both parties in this process: unmasking values, pads, the request key, seconds per token."""
    made = {}

    def run() -> None:
        secret = PackSecret(os.urandom(32), parameters.ring_degree)
        p1_seed = os.urandom(32)
        p0 = secret.public_key(p1_seed, parameters)
        pads = masks.uniform_masks(os.urandom(32), parameters, parameters.tokens)
        by_row = torch.from_numpy(pads).t().contiguous()
        server = OfflineProduct(weights, parameters)
        for first in range(0, COLUMNS, 128):
            server.add_rows(first, secret.encrypt_rows(by_row[first : first + 128], parameters, 0, first))
        request = RequestKey.bind(os.urandom(32), os.urandom(32))
        values = torch.empty(ROWS, parameters.tokens, dtype=torch.int32)
        for first, high, low in server.answer(secret.public_seed(0), p1_seed, p0, request):
            values[first : first + high.shape[1]] = secret.decrypt_rows(high, low)
        made["result"] = values.t().contiguous().numpy(), pads, request

    elapsed = seconds(run)
    return *made["result"], elapsed / parameters.tokens


def _online(weights, parameters, values, pads, request):  # type: ignore[no-untyped-def]
    bound = parameters.max_activation
    x = torch.randint(-bound, bound + 1, (1, COLUMNS), dtype=torch.int32)
    layer = torch.nn.Linear(COLUMNS, ROWS, bias=False)
    activation = x.float()
    index = iter(range(parameters.tokens))
    results = []
    expected = (x.double() @ weights.double().t()).int()

    def private() -> None:
        token = next(index)
        masked = masks.mask(x.numpy(), pads[token : token + 1], parameters)
        answer = online.answer(weights, torch.from_numpy(masked), shares(request, ROWS, token, 1), parameters)
        results.append(masks.unmask(answer.numpy(), values[token : token + 1], parameters))

    timings = in_turn(private, lambda: layer(activation), 300)
    assert all((torch.from_numpy(result) == expected).all() for result in results)
    return timings
