import pytest
from transformers import BloomConfig, GPT2Config, LlamaConfig, T5Config

from confide.errors import ConfideError, ModelNotSupported
from confide.models.roles import select_groups

GPT2 = GPT2Config(n_layer=2)
LLAMA = LlamaConfig(num_hidden_layers=2)


def test_layers_that_share_an_input_form_one_group() -> None:
    first, *_ = groups = select_groups(LLAMA, "all")
    assert first.layers == tuple(f"model.layers.0.self_attn.{name}_proj" for name in "qkv")
    assert [len(group.layers) for group in groups] == [3, 1, 2, 1] * 2


def test_kinds() -> None:
    assert all(".self_attn." in group.name for group in select_groups(LLAMA, "attention"))
    assert all(".mlp." in group.name for group in select_groups(GPT2, "mlp"))
    for config in (GPT2, LLAMA):
        parts = select_groups(config, "attention") + select_groups(config, "mlp")
        assert sorted(group.name for group in parts) == sorted(group.name for group in select_groups(config, "all"))


def test_a_regular_expression_picks_layers_out_of_a_group() -> None:
    groups = select_groups(LLAMA, r"layers\.1\.self_attn\.[qv]_proj$")
    assert [group.layers for group in groups] == [
        ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    ]


@pytest.mark.parametrize("protect", ["lm_head", "nothing", "^attn"])
def test_an_expression_that_matches_nothing_is_an_error(protect: str) -> None:
    with pytest.raises(ConfideError, match=r"transformer\.h\.0\.attn\.c_attn"):
        select_groups(GPT2, protect)


def test_an_invalid_expression_is_an_error() -> None:
    with pytest.raises(ConfideError, match="regular expression"):
        select_groups(GPT2, "attn(")


@pytest.mark.parametrize("config", [BloomConfig(), T5Config()])
def test_an_unknown_architecture_is_refused_by_name(config: BloomConfig | T5Config) -> None:
    with pytest.raises(ModelNotSupported, match=f"'{config.model_type}'.*gpt2, llama"):
        select_groups(config, "all")
