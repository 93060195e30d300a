"""Task files: what a model is measured on, as JSON Lines of one header and then one item to a line.

The header says the task's name and its metric, `{"confide-task": 1, "name": "book", "metric": "perplexity"}`, and may
give the `context`, in tokens, that texts are cut into. Items are `{"text": ...}` for perplexity; `{"prompt": ...,
"choices": [...], "answer": 0}` for accuracy; `{"prompt": ..., "reference": ...}` for agreement, where the reference is
what another model went on with, greedily. A dataset is known by the SHA-256 of such a file, bytes as they are. Errors
name lines and never what is in them: the file may be somebody's secret.
"""

import hashlib
from dataclasses import dataclass
from typing import Annotated, Final, Literal, TypeVar

import msgspec

from confide.attest.certificates import DatasetName
from confide.attest.scores import Metric
from confide.errors import InvalidTask

MAX_TASK_BYTES: Final = 64 << 20
MAX_ITEMS: Final = 100_000
_MOST_CHOICES: Final = 64

_Words = Annotated[str, msgspec.Meta(min_length=1)]
_Line = TypeVar("_Line", bound=msgspec.Struct)


class _Header(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    format: Literal[1] = msgspec.field(name="confide-task")
    name: DatasetName
    metric: Metric
    context: Annotated[int, msgspec.Meta(ge=2, le=1 << 20)] | None = None


class Passage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A text to be foreseen."""

    text: _Words


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Ways to go on with a prompt, of which one is right. answer: its place, from 0."""

    prompt: _Words
    choices: Annotated[tuple[_Words, ...], msgspec.Meta(min_length=2, max_length=_MOST_CHOICES)]
    answer: Annotated[int, msgspec.Meta(ge=0, lt=_MOST_CHOICES)]


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
    """A task as its file has it. context: tokens of a window; None for the model's own. digest: of the file."""

    name: str
    metric: Metric
    context: int | None
    items: tuple[Item, ...]
    digest: str


def read_task(content: bytes) -> Task:
    """A task from a file's bytes. InvalidTask for anything else."""
    if len(content) > MAX_TASK_BYTES or content.count(b"\n") > MAX_ITEMS + 1:
        raise InvalidTask(
            f"A task file has at most {MAX_TASK_BYTES >> 20} MiB and {MAX_ITEMS:,} items; divide it into several."
        )
    first, *rest = content.split(b"\n")
    header = _decode(first, 1, _Header)
    kind = _ITEMS[header.metric]
    items = tuple(_decode(line, number, kind) for number, line in enumerate(rest, start=2) if line.strip())
    if not items:
        raise InvalidTask("The task file has no items; put one on each line after the first.")
    for number, item in enumerate(items, start=1):
        if isinstance(item, Question) and item.answer >= len(item.choices):
            raise InvalidTask(f"The answer of item {number} of the task is none of its choices; count them from 0.")
    return Task(header.name, header.metric, header.context, items, hashlib.sha256(content).hexdigest())


def _decode(line: bytes, number: int, kind: type[_Line]) -> _Line:
    try:
        return msgspec.json.decode(line, type=kind)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        what = "the header" if kind is _Header else "an item of the header's metric"
        raise InvalidTask(f"Line {number} of the task file is not {what}; docs/certify.md shows them.") from None
