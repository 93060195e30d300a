"""`confide split` on checkpoints of other families than the built-in model's."""

import json
from pathlib import Path

import torch

from confide.models.clear import load_clear
from confide.models.source import open_model
from families import FAMILIES, UNLISTED, save_random

from .command import run


def test_a_falcon_with_its_head(tmp_path: Path) -> None:
    model = save_random(FAMILIES["falcon-11b"], tmp_path / "model")
    done = run("split", model, "--out", tmp_path / "out", "--protect", "all,lm_head", "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    assert summary["groups"] == 2 * 3 + 1
    ids = torch.arange(2, 14)[None]
    with torch.inference_mode():
        stock = open_model(str(model)).load_model()(ids).logits
        logits = load_clear(summary["client"], summary["server"])(ids).logits
    assert (logits - stock).square().mean().sqrt() < 0.05 * stock.std()


def test_a_tied_head_is_refused_with_the_reason(tmp_path: Path) -> None:
    model = save_random(FAMILIES["gemma"], tmp_path / "model")
    done = run("split", model, "--out", tmp_path / "out", "--protect", "lm_head")
    assert done.returncode == 1
    assert "its matrix is the input embedding's too" in " ".join(done.stderr.split())
    assert not (tmp_path / "out").exists()


def test_an_unlisted_architecture_is_split_with_a_warning(tmp_path: Path) -> None:
    model = save_random(UNLISTED, tmp_path / "model")
    done = run("split", model, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "'opt' is not among those that were tested" in " ".join(done.stderr.split())
    assert (tmp_path / "out" / "client").is_dir()
