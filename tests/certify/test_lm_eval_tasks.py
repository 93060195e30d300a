"""Tasks of lm-eval as task files: what lm-eval said, what made it, and nothing done on the way.

lm-eval is no dependency, so its interface (version 0.4.13: TaskManager, Task, Instance) is imitated here; where it is
installed, the last test holds what is measured against its own evaluator.
"""

import hashlib
import importlib.metadata
import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import pytest
from tests.certify.test_measure import Letters, model  # noqa: F401 - a fixture

from confide.attest.scores import Metric
from confide.certify import lm_eval_tasks
from confide.certify.lm_eval_tasks import prepare_here, prepare_task
from confide.certify.measure import Asked, encode_pair, measure
from confide.certify.tasks import Question, Task, read_task
from confide.errors import InvalidTask
from confide.evaluate.statistics import wilson
from confide.models.source import open_model

DOCUMENTS = [
    {"question": "miaow?", "choices": ["cat", "stone"], "label": 0},
    {"question": "woof?", "choices": ["sky", "dog"], "label": 1},
]


def shout(text: str) -> str:
    return text.upper()


class FakeTask:
    """A multiple-choice task, whose prompts, choices and results are lm-eval's business."""

    OUTPUT_TYPE = "multiple_choice"
    documents = DOCUMENTS
    metrics = ("acc", "acc_norm")
    config: ClassVar[dict[str, Any]] = {"task": "pets", "dataset_kwargs": {"data_files": "a"}, "process_docs": shout}
    seed = 0
    prompts_differ = False
    everything_is_right = False

    def set_fewshot_seed(self, seed: int) -> None:
        type(self).seed = seed

    def build_all_requests(self) -> None:
        self.instances = [
            SimpleNamespace(doc_id=number, doc=document, args=(self._prompt(document, choice), f" {choice}"))
            for number, document in enumerate(self.documents)
            for choice in document["choices"]
        ]

    def _prompt(self, document: dict[str, Any], choice: str) -> str:
        return f"Q: {document['question']}\nA: {choice}" if self.prompts_differ else f"Q: {document['question']}\nA:"

    def doc_to_choice(self, document: dict[str, Any]) -> list[str]:
        return list(document["choices"])

    def process_results(self, document: dict[str, Any], results: list[tuple[float, bool]]) -> dict[str, float]:
        likelihoods = [likelihood for likelihood, _ in results]
        hit = self.everything_is_right or likelihoods.index(max(likelihoods)) == document["label"]
        return dict.fromkeys(self.metrics, float(hit))

    def dump_config(self) -> dict[str, Any]:
        return dict(self.config)


class FakeManager:
    """What lm-eval finds tasks with."""

    tasks: ClassVar[dict[str, FakeTask]] = {}

    def __init__(self, include_path: str | None, include_defaults: bool) -> None:
        assert include_defaults is (include_path is None)
        self.all_subtasks = sorted(self.tasks)

    def load(self, names: list[str]) -> dict[str, dict[str, FakeTask]]:
        return {"tasks": {name: self.tasks[name] for name in names}}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> type[FakeTask]:
    """The class of its only task, `pets`, to be changed."""
    made: type[FakeTask] = type("Changed", (FakeTask,), {})
    module = ModuleType("lm_eval.tasks")
    module.TaskManager = type("Manager", (FakeManager,), {"tasks": {"pets": made()}})  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "lm_eval", ModuleType("lm_eval"))
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", module)
    monkeypatch.setattr(importlib.metadata, "version", {"lm_eval": "0.4.13"}.__getitem__)
    monkeypatch.setattr(lm_eval_tasks, "ask_confined", prepare_here)  # in this process
    return made


def test_a_task_file_has_lm_eval_s_items_and_says_what_made_them(fake: type[FakeTask]) -> None:
    content = prepare_task("lm-eval:pets:acc_norm")
    task = read_task(content)
    assert task.items == (
        Question("Q: miaow?\nA:", (" cat", " stone"), 0, (3, 5)),
        Question("Q: woof?\nA:", (" sky", " dog"), 1, (3, 3)),
    )
    assert (task.name, task.metric, task.together, fake.seed) == ("pets", Metric.ACCURACY, True, 1234)
    prepared = task.prepared
    assert prepared is not None
    assert (prepared.harness, prepared.version, prepared.task, prepared.measure) == (
        "lm-eval", "0.4.13", "pets", "acc_norm",
    )  # fmt: skip
    lines = "".join(json.dumps(one, sort_keys=True) + "\n" for one in DOCUMENTS)
    assert prepared.data == hashlib.sha256(lines.encode()).hexdigest()
    config = {"task": "pets", "process_docs": "def shout(text: str) -> str:\n    return text.upper()\n"}
    assert prepared.config == hashlib.sha256((json.dumps(config, sort_keys=True) + "\n").encode()).hexdigest()

    assert prepare_task("lm-eval:pets:acc_norm") == content
    plain = read_task(prepare_task("lm-eval:pets"))
    assert [item.lengths for item in plain.items if isinstance(item, Question)] == [(), ()]
    assert plain.prepared is not None
    assert (plain.prepared.measure, plain.prepared.data) == ("acc", prepared.data)


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("documents", [DOCUMENTS[0], {**DOCUMENTS[1], "label": 0}]),
        ("documents", [{**DOCUMENTS[0], "note": "more"}, DOCUMENTS[1]]),
        ("config", {**FakeTask.config, "num_fewshot": 3}),
    ],
    ids=["answer", "document", "configuration"],
)
def test_other_data_or_another_configuration_is_another_task(fake: type[FakeTask], change: str, value: Any) -> None:
    before = prepare_task("lm-eval:pets")
    setattr(fake, change, value)
    assert prepare_task("lm-eval:pets") != before


@pytest.mark.parametrize(
    ("change", "value", "says"),
    [
        ("OUTPUT_TYPE", "generate_until", "multiple_choice"),
        ("prompts_differ", True, "in its prompts"),
        ("metrics", ("f1",), "not one right choice"),
        ("everything_is_right", True, "not one right choice"),
        ("documents", [{**DOCUMENTS[0], "label": 7}], "not one right choice"),
        ("documents", [{**DOCUMENTS[0], "picture": b"bytes"}], "no text"),
    ],
    ids=["kind", "prompts", "measure", "several", "answer", "picture"],
)
def test_what_is_not_measured_is_said(fake: type[FakeTask], change: str, value: Any, says: str) -> None:
    setattr(fake, change, value)
    with pytest.raises(InvalidTask, match=says):
        prepare_task("lm-eval:pets")


@pytest.mark.parametrize("name", ["cats", "", "pets:f1", "../pets", "pets\x1b[2J", "a" * 81], ids=range(6))
def test_other_names_are_none(fake: type[FakeTask], name: str) -> None:
    with pytest.raises(InvalidTask, match="is no") as caught:
        prepare_task(f"lm-eval:{name}")
    assert "\x1b" not in str(caught.value)


_SLY = """
import os, socket, tempfile
from pathlib import Path
from types import SimpleNamespace

def tried(what):
    try:
        what()
    except PermissionError:
        return "refused"
    return "done"

class Task:
    OUTPUT_TYPE = "multiple_choice"
    def set_fewshot_seed(self, seed):
        print("said aloud")
    def build_all_requests(self):
        outside = Path({outside!r})
        said = [
            tried(lambda: (outside / "new").write_text("x")),
            tried(lambda: os.truncate(outside / "old", 0)),
            tried(lambda: (outside / "old").rename(outside / "other")),
            tried(lambda: (outside / "old").unlink()),
            tried(lambda: os.symlink("/", outside / "link")),
            tried(lambda: open(f"/proc/{{os.getppid()}}/mem", "rb").close()),
            tried(lambda: socket.create_connection(("127.0.0.1", 9))),
            tried(lambda: Path(tempfile.gettempdir(), "own").write_text("x")),
            "known" if (outside / "old").read_text() == "kept" else "unknown",
            os.environ["HF_HUB_OFFLINE"] + os.environ["HF_DATASETS_OFFLINE"],
        ]
        self.instances = [SimpleNamespace(doc_id=0, doc={{}}, args=(" ".join(said), one)) for one in "ab"]
    def doc_to_choice(self, document):
        return ["a", "b"]
    def process_results(self, document, results):
        return {{"acc": float(results[0][0] > results[1][0])}}
    def dump_config(self):
        return {{}}

class TaskManager:
    all_subtasks = ["pets"]
    def __init__(self, include_path, include_defaults):
        pass
    def load(self, names):
        return {{"tasks": {{"pets": Task()}}}}
"""


def test_what_a_task_brings_changes_nothing_and_reaches_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    outside, site = tmp_path / "outside", tmp_path / "site"
    (site / "lm_eval").mkdir(parents=True)
    (site / "lm_eval-0.4.13.dist-info").mkdir()
    (site / "lm_eval-0.4.13.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: lm_eval\nVersion: 0.4.13")
    (site / "lm_eval" / "__init__.py").touch()
    (site / "lm_eval" / "tasks.py").write_text(_SLY.format(outside=str(outside)))
    outside.mkdir()
    (outside / "old").write_text("kept")
    monkeypatch.syspath_prepend(site)
    (item,) = read_task(prepare_task("lm-eval:pets")).items
    assert isinstance(item, Question)
    assert item.prompt.split() == ["refused"] * 7 + ["done", "known", "11"]
    assert [(one.name, one.read_text()) for one in outside.iterdir()] == [("old", "kept")]
    assert "aloud" not in "".join(capfd.readouterr())


def test_lm_eval_that_is_not_there_or_fails_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lm_eval").mkdir()
    (tmp_path / "lm_eval" / "__init__.py").write_text("raise ModuleNotFoundError(name='datasets.load')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidTask, match="needs datasets, which is not installed"):
        prepare_task("lm-eval:pets")
    with pytest.raises(InvalidTask, match="no folder of tasks"):
        prepare_task("lm-eval:pets", tmp_path / "missing")


@pytest.mark.parametrize(
    "said", [b"", b"\xc1", b"\x81\xa6reason\xa9\x1b[2J nop!"], ids=["nothing", "noise", "controls"]
)
def test_what_that_process_says_is_a_stranger_s_word(said: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        def __init__(self, **_: Any) -> None: ...

        start = kill = join = __init__

    pipe = SimpleNamespace(poll=lambda _: bool(said), recv_bytes=lambda _: said, close=lambda: None)
    context = SimpleNamespace(Pipe=lambda: (pipe, pipe), Process=Process)
    monkeypatch.setattr(lm_eval_tasks.multiprocessing, "get_context", lambda _: context)
    with pytest.raises(InvalidTask) as caught:
        prepare_task("lm-eval:pets")
    assert "\x1b" not in str(caught.value)


# -- measured as lm-eval does ------------------------------------------------------------------------------------------


def test_a_longer_choice_is_divided_by_its_length(model: Any) -> None:  # noqa: F811
    """By the sum alone "b" would win; of the two means "bcd" has the better one."""
    asked = Asked.stock(model, Letters())  # type: ignore[arg-type]
    items = (Question("a", ("bcdefg", "b"), 0), Question("a", ("bcdefg", "b"), 0, (60, 1)))
    summed, divided = (
        measure(Task("letters", Metric.ACCURACY, None, (one, one), "00" * 32, together=True), asked) for one in items
    )
    assert (summed.score.value, divided.score.value) == (0, 1)
    assert divided.score.low == float(f"{wilson(2, 2).low:.6g}")
    assert divided.sampling.method.endswith("its prompt, made into tokens together, divided by its length")


def _pairs(*parts: str) -> list[int]:
    return [sum(map(ord, part)) % 29 + 1 for part in parts]


class Pairs(Letters):
    """A token for each pair of letters from the left, so that the same letters are other tokens elsewhere."""

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": _pairs(*(text[place : place + 2] for place in range(0, len(text), 2)))}


@pytest.mark.parametrize(
    ("prompt", "together", "tokens", "scored"),
    [
        ("abc", False, ("ab", "c", "de"), 1),
        ("abc", True, ("ab", "cd", "e"), 1),
        ("ab ", False, ("ab", " ", "de"), 1),
        ("ab ", True, ("ab", " d", "e"), 2),
    ],
    ids=range(4),
)
def test_prompt_and_choice_are_made_into_tokens_together(
    prompt: str, together: bool, tokens: tuple[str, ...], scored: int
) -> None:
    """What is scored is all after as many tokens as the prompt has by itself, and spaces go with what follows."""
    assert encode_pair(prompt, "de", Pairs(), 8, together=together) == (_pairs(*tokens), scored)  # type: ignore[arg-type]
    if together:
        with pytest.raises(InvalidTask, match="no tokens"):
            encode_pair("abc", "", Pairs(), 8, together=True)  # type: ignore[arg-type]


_PETS = """
task: pets
dataset_path: json
dataset_kwargs: {{data_files: {{test: {0}/test.jsonl, train: {0}/train.jsonl}}}}
test_split: test
fewshot_split: train
num_fewshot: 1
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}, {{metric: acc_norm}}]
"""


@pytest.mark.slow
def test_it_comes_to_what_lm_eval_comes_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where lm-eval is installed: its task, its evaluator and its model class, over the demo model."""
    pytest.importorskip("lm_eval")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    words = (Path(__file__).parents[2] / "docs" / "certify.md").read_text().split()
    starts = range(0, 320, 8)
    lines = [
        {
            "question": " ".join(words[start : start + 4]),
            "choices": [" ".join(words[start + 4 : start + 5 + start % 3]), words[-start - 1], words[-start - 9]],
            "label": 0,
        }
        for start in starts
    ]
    for name in ("test", "train"):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    (tmp_path / "pets.yaml").write_text(_PETS.format(tmp_path))
    source = open_model("demo")
    stock, tokenizer = source.load_model().float().eval(), source.load_tokenizer()
    found = simple_evaluate(
        HFLM(pretrained=stock, tokenizer=tokenizer, batch_size=1, device="cpu"),
        tasks=["pets"],
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
    )
    theirs = found["results"]["pets"]
    for name in ("acc", "acc_norm"):
        task = read_task(prepare_task(f"lm-eval:pets:{name}", tmp_path))
        ours = measure(task, Asked.stock(stock, tokenizer)).score
        assert 0 < ours.value < 1
        assert ours.value == pytest.approx(theirs[f"{name},none"], abs=1e-6)
