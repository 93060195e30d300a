"""Every variant is measured on every window once, across interruptions too."""

from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from confide.evaluate.agreement import MeasureChoices, WindowChoices
from confide.evaluate.results import Results, keep_results
from confide.evaluate.run import Variant, measure_variants
from confide.evaluate.windows import Windows

WINDOWS = Windows(8, tuple(tuple(range(start, start + 8)) for start in range(0, 80, 8)))
MEASURE = MeasureChoices((1, 5))
SETTINGS = {"model": "tiny"}


def tiny(seed: int) -> PreTrainedModel:
    torch.manual_seed(seed)
    return GPT2LMHeadModel(GPT2Config(vocab_size=97, n_positions=64, n_embd=16, n_layer=1, n_head=2)).eval()


class Loading:
    """Two variants that note when they are loaded."""

    def __init__(self) -> None:
        self.loaded: list[str] = []
        self.variants = [Variant("fp32", lambda: self._load(1)), Variant("quantized", lambda: self._load(2))]

    def _load(self, seed: int) -> PreTrainedModel:
        self.loaded.append(self.variants[seed - 1].name)
        return tiny(seed)


def test_each_variant_is_compared_with_the_first_on_the_same_window() -> None:
    loading, seen = Loading(), []
    found = measure_variants(
        loading.variants, WINDOWS, MEASURE, Results(WindowChoices), lambda *step: seen.append(step)
    )
    first, second = tiny(1), tiny(2)
    expected = [MEASURE(first, ids) for ids in WINDOWS.ids]
    assert found["fp32"] == expected
    assert found["quantized"] == [MEASURE(second, ids, ref) for ids, ref in zip(WINDOWS.ids, expected, strict=True)]
    assert loading.loaded == ["fp32", "quantized"]
    assert seen == [(name, done, 10) for name in ("fp32", "quantized") for done in range(1, 11)]


@pytest.mark.parametrize("after", [1, 7, 10, 13])
def test_what_was_interrupted_goes_on(tmp_path: Path, after: int) -> None:
    uninterrupted = measure_variants(Loading().variants, WINDOWS, MEASURE, Results(WindowChoices))
    path, left = tmp_path / "state.jsonl", after

    def interrupt(name: str, done: int, total: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), keep_results(path, WindowChoices, SETTINGS) as results:
        measure_variants(Loading().variants, WINDOWS, MEASURE, results, interrupt)
    kept = path.read_bytes()
    again = Loading()
    with keep_results(path, WindowChoices, SETTINGS) as results:
        assert measure_variants(again.variants, WINDOWS, MEASURE, results) == uninterrupted
    assert again.loaded == ["fp32", "quantized"][after >= 10 :]
    assert path.read_bytes().startswith(kept)
    assert path.read_bytes().count(b"\n") == 1 + 2 * len(WINDOWS)
