import pytest

from confide.errors import ConfideError
from confide.models.precision import Precision, Recipe, Rule


def test_the_last_rule_that_names_a_layer_counts() -> None:
    recipe = Recipe.parse(["6", r"mlp=4", r"\.0\.mlp=5"], ["attn=10"])
    assert recipe.precision("h.0.mlp.fc") == Precision(5, 15)
    assert recipe.precision("h.1.mlp.fc") == Precision(4, 15)
    assert recipe.precision("h.1.attn.c") == Precision(6, 10)
    assert Recipe().precision("any") == Precision(8, 15)
    assert Recipe(Precision(3)).precision("any") == Precision(3, 15)


def test_a_pattern_may_hold_equals_signs() -> None:
    assert Recipe.parse(["a(?=b)=4"]).rules == (Rule("a(?=b)", weight_bits=4),)


@pytest.mark.parametrize("text", ["", "four", "mlp=", "mlp=-4", "1", "9", "(=4", "mlp=4.0", "=1"])
def test_other_weight_bits_are_refused(text: str) -> None:
    with pytest.raises(ConfideError, match=r"bits|regular expression"):
        Recipe.parse([text])


@pytest.mark.parametrize("text", ["7", "16", "x=0"])
def test_other_activation_bits_are_refused(text: str) -> None:
    with pytest.raises(ConfideError, match="8 to 15"):
        Recipe.parse([], [text])
