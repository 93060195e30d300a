"""Results belong to a model by its content, not by its name."""

import shutil
from pathlib import Path

import pytest
import torch

from confide.errors import EvaluationError
from confide.evaluate.identity import evaluation_settings, model_digest
from confide.evaluate.windows import Windows
from confide.models.source import DEMO_FOLDER, Source, open_model


@pytest.fixture
def copy(tmp_path: Path) -> Source:
    shutil.copytree(DEMO_FOLDER, tmp_path / "model")
    return open_model(str(tmp_path / "model"))


def test_a_copy_is_the_same_model(copy: Source) -> None:
    assert model_digest(copy) == model_digest(open_model("demo"))


def test_what_does_not_make_the_model_does_not_count(copy: Source) -> None:
    (Path(copy.location) / "perplexity.json").write_text("{}")
    assert model_digest(copy) == model_digest(open_model("demo"))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_changed_byte_makes_another_model(copy: Source, name: str) -> None:
    path = Path(copy.location) / name
    content = bytearray(path.read_bytes())
    content[-2] ^= 1
    path.write_bytes(content)
    assert model_digest(copy) != model_digest(open_model("demo"))


def test_a_hub_model_is_its_commit() -> None:
    config = open_model("demo").config
    with pytest.raises(EvaluationError, match="local copy"):
        model_digest(Source("someone/model", "someone/model", config))
    config._commit_hash = "0123abcd"
    assert model_digest(Source("someone/model", "someone/model", config)) == "someone/model@0123abcd"


def test_settings_name_all_that_changes_results() -> None:
    windows = Windows(4, ((1, 2, 3, 4), (5, 6, 7, 8)))
    settings = evaluation_settings(open_model("demo"), windows, weight_bits="4")
    assert settings["weight bits"] == "4"
    assert settings["context"] == "4"
    assert settings["number of threads"] == str(torch.get_num_threads())
    moved = Windows(4, ((1, 2, 3), (4, 5, 6, 7), (8, 9)))
    assert settings["text or limit"] != evaluation_settings(open_model("demo"), moved)["text or limit"]
