"""One layer group with both parties in this process, no network and no disk: pads for a block, then token by token."""

import os
from dataclasses import dataclass

import numpy as np
import torch

from confide.rlwe.hint import HintMaker
from confide.rlwe.online import Ahead, GroupMatrix
from confide.rlwe.pads import Int8Array, Int32Array, Int64Array, mask, unmask
from confide.rlwe.parameters import Norms, Parameters, Profile
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets

BLOCK_TOKENS = 64


@dataclass(frozen=True, repr=False)
class Block:
    """Pads (tokens, columns) and values (tokens, rows) of the client's, and what the server made of its keys."""

    pads: Int64Array
    values: Int32Array
    ahead: Ahead


def private_weights(weights: torch.Tensor) -> Parameters:
    """The private-weights parameters of int8 weights (rows, columns)."""
    rows, columns = weights.shape
    norms = Norms(int(weights.long().abs().sum(1).max()), float(weights.double().norm(dim=1).max()))
    return Parameters.derive(Profile.PRIVATE_WEIGHTS, norms, rows=rows, columns=columns)


class BothParties:
    """Owner, server and client of one layer group. hint_bytes: of what the client gets once."""

    def __init__(self, weights: torch.Tensor) -> None:
        self.parameters = private_weights(weights)
        self._public = PublicSeed(os.urandom(32), 0)
        maker = HintMaker(weights, self._public, os.urandom(32), 0)
        self._hint: Int8Array = np.concatenate([tile.hint for tile in maker.rows()])
        self._matrix = GroupMatrix(weights, torch.from_numpy(maker.u()))
        self.hint_bytes = self._hint.nbytes

    def block(self, tokens: int = BLOCK_TOKENS) -> Block:
        """The work ahead of some tokens, of both parties."""
        secrets = TokenSecrets(self._public, tokens)
        pads = secrets.pads(0, self.parameters)
        return Block(pads, secrets.values(self._hint, self.parameters), self._matrix.ahead(secrets.p0))

    def product(self, activations: Int32Array, block: Block, token: int) -> Int32Array:
        """The online phase of one token, under the block's pads of `token`: (1, columns) -> (1, rows)."""
        place = slice(token, token + 1)
        planes = mask(activations, block.pads[place], self.parameters)
        return unmask(self._matrix.answer(planes, block.ahead[place]), block.values[place], self.parameters)
