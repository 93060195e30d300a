"""Variants measured as Ray tasks: the same results as here, gone on with where a run was stopped. Slow, as Ray is."""

import json
import os
import pickle
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.evaluate.variants import swept_variants
from confide.models.precision import Recipe
from confide.models.source import open_model

CONFIDE = Path(sys.executable).with_name("confide")
RAY = Path(sys.executable).with_name("ray")
TEXT = "The tide rises twice a day, and the moon pulls it. " * 60


@pytest.mark.parametrize("calibrated", [False, True])
def test_what_is_sent_to_a_task_loads_the_same_model(calibrated: bool) -> None:
    source = open_model("demo")
    tokenizer = source.load_tokenizer()
    assert tokenizer is not None
    texts = [torch.tensor([tokenizer.encode(TEXT)[:128]])] if calibrated else []
    _, swept = swept_variants(source, "attention", {4: Recipe.parse(["4"], [])}, texts)
    sent = pickle.loads(pickle.dumps(swept[4]))  # noqa: S301 - our own
    ids = torch.tensor([[1, 2, 3, 4]])
    with torch.no_grad():
        assert torch.equal(sent.load()(ids).logits, swept[4].load()(ids).logits)


@pytest.fixture
def ray(tmp_path: Path) -> Iterator[tuple[str, dict[str, str]]]:
    """A cluster of one machine, as an operator starts it, and an environment that reaches it."""
    folder = Path("/tmp") / f"ray-tasks-{os.getpid()}"  # noqa: S108 - sockets lie in it
    environment = os.environ | {
        "RAY_TMPDIR": str(folder),
        "CONFIDE_HOME": str(tmp_path / "home"),
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": "0" * 64,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    folder.mkdir()
    start = ["start", "--head", "--port", "0", "--include-dashboard", "false", "--num-cpus", "2"]
    subprocess.run([str(RAY), *start], env=environment, check=True, capture_output=True, timeout=600)
    try:
        yield "auto", environment
    finally:
        subprocess.run([str(RAY), "stop", "--force"], env=environment, check=False, capture_output=True, timeout=600)
        shutil.rmtree(folder, ignore_errors=True)


@pytest.mark.slow
def test_a_sweep_gives_the_same_on_a_cluster_and_goes_on_where_it_was(
    ray: tuple[str, dict[str, str]], tmp_path: Path
) -> None:
    address, environment = ray
    (tmp_path / "text.txt").write_text(TEXT)
    sizes = ("--sweep-bits", "3:5", "--context", "64", "--windows", "4", "--protect", "attention")

    def measured(out: str, *more: str) -> Any:
        command = [str(CONFIDE), "evaluate", "agreement", "demo", str(tmp_path / "text.txt"), *sizes, *more]
        command += ["--out", str(tmp_path / out), "--json"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return json.loads(done.stdout)["models"]

    here = measured("here")
    there = measured("there", "--ray", address)
    assert here == there
    kept = next((tmp_path / "there").glob("*.jsonl"))
    lines = kept.read_text().splitlines(keepends=True)
    kept.write_text("".join(lines[: len(lines) // 2]))
    assert measured("there", "--ray", address) == here
    assert sorted(kept.read_text().splitlines()) == sorted(line.rstrip("\n") for line in lines)
