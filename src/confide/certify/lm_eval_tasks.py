"""Tasks of lm-eval (EleutherAI's lm-evaluation-harness, where it is installed) as task files.

lm-eval makes the prompts, few-shot examples and choices of its multiple-choice tasks and says which choice is right;
the file has them as items, with lm-eval's version and digests of the task's configuration and documents in its header.
Confide measures them as lm-eval does: `acc`, or `acc_norm`, which divides by the characters of a choice.

A task's configuration is code, and may come from anybody. So it runs in a process of its own that opens no connection,
changes no file but in a folder that goes with it, and says nothing but the items, which are bounded and typed.
"""

import hashlib
import importlib.metadata
import inspect
import itertools
import json
import multiprocessing
import os
import random
import re
import signal
import tempfile
from collections.abc import Iterable
from enum import StrEnum
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Annotated, Any, Final

import msgspec

from confide.attest.scores import Metric, Prepared
from confide.certify.tasks import TASK_FILE, Question, read_task
from confide.enclave.confinement import confine
from confide.enclave.egress import close_egress
from confide.errors import ConfideError, InvalidTask
from confide.printable import printable

PREFIX: Final = "lm-eval:"
SECONDS: Final = 600.0
_NAME: Final = re.compile(r"(?P<task>[A-Za-z0-9][A-Za-z0-9._/+\-]{0,79})(?::(?P<measure>acc|acc_norm))?")
_OFFLINE: Final = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HUB_DISABLE_TELEMETRY": "1"}
_WHERE: Final = frozenset(("dataset_path", "dataset_name", "dataset_kwargs"))
"""Where documents come from, which is another place on another machine; what they are has a digest of its own."""
_SEED: Final = 1234
"""Of few-shot examples, as lm-eval has it where nobody says another."""
_CAME_TO_GRIEF: Final = "lm-eval came to grief over the task; see whether it runs with `lm_eval --tasks` itself."


class Measure(StrEnum):
    """lm-eval's names of what is scored: hits of the likeliest choice, as it is or divided by its characters."""

    PLAIN = "acc"
    NORMALIZED = "acc_norm"


class Answer(msgspec.Struct, forbid_unknown_fields=True):
    """Items and what made them; or without the second, why there are none."""

    items: Annotated[list[Question], msgspec.Meta(max_length=TASK_FILE.most_entries)] = []
    prepared: Prepared | None = None
    reason: Annotated[str, msgspec.Meta(max_length=1000)] = ""


def prepare_task(spec: str, folder: Path | None = None) -> bytes:
    """The task file of `lm-eval:NAME`, or `lm-eval:NAME:acc_norm`. folder: of tasks in YAML instead of lm-eval's own.

    It is the same for the same lm-eval, configuration and documents. InvalidTask for a name that is none, for tasks of
    other kinds, and where lm-eval is not installed, fails, or cannot be confined.
    """
    found = _NAME.fullmatch(spec.removeprefix(PREFIX))
    if found is None:
        raise InvalidTask(f"{printable(spec)[:100]} is no task; give lm-eval:NAME, or lm-eval:NAME:acc_norm.")
    task, measure = found["task"], Measure(found["measure"] or "acc")
    if folder is not None and not folder.is_dir():
        raise InvalidTask(f"{folder} is no folder of tasks; name the one with their YAML files.")
    answer = ask_confined(task, measure, folder)
    header = {
        "confide-task": 1,
        "name": task,
        "metric": Metric.ACCURACY,
        "tokens": "together",
        "prepared": answer.prepared,
    }
    content = b"\n".join(map(msgspec.json.encode, (header, *answer.items))) + b"\n"
    read_task(content)
    return content


def ask_confined(task: str, measure: Measure, folder: Path | None) -> Answer:
    """What a process of its own says of a task. InvalidTask where it says nothing, or why it has none."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    with tempfile.TemporaryDirectory(prefix="confide-lm-eval-") as own:
        process = context.Process(target=_work, args=(theirs, task, measure, folder, Path(own)), daemon=True)
        process.start()
        theirs.close()
        try:
            said = ours.recv_bytes(TASK_FILE.most_bytes) if ours.poll(SECONDS) else b""
            answer = msgspec.msgpack.decode(said, type=Answer)
        except (OSError, EOFError, msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidTask(_CAME_TO_GRIEF) from None
        finally:
            ours.close()
            process.kill()
            process.join()
    if answer.prepared is None:
        raise InvalidTask(printable(answer.reason) or _CAME_TO_GRIEF)
    return answer


# -- in that process ---------------------------------------------------------------------------------------------------


def _work(pipe: Connection, task: str, measure: Measure, folder: Path | None, own: Path) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    try:
        confine(own)
        close_egress(keys=None, upstream=None)
        os.environ.update(_OFFLINE, **dict.fromkeys(("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR"), str(own)))
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        answer = prepare_here(task, measure, folder)
    except ConfideError as error:
        answer = Answer(reason=str(error))
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        answer = Answer(reason=f"This needs {missing}, which is not installed; run `pip install lm-eval`.")
    except Exception as error:  # noqa: BLE001 - lm-eval, and what a task brings, raises what it stumbles over
        answer = Answer(reason=f"{_CAME_TO_GRIEF} ({type(error).__name__}: {error})"[:1000])
    pipe.send_bytes(msgspec.msgpack.encode(answer))


def prepare_here(name: str, measure: Measure, folder: Path | None) -> Answer:
    """The items of a task, by lm-eval in this process. InvalidTask for other kinds, and whatever lm-eval raises."""
    import numpy
    from lm_eval.tasks import TaskManager

    random.seed(0)  # as lm-eval's evaluator does
    numpy.random.seed(_SEED)
    known = TaskManager(include_path=None if folder is None else str(folder), include_defaults=folder is None)
    if name not in known.all_subtasks:
        raise InvalidTask(f"{name} is no single task of {folder or 'lm-eval'}; see `lm_eval --tasks list`.")
    (task,) = known.load([name])["tasks"].values()
    if task.OUTPUT_TYPE != "multiple_choice":
        raise InvalidTask(f"{name} is a task of the kind {task.OUTPUT_TYPE}; only multiple_choice is measured.")
    task.set_fewshot_seed(seed=_SEED)
    task.build_all_requests()
    documents, items = [], []
    for _, grouped in itertools.groupby(task.instances, key=lambda one: one.doc_id):
        instances = list(grouped)
        documents.append(instances[0].doc)
        items.append(_question(task, measure, instances))
    config = {key: value for key, value in task.dump_config().items() if key not in _WHERE}
    version = importlib.metadata.version("lm_eval")
    return Answer(items, Prepared("lm-eval", version, name, measure, _digest([config]), _digest(documents)))


def _question(task: Any, measure: Measure, instances: list[Any]) -> Question:
    """An item of a task, which is asked itself which choice is right: the one that scores where it is the likeliest."""
    document, (prompts, choices) = instances[0].doc, zip(*(one.args for one in instances), strict=True)
    if len(set(prompts)) != 1 or len(choices) != len(task.doc_to_choice(document)):
        raise InvalidTask("The task has choices in its prompts, or asks for more than the choices; it is not measured.")
    right = []
    for place in range(len(choices)):
        likelihoods = [(0.0 if place == other else -1e9, False) for other in range(len(choices))]
        if task.process_results(document, likelihoods).get(measure) == 1:
            right.append(place)
    if len(right) != 1:
        raise InvalidTask(f"An item of the task has not one right choice by {measure}, but {len(right)}.")
    lengths = tuple(map(len, task.doc_to_choice(document))) if measure is Measure.NORMALIZED else ()
    return msgspec.convert({"prompt": prompts[0], "choices": choices, "answer": right[0], "lengths": lengths}, Question)


def _digest(values: Iterable[Any]) -> str:
    """SHA-256 over a line of JSON for each, its keys in order. Functions are their source."""
    digest = hashlib.sha256()
    for value in values:
        digest.update(json.dumps(value, sort_keys=True, default=_source).encode() + b"\n")
    return digest.hexdigest()


def _source(value: object) -> str:
    if callable(value):
        return inspect.getsource(value)
    raise InvalidTask(f"The task holds a {type(value).__name__}, which is no text; it is not measured.")
