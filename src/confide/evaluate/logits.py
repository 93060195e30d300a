"""What a model says of the next token at each position of a window."""

import hashlib
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import EvaluationError


@torch.inference_mode()
def window_logits(model: PreTrainedModel, window: Sequence[int]) -> Tensor:
    """window: L token ids -> logits float32 (L - 1, vocabulary) for its second token to its last.

    Raises EvaluationError where one is not finite: such a model has failed, and no measure of it means anything.
    """
    return require_numbers(model(torch.tensor([window], device=model.device), use_cache=False).logits[0, :-1].float())


def require_numbers(logits: Tensor) -> Tensor:
    """The same. EvaluationError where one is not finite."""
    if not torch.isfinite(logits).all():
        raise EvaluationError(
            "The model's logits are not all finite, so it has no perplexity and no choices; check that the stock model "
            "works on this text, and use more bits where only the quantized one fails."
        )
    return logits


def logits_digest(logits: Tensor) -> str:
    """SHA-256 of every bit of the logits, in hexadecimal: equal digests mean that two runs were identical."""
    return hashlib.sha256(logits.cpu().contiguous().numpy().data).hexdigest()
