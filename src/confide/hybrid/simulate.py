"""The protocol's arithmetic without a server: masks, shares, noise and wrap-around, drawn as a pack would hold them.

What a pack would have brought is put together from its definition: v = 2^10 W r + share + noise mod 2^40, the noise a
Gaussian of the standard deviation that `Parameters` computes. A run gives the same integers as the clear quantized
model exactly if unmasking takes all of that off again.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.models.clear import open_counterpart
from confide.models.quantized import QuantizedModel
from confide.packages.shell import load_shell
from confide.rlwe import masks, online
from confide.rlwe.parameters import ANSWER_BITS, Parameters, Profile
from confide.rlwe.streams import Stream, fresh_key


class SimulatedProduct:
    """W x for a layer group, by way of one-time pads that this process holds both ends of. It protects nothing.

    matrices: int8 (rows, columns) of each layer group.
    """

    def __init__(self, matrices: Sequence[Tensor], parameters: Sequence[Parameters]) -> None:
        self._matrices = matrices
        self._parameters = parameters
        self._stream = Stream(fresh_key())
        self._noise = np.random.default_rng()

    @classmethod
    def of(cls, quantized: QuantizedModel) -> "SimulatedProduct":
        """For a quantized model."""
        return cls(quantized.matrices, [part.group.parameters(quantized.profile) for part in quantized.groups])

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows), exact."""
        weights, parameters = self._matrices[group], self._parameters[group]
        pads = self._stream.words(len(x), parameters.columns)
        pads &= (1 << parameters.plaintext_bits) - 1
        share, values = self._offline(weights, pads, parameters)
        masked = masks.mask(x.cpu().numpy(), pads, parameters)
        answer = online.answer(weights, torch.from_numpy(masked).to(weights.device), share, parameters)
        return torch.from_numpy(masks.unmask(answer.cpu().numpy(), values, parameters)).to(x.device)

    def _offline(
        self, weights: Tensor, pads: masks.Int32Array, parameters: Parameters
    ) -> tuple[Tensor | None, masks.Int32Array]:
        """The server's share and the client's values for these pads: int32 (tokens, rows), the top 32 of 40 bits."""
        low_bits = parameters.kept_bits - ANSWER_BITS
        product = online.matrix_product(weights, torch.from_numpy(pads).to(weights.device)).cpu().numpy()
        noise = self._noise.normal(0, parameters.switched_noise_std, product.shape).round().astype(np.int64)
        kept = (product.astype(np.int64) << (parameters.kept_bits - parameters.plaintext_bits)) + noise
        share = None
        if parameters.profile is Profile.PRIVATE_WEIGHTS:
            top = self._stream.words(*product.shape)
            kept += (top.astype(np.int64) << low_bits) + self._stream.bytes(product.size).reshape(product.shape)
            share = torch.from_numpy(top).to(weights.device)
        return share, (kept >> low_bits).astype(np.int32)


def load_simulated(shell: Path | str, server: Path | str) -> PreTrainedModel:
    """The model of the two folders of one split, simulated. InvalidPackage where they do not belong together."""
    package = open_counterpart(shell, server)
    parameters = [group.parameters(package.manifest.profile) for group in package.manifest.groups]
    return load_shell(shell, SimulatedProduct(package.load(), parameters))
