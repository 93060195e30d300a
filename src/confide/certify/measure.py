"""A score of a loaded model on a task, with its interval. Nothing is sampled: the model only says how likely texts are.

Perplexity: e to the mean negative log-likelihood per token, of windows that do not overlap (see `evaluate.windows`).
Accuracy: the share of questions whose right choice is the likeliest, by the summed log-likelihood of its tokens after
those of the prompt, divided by a length where the task has one; of equal ones the first. Agreement: the share of a
reference's tokens that the model ranks first, fed the same tokens before each.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import repeat
from typing import Final, TypeVar

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.attest.scores import Counts, Metric, Sampling, Score
from confide.certify.tasks import Continuation, Item, Passage, Question, Task
from confide.errors import InvalidTask
from confide.evaluate.logits import window_logits
from confide.evaluate.perplexity import loss_of
from confide.evaluate.statistics import CONFIDENCE, RESAMPLES, SEED, Estimate, mean_per_token, wilson
from confide.evaluate.windows import cut_texts, start_of_text, window_context
from confide.models.context import longest_context

_BOOTSTRAP: Final = f"percentile bootstrap over {{}}, {RESAMPLES} resamples, seed {SEED}"
_Kind = TypeVar("_Kind", bound=Item)


@dataclass(frozen=True)
class Measured:
    """A score, how the model was asked, and how much was."""

    score: Score
    sampling: Sampling
    counts: Counts


@dataclass(frozen=True)
class Asked:
    """A model as a task is put to it. longest: tokens that it takes, None for any number.

    logits: of a window of L token ids, float32 (L - 1, vocabulary) for its second token to its last, all finite;
    EvaluationError where they are not.
    """

    logits: Callable[[Sequence[int]], Tensor]
    tokenizer: PreTrainedTokenizerBase
    longest: int | None

    @classmethod
    def stock(cls, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> "Asked":
        """One that transformers computes."""
        return cls(partial(window_logits, model), tokenizer, longest_context(model.config))


def measure(task: Task, model: Asked) -> Measured:
    """The score. InvalidTask where an item does not fit the model or two are needed; EvaluationError where it fails."""
    context = window_context(model.longest, task.context)
    if task.metric is Metric.PERPLEXITY:
        return _perplexity(task, model, context)
    if len(task.items) < 2:
        raise InvalidTask("One item has no interval; give two, or better a hundred.")
    if task.metric is Metric.ACCURACY:
        questions = _items(task, Question)
        right = sum(_answer(one, model, context, together=task.together) == one.answer for one in questions)
        score = _score(wilson(right, len(questions)), "Wilson's score interval for independent items")
        sampling = Sampling(_method(task, questions), context, 0)
        return Measured(score, sampling, Counts(len(questions), len(questions), "items"))
    pairs = [_agreeing(one, model, context, together=task.together) for one in _items(task, Continuation)]
    hits, tokens = [hit for hit, _ in pairs], [total for _, total in pairs]
    score = _score(mean_per_token(hits, tokens), _BOOTSTRAP.format("items"))
    sampling = Sampling("none: first choices, fed the reference's tokens", context, SEED)
    return Measured(score, sampling, Counts(len(pairs), sum(tokens), "tokens"))


def _method(task: Task, questions: Sequence[Question]) -> str:
    together = ", made into tokens together" if task.together else ""
    divided = ", divided by its length" if any(one.lengths for one in questions) else ""
    return f"none: log-likelihood of each choice after its prompt{together}{divided}"


def _perplexity(task: Task, model: Asked, context: int) -> Measured:
    windows = cut_texts([one.text for one in _items(task, Passage)], model.tokenizer, context)
    losses = [loss_of(model.logits(window), window) for window in windows.ids]
    mean = mean_per_token([loss.nll for loss in losses], [loss.tokens for loss in losses])
    score = _score(mean.exp(), _BOOTSTRAP.format("windows"))
    sampling = Sampling("none: log-likelihood of each token after those before it", context, SEED)
    return Measured(score, sampling, Counts(len(task.items), windows.scored_tokens, "tokens"))


def _answer(question: Question, model: Asked, context: int, *, together: bool) -> int:
    likely = []
    for choice, length in zip(question.choices, question.lengths or repeat(1), strict=False):
        ids, scored = encode_pair(question.prompt, choice, model.tokenizer, context, together=together)
        logits = model.logits(ids)[-scored:].double()
        targets = torch.tensor(ids[-scored:], device=logits.device)
        likely.append(-float(torch.nn.functional.cross_entropy(logits, targets, reduction="sum")) / length)
    return likely.index(max(likely))


def _agreeing(pair: Continuation, model: Asked, context: int, *, together: bool) -> tuple[int, int]:
    """How many tokens of the reference the model ranks first, and of how many."""
    ids, scored = encode_pair(pair.prompt, pair.reference, model.tokenizer, context, together=together)
    first = model.logits(ids)[-scored:].argmax(-1)
    return int((first == torch.tensor(ids[-scored:], device=first.device)).sum()), scored


def encode_pair(
    prompt: str, rest: str, tokenizer: PreTrainedTokenizerBase, context: int, *, together: bool
) -> tuple[Sequence[int], int]:
    """The tokens of both, and how many are scored. Each is made for itself, or both `together` and then divided.

    Then, as lm-eval has it, spaces at the prompt's end belong to what follows, and what is scored is all tokens of the
    whole after as many as the prompt has by itself.
    """
    if together:
        kept = prompt.rstrip()
        before = _tokens(kept, tokenizer)
        ids = _tokens(prompt + rest, tokenizer)
        scored = len(ids) - len(before)
    else:
        before, after = _tokens(prompt, tokenizer), _tokens(rest, tokenizer)
        ids, scored = [*before, *after], len(after)
    ids = [*start_of_text(tokenizer), *ids]
    if not 0 < scored < len(ids) or len(ids) > context:
        raise InvalidTask(
            f"An item of the task has no tokens, or with its prompt more than the {context} of a window; change it, or "
            "give a larger context."
        )
    return ids, scored


def _tokens(text: str, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _items(task: Task, kind: type[_Kind]) -> list[_Kind]:
    return [item for item in task.items if isinstance(item, kind)]


def _score(found: Estimate, interval: str) -> Score:
    """To six digits: more say nothing, and would be room for something else to leave with them."""
    value, low, high = (float(f"{number:.6g}") for number in (found.value, found.low, found.high))
    return Score(value, low, high, CONFIDENCE, interval)
