"""One layer group with both parties in this process, no network and no disk: a whole mask pack, then token by token."""

import os
from dataclasses import dataclass

import numpy as np
import torch
from confide.rlwe.encryption import PackSecret
from confide.rlwe.evaluation import OfflineProduct, RequestKey, shares
from numpy.typing import NDArray

from confide.rlwe import masks, online
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import Parameters, Profile

BLOCK_ROWS = 128


@dataclass(frozen=True, repr=False)
class Pack:
    """The client's pads (tokens, columns) and values (tokens, rows), and what the server expands its shares from."""

    pads: NDArray[np.int32]
    values: NDArray[np.int32]
    request: RequestKey


def private_weights(weights: torch.Tensor) -> Parameters:
    """The private-weights parameters of int8 weights (rows, columns)."""
    rows, columns = weights.shape
    l1, l2 = int(weights.long().abs().sum(1).max()), float(weights.double().norm(dim=1).max())
    return Parameters.derive(Profile.PRIVATE_WEIGHTS, rows=rows, columns=columns, row_l1=l1, row_l2=l2)


def prepare(weights: torch.Tensor, parameters: Parameters) -> Pack:
    """The offline phase of a whole pack."""
    secret = PackSecret(os.urandom(32), parameters.ring_degree)
    p1_seed = os.urandom(32)
    p0 = secret.public_key(p1_seed, parameters)
    pads = masks.uniform_masks(os.urandom(32), parameters, parameters.tokens)
    by_row = torch.from_numpy(pads).t().contiguous()
    server = OfflineProduct(weights, parameters)
    for first in range(0, parameters.columns, BLOCK_ROWS):
        block = by_row[first : first + BLOCK_ROWS]
        server.add_rows(first, secret.encrypt_rows(block, parameters, 0, first))
    request = RequestKey.bind(os.urandom(32), os.urandom(32))
    values = torch.empty(parameters.rows, parameters.tokens, dtype=torch.int32)
    for first, high, low in server.answer(secret.public_seed(0), p1_seed, p0, request):
        values[first : first + high.shape[1]] = secret.decrypt_rows(high, low)
    return Pack(pads, values.t().contiguous().numpy(), request)


def product(
    weights: torch.Tensor | PackedMatrix, activations: NDArray[np.int32], pack: Pack, token: int, parameters: Parameters
) -> NDArray[np.int32]:
    """The online phase of one token, under the pack's mask `token`: (1, columns) -> (1, rows)."""
    masked = masks.mask(activations, pack.pads[token : token + 1], parameters)
    share = shares(pack.request, parameters.rows, token, 1)
    answer = online.answer(weights, torch.from_numpy(masked), share, parameters)
    return masks.unmask(answer.numpy(), pack.values[token : token + 1], parameters)
