"""Logits of a GGUF model at every position: those of the stock model, however long the window, and never a guess."""

import ctypes
import os
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import pytest
import torch
import xllamacpp
from transformers import PreTrainedModel

from confide.enclave.engines import gguf_logits
from confide.enclave.engines.gguf_logits import GgufLogits
from confide.errors import EngineError


@pytest.fixture(scope="module")
def logits(gguf_file: Path) -> Iterator[GgufLogits]:
    with GgufLogits(gguf_file) as found:
        yield found


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """llama.cpp's threads spin while they wait for each other, which takes long where others compute."""
    with mock.patch.object(os, "sched_getaffinity", return_value={0}):
        yield


@pytest.mark.parametrize("tokens", [2, 257, 258])
def test_they_are_those_of_the_stock_model(logits: GgufLogits, demo_model: PreTrainedModel, tokens: int) -> None:
    """Whatever was asked before, and over the border of what is computed at a time."""
    window = [(37 * place) % 4000 + 1 for place in range(tokens)]
    found = logits(window)
    with torch.inference_mode():
        expected = demo_model(torch.tensor([window]), use_cache=False).logits[0, :-1].float()
    assert found.shape == expected.shape
    assert found.dtype is torch.float32
    # Weights and keys and values are float16 here: an error of 2^-11 of each of some hundred terms.
    assert (found - expected).abs().max() < 0.1
    assert (found.log_softmax(-1) - expected.log_softmax(-1)).abs().mean() < 0.01


def test_what_computes_is_told(logits: GgufLogits, gguf_file: Path) -> None:
    assert logits.longest == 512
    assert logits.version == f"xllamacpp {xllamacpp.__version__}"
    assert logits.settings["dtype"] == "f16"
    assert logits.settings["cpu"]
    assert logits.tokenizer("The old king")["input_ids"]
    with GgufLogits(gguf_file, 100) as short, pytest.raises(EngineError, match="window"):
        short([1] * 257)  # 256 is what there is room for


@pytest.mark.parametrize("window", [[], [1], [1] * 513, [1, -1], [1, 4096]], ids=range(5))
def test_what_is_no_window_is_refused(logits: GgufLogits, window: list[int]) -> None:
    with pytest.raises(EngineError, match="window"):
        logits(window)


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(EngineError, match="not a GGUF file"):
        GgufLogits(tmp_path / "model.gguf")


def test_a_library_with_other_structs_is_refused(gguf_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a field of the parameters is another one, the context is not as it was asked for."""
    for name, context in (("N_CTX", 100), ("N_BATCH", 300)):
        with monkeypatch.context() as patch:
            patch.setattr(gguf_logits, name, 100)
            with pytest.raises(EngineError, match=r"constraints\.txt"):
                GgufLogits(gguf_file, context)


def test_a_library_without_the_functions_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    gguf_logits.find_library.cache_clear()
    monkeypatch.setattr(ctypes, "CDLL", lambda _: object())
    with pytest.raises(EngineError, match=r"constraints\.txt"):
        gguf_logits.find_library()


def test_what_llama_cpp_says_of_the_model_is_not_heard(gguf_file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with GgufLogits(gguf_file) as found:
        found([1, 2, 3])
    assert capfd.readouterr() == ("", "")
