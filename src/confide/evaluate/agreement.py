"""How often two models would have chosen the same next token, and how often either foresees the text's own."""

from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import EvaluationError
from confide.evaluate.logits import logits_digest, window_logits
from confide.evaluate.statistics import Estimate, mean_per_token


class WindowChoices(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model on one window.

    agreeing: at how many positions the reference model's first choice is among this one's first k, for each k.
    correct: at how many the text's own token is. first_choices: of the reference model alone, for others to compare
    with. logits: their digest.
    """

    tokens: int
    agreeing: tuple[int, ...]
    correct: tuple[int, ...]
    logits: str
    first_choices: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Agreement:
    """For one k, as shares of the scored tokens, with their intervals.

    agreement: the reference model's first choice is among this model's first k.
    accuracy: the text's own next token is among this model's first k (the top-k accuracy).
    accuracy_change: this accuracy less the reference model's, paired.
    """

    agreement: Estimate
    accuracy: Estimate
    accuracy_change: Estimate


@dataclass(frozen=True)
class MeasureChoices:
    """Takes the first choices of a model on a window, for each k of `top_k`."""

    top_k: tuple[int, ...]

    def __call__(
        self, model: PreTrainedModel, window: Sequence[int], reference: WindowChoices | None = None
    ) -> WindowChoices:
        """Compare with the reference model's choices, or, without, be the reference.

        Raises EvaluationError where the model's logits are not finite or k is beyond its vocabulary.
        """
        logits = window_logits(model, window)
        if max(self.top_k) > logits.shape[1]:
            raise EvaluationError(f"The model has {logits.shape[1]} tokens; use a --top-k up to that.")
        ranked = logits.topk(max(self.top_k)).indices
        own = tuple(ranked[:, 0].tolist())
        wanted = own if reference is None or reference.first_choices is None else reference.first_choices
        return WindowChoices(
            tokens=len(own),
            agreeing=self._hits(ranked, wanted),
            correct=self._hits(ranked, window[1:]),
            logits=logits_digest(logits),
            first_choices=own if reference is None else None,
        )

    def _hits(self, ranked: Tensor, wanted: Sequence[int]) -> tuple[int, ...]:
        """ranked (T, largest k), wanted (T,) -> for each k, the positions whose wanted token is in the first k."""
        found = ranked == torch.tensor(wanted, device=ranked.device)[:, None]
        return tuple(int(found[:, :k].sum()) for k in self.top_k)


def compare_choices(
    choices: Sequence[WindowChoices], reference: Sequence[WindowChoices], top_k: Sequence[int]
) -> dict[int, Agreement]:
    """Agreement and accuracy for each k, on the same windows as the reference.

    Intervals are bootstrapped over windows, not Wilson's over tokens, which would be too narrow: tokens of one window
    have one context and agree or differ together. See `statistics.mean_per_token`.
    """
    tokens = [window.tokens for window in choices]
    pairs = list(zip(choices, reference, strict=True))
    return {
        k: Agreement(
            mean_per_token([window.agreeing[at] for window in choices], tokens),
            mean_per_token([window.correct[at] for window in choices], tokens),
            mean_per_token([window.correct[at] - other.correct[at] for window, other in pairs], tokens),
        )
        for at, k in enumerate(top_k)
    }


@torch.inference_mode()
def top1_agreement(model: PreTrainedModel, token_ids: list[int], prompt_tokens: int) -> float:
    """The share of generated tokens that `model`, fed the same tokens before each (teacher forcing), ranks first.

    token_ids: prompt and generated tokens; the generated ones start at `prompt_tokens`.
    """
    ids = torch.tensor([token_ids], device=model.device)
    choices = model(ids).logits[0, prompt_tokens - 1 : -1].argmax(-1)
    return float((choices == ids[0, prompt_tokens:]).double().mean())
