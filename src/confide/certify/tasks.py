"""Task files: what a model is measured on, as JSON Lines of one header and then one item to a line.

The header says the task's name and its metric, `{"confide-task": 1, "name": "book", "metric": "perplexity"}`, and may
give the `context`, in tokens, that texts are cut into. Items are `{"text": ...}` for perplexity; `{"prompt": ...,
"choices": [...], "answer": 0}` for accuracy; `{"prompt": ..., "reference": ...}` for agreement, where the reference is
what another model went on with, greedily. See `dataset_file` for the form, and `lm_eval_tasks` for files that another
harness prepared.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal

import msgspec

from confide.attest.certificates import DatasetName
from confide.attest.scores import Metric, Prepared
from confide.certify.dataset_file import Form
from confide.errors import InvalidTask

TASK_FILE: Final = Form(
    "task file", "an item of the header's metric", "items", "docs/certify.md", 64 << 20, 100_000, InvalidTask
)
_MOST_CHOICES: Final = 64

Tokens = Literal["apart", "together"]
_Words = Annotated[str, msgspec.Meta(min_length=1)]


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1] = msgspec.field(name="confide-task")
    name: DatasetName
    metric: Metric
    context: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] | None = None
    tokens: Tokens = "apart"
    prepared: Prepared | None = None


class Passage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to be foreseen."""

    text: _Words


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ways to go on with a prompt, of which one is right. answer: its place, from 0.

    lengths: what the log-likelihood of each is divided by, nothing without.
    """

    prompt: _Words
    choices: Annotated[tuple[_Words, ...], msgspec.Meta(min_length=2, max_length=_MOST_CHOICES)]
    answer: Annotated[int, msgspec.Meta(ge=0, lt=_MOST_CHOICES)]
    lengths: tuple[Annotated[int, msgspec.Meta(ge=1, le=1 << 30)], ...] = ()


class Continuation(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How a reference model went on with a prompt."""

    prompt: _Words
    reference: _Words


Item = Passage | Question | Continuation
_ITEMS: Final[dict[Metric, type[Item]]] = {
    Metric.PERPLEXITY: Passage,
    Metric.ACCURACY: Question,
    Metric.AGREEMENT: Continuation,
}


@dataclass(frozen=True)
class Task:
    """A task as its file has it. context: tokens of a window; None for the model's own. digest: of the file.

    together: whether a prompt and what follows are made into tokens as one text. prepared: what made the items, if no
    person did.
    """

    name: str
    metric: Metric
    context: int | None
    items: tuple[Item, ...]
    digest: str
    together: bool = False
    prepared: Prepared | None = None


def read_task(content: bytes) -> Task:
    """A task from a file's bytes. InvalidTask for anything else."""
    header, items = TASK_FILE.read(content, _Header, lambda said: _ITEMS[said.metric])
    for number, item in enumerate(items, start=1):
        if isinstance(item, Question) and item.answer >= len(item.choices):
            raise InvalidTask(f"The answer of item {number} of the task is none of its choices; count them from 0.")
        if isinstance(item, Question) and len(item.lengths) not in (0, len(item.choices)):
            raise InvalidTask(f"Item {number} of the task has not as many lengths as choices; give each choice one.")
    digest, together = hashlib.sha256(content).hexdigest(), header.tokens == "together"
    return Task(header.name, header.metric, header.context, items, digest, together, header.prepared)
