import pytest
from transformers import (
    FalconConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    JetMoeConfig,
    Lfm2Config,
    LlamaConfig,
    Mamba2Config,
    MambaConfig,
    MistralConfig,
    MixtralConfig,
    MptConfig,
    OlmoeConfig,
    OPTConfig,
    PhiConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    XLNetConfig,
)

from confide.errors import ConfideError, ModelNotSupported
from confide.evaluate.plan import protection_choices
from confide.models.roles import find_layers

SHAPE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4}
WIDE = SHAPE | {"intermediate_size": 48}
GPT2 = GPT2Config(vocab_size=64, n_embd=32, n_layer=2, n_head=4)
LLAMA = LlamaConfig(**WIDE, num_key_value_heads=2)
JETMOE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 1, "num_key_value_heads": 2, "kv_channels": 8}

LLAMA_GROUPS = ["self_attn.q_proj-k_proj-v_proj", "self_attn.o_proj", "mlp.gate_proj-up_proj", "mlp.down_proj"]
FOUR = ["query_key_value", "dense", "mlp.dense_h_to_4h", "mlp.dense_4h_to_h"]
ONE_INPUT = ["self_attention.query_key_value-mlp.dense_h_to_4h", "self_attention.dense", "mlp.dense_4h_to_h"]
FALCON = {**SHAPE, "alibi": False}


@pytest.mark.parametrize(
    ("config", "blocks", "groups"),
    [
        (GPT2, "transformer.h", ["attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj"]),
        (GPTNeoXConfig(**WIDE), "gpt_neox.layers", [f"attention.{FOUR[0]}", f"attention.{FOUR[1]}", *FOUR[2:]]),
        (FalconConfig(**FALCON), "transformer.h", ONE_INPUT),
        (
            FalconConfig(**FALCON, parallel_attn=False),
            "transformer.h",
            [f"self_attention.{FOUR[0]}", f"self_attention.{FOUR[1]}", *FOUR[2:]],
        ),
        (
            FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2),
            "transformer.h",
            [f"self_attention.{FOUR[0]}", f"self_attention.{FOUR[1]}", *FOUR[2:]],
        ),
        (
            FalconConfig(**FALCON, new_decoder_architecture=True, num_kv_heads=2, num_ln_in_parallel_attn=1),
            "transformer.h",
            ONE_INPUT,
        ),
        (
            MptConfig(d_model=32, n_heads=4, n_layers=2, vocab_size=64),
            "transformer.blocks",
            ["attn.Wqkv", "attn.out_proj", "ffn.up_proj", "ffn.down_proj"],
        ),
        (
            PhiConfig(**WIDE),
            "model.layers",
            ["self_attn.q_proj-self_attn.k_proj-self_attn.v_proj-mlp.fc1", "self_attn.dense", "mlp.fc2"],
        ),
        (LLAMA, "model.layers", LLAMA_GROUPS),
        (MistralConfig(**WIDE, num_key_value_heads=2), "model.layers", LLAMA_GROUPS),
        (Qwen2Config(**WIDE, num_key_value_heads=2), "model.layers", LLAMA_GROUPS),
        (Qwen3Config(**WIDE, num_key_value_heads=2, head_dim=8), "model.layers", LLAMA_GROUPS),
        (GemmaConfig(**WIDE, num_key_value_heads=2, head_dim=8), "model.layers", LLAMA_GROUPS),
    ],
)
def test_layers_that_share_an_input_form_one_group(config: PreTrainedConfig, blocks: str, groups: list[str]) -> None:
    names = [group.name for group in find_layers(config).select("all")]
    assert names == [f"{blocks}.{block}.{group}" for block in range(2) for group in groups]


def test_kinds() -> None:
    for config in (GPT2, LLAMA, PhiConfig(**WIDE)):
        layers = find_layers(config)
        attention, mlp = layers.select("attention"), layers.select("mlp")
        assert all("attn." in layer for group in attention for layer in group.layers)
        assert all("mlp." in layer for group in mlp for layer in group.layers)
        everything = {layer for group in layers.select("all") for layer in group.layers}
        assert {layer for group in attention + mlp for layer in group.layers} == everything
        assert layers.select("mlp, attention") == layers.select("all")


def test_a_regular_expression_picks_layers_out_of_a_group() -> None:
    groups = find_layers(LLAMA).select(r"layers\.1\.self_attn\.[qv]_proj$")
    assert [group.layers for group in groups] == [
        ("model.layers.1.self_attn.q_proj", "model.layers.1.self_attn.v_proj")
    ]


def test_the_head_is_a_group_of_its_own() -> None:
    layers = find_layers(LLAMA)
    assert [group.layers for group in layers.select("lm_head")] == [("lm_head",)]
    assert layers.select("all,lm_head") == [*layers.select("all"), *layers.select("lm_head")]


@pytest.mark.parametrize("protect", ["lm_head", "all,lm_head", "head$"])
def test_a_head_that_is_tied_to_the_embedding_is_refused(protect: str) -> None:
    with pytest.raises(ModelNotSupported, match="embedding"):
        find_layers(GPT2).select(protect)


@pytest.mark.parametrize("protect", ["nothing", "^attn"])
def test_an_expression_that_matches_nothing_is_an_error(protect: str) -> None:
    with pytest.raises(ConfideError, match=r"transformer\.h\.0\.attn\.c_attn"):
        find_layers(GPT2).select(protect)


def test_an_invalid_expression_is_an_error() -> None:
    with pytest.raises(ConfideError, match="regular expression"):
        find_layers(GPT2).select("attn(")


def test_an_unknown_architecture_is_taken_apart_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    config = OPTConfig(
        vocab_size=64, hidden_size=32, num_hidden_layers=1, num_attention_heads=4, ffn_dim=64, word_embed_proj_dim=32
    )
    layers = find_layers(config)
    assert [group.name.removeprefix("model.decoder.layers.0.") for group in layers.select("all")] == [
        "self_attn.q_proj-k_proj-v_proj",
        "self_attn.out_proj",
        "fc1",
        "fc2",
    ]
    assert [len(group.layers) for group in layers.select("attention")] == [3, 1]
    assert "'opt' is not among those that were tested" in caplog.text


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (JetMoeConfig(**JETMOE), "experts"),
        (MambaConfig(vocab_size=64, hidden_size=32, num_hidden_layers=1), "recurrent state"),
        (Mamba2Config(vocab_size=64, hidden_size=32, num_hidden_layers=1, num_heads=4, head_dim=16), "recurrent state"),
        (Lfm2Config(**WIDE, num_key_value_heads=2, full_attn_idxs=[0]), "convolution"),
    ],
)
def test_what_cannot_be_split_is_refused_with_the_reason(config: PreTrainedConfig, reason: str) -> None:
    with pytest.raises(ModelNotSupported, match=f"'{config.model_type}'.*{reason}"):
        find_layers(config)


MOE = {"num_key_value_heads": 2, "moe_intermediate_size": 16, "num_experts_per_tok": 2}


@pytest.mark.parametrize(
    "config",
    [
        MixtralConfig(**WIDE, num_key_value_heads=2, num_local_experts=4),
        Qwen2MoeConfig(**WIDE, **MOE, num_experts=4, shared_expert_intermediate_size=16, decoder_sparse_step=1),
        Qwen3MoeConfig(**WIDE, **MOE, num_experts=4, decoder_sparse_step=1, mlp_only_layers=[0]),
        OlmoeConfig(**WIDE, num_key_value_heads=2, num_experts=4),
    ],
    ids=lambda config: config.model_type,
)
def test_of_a_mixture_of_experts_attention_can_be_protected(config: PreTrainedConfig) -> None:
    layers = find_layers(config)
    assert layers.experts
    chosen = [layer for group in layers.select("attention") for layer in group.layers]
    assert len(chosen) == 4 * config.num_hidden_layers
    assert all("self_attn" in layer for layer in chosen)
    assert [layer for group in layers.select("q_proj") for layer in group.layers] == [
        layer for layer in chosen if layer.endswith("q_proj")
    ]
    for protect in ("all", "mlp", "attention,mlp", "all,lm_head", "mlp$", "", "expert"):
        with pytest.raises(ModelNotSupported, match="Protect its attention alone"):
            layers.select(protect)
    assert protection_choices(layers)[-1].name == "attention"


def test_a_layer_that_runs_twice_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import LlamaModel

    forward = LlamaModel.forward

    def twice(self: LlamaModel, *args: object, **kwargs: object) -> object:
        forward(self, *args, **kwargs)  # type: ignore[arg-type]
        return forward(self, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(LlamaModel, "forward", twice)
    with pytest.raises(ModelNotSupported, match="q_proj more than once"):
        find_layers(LLAMA)


def test_an_architecture_whose_trial_run_fails_is_refused() -> None:
    with pytest.raises(ModelNotSupported, match="trial run"):
        find_layers(XLNetConfig(vocab_size=64, d_model=32, n_layer=1, n_head=4, d_inner=64))
