"""The protocol's arithmetic without a server: masks, digits, noise and rounding, as client and server go through them.

What a client would know through the hint is put together from its definition: v = noise - W pads - U p0 mod 2^48, the
noise a Gaussian as wide as the parameters allow. A run gives the same integers as the clear quantized model exactly
if masking, the server's product and unmasking are right together. Pads are drawn for every token; p0, of which nothing
is learnt here, once for each layer group.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import PreTrainedModel

from confide.models.clear import open_counterpart
from confide.models.quantized import QuantizedModel
from confide.packages.server_package import StoredGroup
from confide.packages.shell import load_shell
from confide.rlwe.digits import value
from confide.rlwe.online import Ahead, GroupMatrix
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import ANSWER_BITS, MODULUS_BITS, NOISE_STDS, PLANES, RING_DEGREE, U_BITS, Parameters
from confide.rlwe.streams import Stream, fresh_key

_LIMB_BITS = 24


@dataclass(frozen=True)
class _Key:
    """What a p0 gives: `ahead` of one token, and U p0, int64 (1, rows)."""

    ahead: Ahead
    product: NDArray[np.int64]


class SimulatedProduct:
    """W x for a layer group, by way of pads that this process holds both ends of. It protects nothing.

    groups: the matrices of each layer group; u is drawn here where it is None though weights are private.
    """

    def __init__(self, groups: Sequence[StoredGroup], parameters: Sequence[Parameters]) -> None:
        self._stream = Stream(fresh_key())
        self._groups = [self._with_u(group, each) for group, each in zip(groups, parameters, strict=True)]
        self._servers = [GroupMatrix(group.weights, group.u) for group in self._groups]
        self._parameters = parameters
        self._noise = np.random.default_rng()
        self._keys = [self._key(*pair) for pair in zip(self._groups, self._servers, strict=True)]

    @classmethod
    def of(cls, quantized: QuantizedModel) -> "SimulatedProduct":
        """For a quantized model that is not split yet, and so has no U."""
        groups = [StoredGroup(part.weights, None) for part in quantized.groups]
        return cls(groups, [part.group.parameters(quantized.profile) for part in quantized.groups])

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows), exact."""
        parameters, stored, server = self._parameters[group], self._groups[group], self._servers[group]
        pads = self._uniform(len(x), parameters.columns)
        planes = mask(x.cpu().numpy(), pads, parameters)
        product, ahead = _exact(stored.weights, pads), None
        if (key := self._keys[group]) is not None:
            ahead = Ahead.join([key.ahead] * len(x))
            product += key.product
        answer = server.answer(planes, ahead)
        return torch.from_numpy(unmask(answer, self._values(product, parameters), parameters)).to(x.device)

    def _key(self, group: StoredGroup, server: GroupMatrix) -> "_Key | None":
        if group.u is None:
            return None
        p0 = self._stream.bytes(PLANES * RING_DEGREE).view(np.int8).reshape(1, PLANES, RING_DEGREE)
        return _Key(server.ahead(p0), _exact(group.u, value(np.moveaxis(p0, 1, -1))))

    def _with_u(self, group: StoredGroup, parameters: Parameters) -> StoredGroup:
        if not parameters.private or group.u is not None:
            return group
        uniform = self._stream.bytes(len(group.weights) * RING_DEGREE).view(np.int8) >> (8 - U_BITS)
        return StoredGroup(group.weights, torch.from_numpy(uniform.reshape(-1, RING_DEGREE)))

    def _uniform(self, *shape: int) -> NDArray[np.int64]:
        """Uniform in [0, 2^48)."""
        words = np.empty(shape, np.int64)
        self._stream.fill(words)
        words &= (1 << MODULUS_BITS) - 1
        return words

    def _values(self, product: NDArray[np.int64], parameters: Parameters) -> NDArray[np.int32]:
        """What takes W pads + U p0, int64 (tokens, rows), off answers: see `TokenSecrets.values`."""
        if not parameters.private:
            return (-product).astype(np.int32)
        half = 1 << (MODULUS_BITS - 1 - parameters.plaintext_bits)
        rounding = 1 << (MODULUS_BITS - 1 - ANSWER_BITS)
        noise = self._noise.normal(0, (half - rounding) / NOISE_STDS, product.shape).round().astype(np.int64)
        return ((noise - product + half) >> (MODULUS_BITS - ANSWER_BITS)).astype(np.int32)


def _exact(weights: Tensor, values: NDArray[np.int64]) -> NDArray[np.int64]:
    """int8 (rows, columns), int64 (tokens, columns) below 2^48 in magnitude -> W values mod 2^64, (tokens, rows).

    By two limbs of 24 bits in float64, where sums of at most 2^15 products stay below 2^46.
    """
    limbs = np.stack([values & ((1 << _LIMB_BITS) - 1), values >> _LIMB_BITS]).astype(np.float64)
    low, high = (limbs @ weights.numpy().astype(np.float64).T).astype(np.int64)
    high <<= _LIMB_BITS
    high += low
    exact: NDArray[np.int64] = high
    return exact


def load_simulated(shell: Path | str, server: Path | str) -> PreTrainedModel:
    """The model of the two folders of one split, simulated. InvalidPackage where they do not belong together."""
    package = open_counterpart(shell, server)
    parameters = [group.parameters(package.manifest.profile) for group in package.manifest.groups]
    return load_shell(shell, SimulatedProduct(package.load(), parameters))
