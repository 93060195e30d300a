"""Task files: what they may say, and that errors say nothing of what is in them."""

import hashlib
import json
from typing import Any

import pytest

from confide.attest.scores import Metric
from confide.certify.tasks import TASK_FILE, Continuation, Passage, Question, read_task
from confide.errors import InvalidTask

HEADERS = {metric: {"confide-task": 1, "name": "a book", "metric": metric} for metric in Metric}
ITEMS: dict[Metric, dict[str, Any]] = {
    Metric.PERPLEXITY: {"text": "SECRET words"},
    Metric.ACCURACY: {"prompt": "SECRET", "choices": ["a", "b"], "answer": 1},
    Metric.AGREEMENT: {"prompt": "SECRET", "reference": "words"},
}


def task_file(*lines: dict[str, Any]) -> bytes:
    return b"\n".join(json.dumps(line).encode() for line in lines)


def test_each_metric_has_its_items() -> None:
    kinds = {Metric.PERPLEXITY: Passage, Metric.ACCURACY: Question, Metric.AGREEMENT: Continuation}
    for metric, kind in kinds.items():
        content = task_file({**HEADERS[metric], "context": 64}, ITEMS[metric], ITEMS[metric]) + b"\n\n"
        task = read_task(content)
        assert (task.name, task.metric, task.context, len(task.items)) == ("a book", metric, 64, 2)
        assert {type(item) for item in task.items} == {kind}
        assert task.digest == hashlib.sha256(content).hexdigest()
        for other in Metric:
            if other is not metric:
                with pytest.raises(InvalidTask, match="Line 2"):
                    read_task(task_file(HEADERS[metric], ITEMS[other]))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"\xff",
        b"[" * 100_000,
        task_file(ITEMS[Metric.PERPLEXITY]),
        task_file(HEADERS[Metric.PERPLEXITY]),
        task_file({**HEADERS[Metric.PERPLEXITY], "confide-task": 2}, ITEMS[Metric.PERPLEXITY]),
        task_file({**HEADERS[Metric.PERPLEXITY], "name": "<b>"}, ITEMS[Metric.PERPLEXITY]),
        task_file({**HEADERS[Metric.PERPLEXITY], "context": 1}, ITEMS[Metric.PERPLEXITY]),
        task_file({**HEADERS[Metric.PERPLEXITY], "SECRET": 1}, ITEMS[Metric.PERPLEXITY]),
        task_file(HEADERS[Metric.PERPLEXITY], {"text": ""}),
        task_file(HEADERS[Metric.PERPLEXITY], {"text": "SECRET", "SECRET": 1}),
        task_file(HEADERS[Metric.PERPLEXITY], ITEMS[Metric.PERPLEXITY]) + b"\n" + b"[" * 100_000,
        task_file(HEADERS[Metric.ACCURACY], {**ITEMS[Metric.ACCURACY], "answer": 2}),
        task_file(HEADERS[Metric.ACCURACY], {**ITEMS[Metric.ACCURACY], "answer": -1}),
        task_file(HEADERS[Metric.ACCURACY], {**ITEMS[Metric.ACCURACY], "choices": ["SECRET"]}),
        b"\n" * (TASK_FILE.most_entries + 2),
        b" " * (TASK_FILE.most_bytes + 1),
    ],
    ids=range(18),
)
def test_what_is_no_task_is_refused_without_a_word_of_it(content: bytes) -> None:
    with pytest.raises(InvalidTask) as caught:
        read_task(content)
    assert "SECRET" not in str(caught.value)
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
