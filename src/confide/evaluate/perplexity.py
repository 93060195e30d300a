"""Perplexity: how well a model foresees a text, as e to its mean negative log-likelihood per token.

Sums are kept per window, so that models can be compared window by window and intervals drawn over windows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.evaluate.logits import logits_digest, window_logits
from confide.evaluate.statistics import Estimate, mean_per_token

_ROWS = 256
"""Positions whose log-likelihoods are taken at a time: the float64 copy of their logits is all that is added."""


class WindowLoss(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on one window. nll: summed negative log-likelihood, in nats; logits: their digest."""

    nll: float
    tokens: int
    logits: str


@dataclass(frozen=True)
class Perplexity:
    """A model's perplexity, and its ratio to that of the model it is compared with, both with their intervals."""

    perplexity: Estimate
    ratio: Estimate


def measure_loss(model: PreTrainedModel, window: Sequence[int], reference: WindowLoss | None = None) -> WindowLoss:
    """Score the tokens of one window after the first. `reference` is not needed; other measures do.

    Raises EvaluationError where the model's logits are not finite.
    """
    return loss_of(window_logits(model, window), window)


def loss_of(logits: Tensor, window: Sequence[int]) -> WindowLoss:
    """The same by a window's logits, float32 (L - 1, vocabulary), as `window_logits` has them."""
    targets = torch.tensor(window[1:], device=logits.device)
    return WindowLoss(_nll(logits, targets), len(targets), logits_digest(logits))


def compare_perplexity(losses: Sequence[WindowLoss], reference: Sequence[WindowLoss]) -> Perplexity:
    """A model's perplexity, and the ratio to the reference's on the same windows.

    Intervals are bootstrapped over windows; see `statistics.mean_per_token`. The ratio's is of paired differences in
    log-likelihood, hence far narrower than that of either perplexity.
    """
    tokens = [loss.tokens for loss in losses]
    differences = [loss.nll - other.nll for loss, other in zip(losses, reference, strict=True)]
    nll = mean_per_token([loss.nll for loss in losses], tokens)
    return Perplexity(nll.exp(), mean_per_token(differences, tokens).exp())


def window_ratios(losses: Sequence[WindowLoss], reference: Sequence[WindowLoss]) -> list[float]:
    """The ratio of the two models' perplexities on each window alone."""
    pairs = zip(losses, reference, strict=True)
    return [math.exp((loss.nll - other.nll) / loss.tokens) for loss, other in pairs]


def _nll(logits: Tensor, targets: Tensor) -> float:
    parts = zip(logits.split(_ROWS), targets.split(_ROWS), strict=True)
    return sum(float(torch.nn.functional.cross_entropy(rows.double(), ids, reduction="sum")) for rows, ids in parts)
