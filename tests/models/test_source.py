import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import (
    BartConfig,
    BertConfig,
    CLIPTextConfig,
    Gemma3TextConfig,
    GPT2Config,
    GPTNeoXConfig,
    PreTrainedConfig,
    RobertaConfig,
    T5Config,
)

from confide.errors import ConfideError, ModelNotSupported
from confide.models.source import DEMO_FOLDER, Source, open_model
from confide.printable import printable


def test_the_demo_model_is_built_in() -> None:
    source = open_model("demo")
    assert source.config.model_type == "gpt2"
    model = source.load_model()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert not model.training


def test_the_demo_tokenizer_round_trips() -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    text = 'The rabbit said, "I\'m late!" — and ran 42 miles; naïve, isn’t it?\n'
    assert tokenizer.decode(tokenizer(text).input_ids) == text


def test_a_gguf_file_is_named_for_what_it_is(tmp_path: Path) -> None:
    (tmp_path / "model-q4_0.gguf").write_bytes(b"GGUF")
    for given in (tmp_path, tmp_path / "model-q4_0.gguf"):
        with pytest.raises(ModelNotSupported, match=r"model-q4_0\.gguf is a GGUF file.*confide seal"):
            open_model(str(given))


def test_a_folder_without_tokenizer_has_none(tiny_gpt2: Source) -> None:
    assert tiny_gpt2.load_tokenizer() is None


@pytest.mark.parametrize("name", ["no/such/folder", "./missing", "not a name"])
def test_what_does_not_exist_is_said_so(name: str) -> None:
    with pytest.raises(ConfideError, match="built-in"):
        open_model(name)


def test_an_empty_folder_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ConfideError, match=r"config\.json"):
        open_model(str(tmp_path))


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    config = {"model_type": "evil-net", "auto_map": {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Net"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotSupported, match="evil-net"):
        open_model(str(tmp_path))


def test_missing_weights_are_not_made_up(tmp_path: Path) -> None:
    weights = load_file(DEMO_FOLDER / "model.safetensors")
    del weights["transformer.h.3.mlp.c_fc.weight"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    (tmp_path / "config.json").write_bytes((DEMO_FOLDER / "config.json").read_bytes())
    with pytest.raises(ModelNotSupported, match=r"transformer\.h\.3\.mlp\.c_fc\.weight"):
        open_model(str(tmp_path)).load_model()


def test_the_llama_in_the_test_data_writes_its_reference_text(test_data: Path) -> None:
    folder = test_data / "models" / "stories260k-llama"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    reference = json.loads((folder / "reference.json").read_text())
    text, prompt = torch.tensor(reference["greedy_ids"]), len(reference["prompt_ids"])
    # Greedy text is what the model, shown any part of it, continues with: one forward pass tells.
    with torch.no_grad():
        logits = open_model(str(folder)).load_model()(text[None]).logits[0]
    assert torch.equal(logits[prompt - 1 : -1].argmax(-1), text[prompt:])


@pytest.mark.parametrize(
    "config",
    [
        T5Config(),
        BartConfig(),
        BertConfig(),
        RobertaConfig(),
        CLIPTextConfig(),
        Gemma3TextConfig(use_bidirectional_attention=True),
    ],
    ids=lambda config: config.model_type,
)
def test_what_does_not_go_on_with_a_text_is_refused_by_name(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupported, match=f"no causal language model, but .*{config.model_type}"):
        open_model(str(tmp_path))


@pytest.mark.parametrize("config", [BertConfig(is_decoder=True), GPTNeoXConfig()], ids=lambda one: one.model_type)
def test_decoders_are_taken_whatever_their_family(config: PreTrainedConfig, tmp_path: Path) -> None:
    config.save_pretrained(tmp_path)
    assert open_model(str(tmp_path)).config.model_type == config.model_type


@pytest.mark.parametrize("method", ["gptq", "awq", "fp8", "bitsandbytes", "compressed-tensors", "mxfp4", "\x1b[2J"])
def test_a_checkpoint_that_is_quantized_already_is_refused_by_name(method: str, tmp_path: Path) -> None:
    config = GPT2Config().to_dict() | {"quantization_config": {"quant_method": method}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelNotSupported, match="quantized already") as refused:
        open_model(str(tmp_path))
    assert printable(method) in str(refused.value)


def test_weights_that_are_not_finite_are_refused(tiny_gpt2: Source, tmp_path: Path) -> None:
    model = tiny_gpt2.load_model()
    with torch.no_grad():
        model.get_parameter("transformer.h.1.ln_1.bias")[3] = float("nan")
    model.save_pretrained(tmp_path)
    with pytest.raises(ModelNotSupported, match=r"transformer\.h\.1\.ln_1\.bias are not all finite"):
        open_model(str(tmp_path)).load_model()


def test_a_cut_file_of_weights_is_no_traceback(tiny_gpt2: Source, tmp_path: Path) -> None:
    tiny_gpt2.load_model().save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ModelNotSupported, match="cannot load"):
        open_model(str(tmp_path)).load_model()


@pytest.mark.parametrize("content", ["", "[1]", "{", '{"version": "1.0"}'])
def test_a_damaged_tokenizer_is_no_traceback(content: str, tiny_gpt2: Source, tmp_path: Path) -> None:
    tiny_gpt2.config.save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ModelNotSupported, match="cannot read the model's tokenizer"):
        open_model(str(tmp_path)).load_tokenizer()


@pytest.mark.parametrize("values", [{"n_embd": "wide"}, {"eos_token_id": ["x"]}, {"n_layer": [1]}])
def test_a_damaged_configuration_is_no_traceback(values: dict[str, object], tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"} | values))
    with pytest.raises(ModelNotSupported):
        open_model(str(tmp_path))
