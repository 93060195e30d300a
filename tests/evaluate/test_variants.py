"""What stands side by side: 8 bits keep the demo model's quality, 2 lose it, simulation changes nothing."""

from pathlib import Path

import pytest
import torch

from confide.errors import ConfideError
from confide.evaluate.perplexity import Perplexity, WindowLoss, compare_perplexity, measure_loss
from confide.evaluate.results import Results
from confide.evaluate.run import measure_variants
from confide.evaluate.variants import CLEAR, FP32, SIMULATED, compared_variants, swept_variants
from confide.evaluate.windows import Windows, cut_windows
from confide.models.precision import Recipe
from confide.models.source import open_model

DEMO = open_model("demo")
OWN_TEXT = """There was once upon a time a miller who had a daughter, and she was fair and clever. It came to pass that
he had to go and speak to the King, and in order to make himself appear great he said to him, "I have a daughter who
can spin gold out of straw." The King said to the miller, "That is an art which pleases me well; if thy daughter is as
clever as thou sayest, bring her to-morrow to my palace, and I will try what she can do." And when the girl was brought
to him he took her into a room which was quite full of straw, gave her a wheel and a reel, and said, "Now set to work,
and if by to-morrow morning early thou hast not spun this straw into gold thou must die." Thereupon he locked the door,
and left her in it alone. So there sat the poor daughter, and for her life could not tell what to do."""


def windows_of(text: str, most: int = 24) -> Windows:
    tokenizer = DEMO.load_tokenizer()
    assert tokenizer is not None
    return cut_windows(text, tokenizer, 64, max_windows=most)


@pytest.fixture(scope="module")
def losses() -> dict[str, list[WindowLoss]]:
    """Of fp32, quantized and simulated, on a text that is always there."""
    variants = compared_variants(DEMO, "all", Recipe())
    return measure_variants(variants, windows_of(OWN_TEXT), measure_loss, Results(WindowLoss))


def compared(text: str, bits: list[int]) -> dict[int, Perplexity]:
    """The demo model with weights of so many bits against fp32."""
    fp32, swept = swept_variants(DEMO, "all", {each: Recipe.parse([str(each)]) for each in bits})
    found = measure_variants([fp32, *swept.values()], windows_of(text), measure_loss, Results(WindowLoss))
    return {each: compare_perplexity(found[swept[each].name], found[FP32]) for each in bits}


def test_simulated_is_bit_for_bit_quantized_and_not_fp32(losses: dict[str, list[WindowLoss]]) -> None:
    assert losses[SIMULATED] == losses[CLEAR]
    assert all(a.logits != b.logits for a, b in zip(losses[CLEAR], losses[FP32], strict=True))


def test_8_bits_lose_less_than_half_a_percent(losses: dict[str, list[WindowLoss]]) -> None:
    ratio = compare_perplexity(losses[CLEAR], losses[FP32]).ratio
    assert 0.995 < ratio.value < 1.005


@pytest.mark.slow  # on more text than the test before
def test_8_bits_lose_less_than_half_a_percent_on_books(test_data: Path) -> None:
    path = test_data / "data" / "demo-validation" / "books_heldout.txt"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    of = compared(path.read_text(encoding="utf-8")[:20_000], [2, 8])
    assert 0.995 < of[8].ratio.low < of[8].ratio.high < 1.005
    assert of[2].ratio.low > 1.05
    assert of[2].perplexity.value == pytest.approx(of[8].perplexity.value * of[2].ratio.value / of[8].ratio.value)


def test_calibrated_weights_of_3_bits_lose_less() -> None:
    text = torch.tensor([DEMO.load_tokenizer()(OWN_TEXT)["input_ids"]])
    other = windows_of(" ".join(reversed(OWN_TEXT.split())), 8)
    ratios = []
    for texts in ((), (text,)):
        fp32, swept = swept_variants(DEMO, r"\.0\.", {3: Recipe.parse(["3"]), 8: Recipe()}, texts)
        found = measure_variants([fp32, *swept.values()], other, measure_loss, Results(WindowLoss))
        ratios.append({bits: compare_perplexity(found[swept[bits].name], found[FP32]).ratio.value for bits in swept})
    assert ratios[1][3] < ratios[0][3]
    assert ratios[1][8] == ratios[0][8]


def test_layers_that_are_not_there_are_refused_before_anything_is_loaded() -> None:
    with pytest.raises(ConfideError, match="no-such-layer"):
        compared_variants(DEMO, "no-such-layer", Recipe())
    with pytest.raises(ConfideError, match="no-such-layer"):
        swept_variants(DEMO, "no-such-layer", {8: Recipe()})
