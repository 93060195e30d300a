"""Variants measured as Ray tasks: the same results as here, gone on with where a run was stopped. Slow, as Ray is."""

import json
import pickle
import subprocess
import sys
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
