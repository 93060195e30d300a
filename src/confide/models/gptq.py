"""GPTQ: rounding a matrix column by column, the columns that are left making up for the error of those before.

Algorithm 1 of Frantar, Ashkboos, Hoefler and Alistarh, "GPTQ: Accurate Post-Training Quantization for Generative
Pre-trained Transformers", 2022 (arXiv:2210.17323), for one symmetric scale per row, known beforehand.
"""

import torch
from torch import Tensor

DAMPING = 0.01
"""Of the mean of the moments' diagonal, added to all of it, as in the paper: few tokens leave it singular."""
BLOCK = 128
"""Columns that are rounded before what they leave is carried over to all later ones, by one matrix product."""


def gptq_round(weights: Tensor, scale: Tensor, largest: int, moments: Tensor) -> Tensor:
    """weights (m, n), scale (m,) -> whole numbers (m, n), at most `largest` in magnitude. All float32.

    moments: (n, n), the mean of x x^T over inputs x; integers * scale comes close to weights where they multiply such
    inputs. The columns with the largest moments are rounded first ("act order"), while there are others left.
    """
    order = moments.diagonal().argsort(descending=True)
    rest = weights[:, order]
    feedback = _feedback(moments[order][:, order])
    integers = torch.empty_like(rest)
    for start in range(0, rest.shape[1], BLOCK):
        columns = slice(start, start + BLOCK)
        integers[:, columns], error = _round_block(rest[:, columns], scale, largest, feedback[columns, columns])
        rest[:, columns.stop :] -= error @ feedback[columns, columns.stop :]
    return integers[:, order.argsort()]


def _feedback(moments: Tensor) -> Tensor:
    """The upper Cholesky factor of the damped moments' inverse: row i tells how later columns make up for column i."""
    diagonal = moments.diagonal()  # a view: the copy that was handed in is changed
    diagonal += DAMPING * diagonal.mean()
    diagonal[diagonal == 0] = 1  # no input at all
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(moments))
    factor: Tensor = torch.linalg.cholesky(inverse, upper=True)
    return factor


def _round_block(rest: Tensor, scale: Tensor, largest: int, feedback: Tensor) -> tuple[Tensor, Tensor]:
    """The block's whole numbers, and each column's error in units of the feedback's diagonal; `rest` is changed."""
    integers, errors = torch.empty_like(rest), torch.empty_like(rest)
    for i in range(rest.shape[1]):
        integers[:, i] = (rest[:, i] / scale).round_().clamp_(-largest, largest)
        errors[:, i] = (rest[:, i] - integers[:, i] * scale) / feedback[i, i]
        rest[:, i + 1 :] -= errors[:, i, None] * feedback[i, i + 1 :]
    return integers, errors
