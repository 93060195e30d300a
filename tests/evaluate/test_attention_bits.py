"""The variants of the study: the better the more bits there are, and the worse the more heads."""

import pytest

from confide.errors import ModelNotSupported
from confide.evaluate.agreement import MeasureChoices, WindowChoices, compare_choices
from confide.evaluate.attention_bits import quantized_attention_variants
from confide.evaluate.results import Results
from confide.evaluate.run import measure_variants
from confide.evaluate.sentences import sample_sentences
from confide.models.source import open_model


def test_agreement_grows_with_bits_and_falls_with_heads() -> None:
    source = open_model("demo")
    model = source.load_model()
    calibration, sentences = sample_sentences(model, 16, 16, seed=0), sample_sentences(model, 12, 16, seed=1)
    choices = {"one": (0,), "every": "all"}
    fp32, by_choice = quantized_attention_variants(source, [0], choices, [3, 9], calibration)
    results = measure_variants([fp32, *by_choice.values()], sentences, MeasureChoices((1,)), Results(WindowChoices))
    top1 = {
        key: compare_choices(results[variant.name], results[fp32.name], (1,))[1].agreement.value
        for key, variant in by_choice.items()
    }
    assert 0.2 < top1["every", 3] < top1["one", 3] < 0.95 < top1["every", 9] <= 1
    assert top1["one", 9] > 0.97
    digests = {name: [window.logits for window in windows] for name, windows in results.items()}
    assert digests["one, 9 bits"] != digests["fp32"] != digests["every, 9 bits"]


def test_layers_that_are_not_there_are_refused() -> None:
    source = open_model("demo")
    with pytest.raises(ModelNotSupported, match="0 to 5"):
        quantized_attention_variants(source, [6], {}, [], sample_sentences(source.load_model(), 2, 8, seed=0))
