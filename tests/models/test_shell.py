import shutil
from pathlib import Path

import msgspec
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from confide.errors import InvalidPackage, UntrustedOwner
from confide.models.protected import ProtectedLinear
from confide.models.quantized import QuantizedModel
from confide.models.roles import find_layers
from confide.models.source import Source, open_model
from confide.models.split import SplitSummary, split, write_split
from confide.packages import shell as shell_module
from confide.packages.shell import load_shell, shell_tokenizer
from owners import OWNER, STRANGER, sign_again


def no_product(group: int, x: Tensor) -> Tensor:
    raise AssertionError("asked for a product")


def test_all_but_the_protected_layers_is_the_stock_model(source: Source, halves: SplitSummary) -> None:
    shell = load_shell(halves.client, no_product)
    stock = source.load_model()
    assert type(shell) is type(stock)
    assert not shell.training
    protected = {name for name, module in shell.named_modules() if isinstance(module, ProtectedLinear)}
    assert len(protected) == halves.layers
    given = dict(shell.named_parameters()) | dict(shell.named_buffers())
    expected = dict(stock.named_parameters()) | dict(stock.named_buffers())
    assert set(given) - {f"{name}.weight_scale" for name in protected} == set(expected) - {
        f"{name}.weight" for name in protected
    }
    for name in given.keys() & expected.keys():
        assert torch.equal(given[name], expected[name]), name
        assert given[name].device.type == "cpu"
    assert not any(parameter.requires_grad for parameter in shell.parameters())
    tied = shell.get_input_embeddings().weight is shell.get_output_embeddings().weight
    assert tied == bool(source.config.tie_word_embeddings)
    assert shell.generation_config.eos_token_id == stock.generation_config.eos_token_id


def test_rotary_frequencies_are_computed(tiny_llama: Source, llama_halves: SplitSummary) -> None:
    given = dict(load_shell(llama_halves.client, no_product).named_buffers())["model.rotary_emb.inv_freq"]
    expected = dict(tiny_llama.load_model().named_buffers())["model.rotary_emb.inv_freq"]
    assert torch.equal(given, expected)
    assert given[0] == 1
    assert given[-1] < 0.05  # scaled down, as llama3's rule for long contexts has it


def test_the_tokenizer_comes_along(source: Source, halves: SplitSummary) -> None:
    tokenizer = shell_tokenizer(halves.client)
    original = source.load_tokenizer()
    assert (tokenizer is None) == (original is None)
    if tokenizer is not None and original is not None:
        text = "The Mock Turtle sighed."
        assert tokenizer(text).input_ids == original(text).input_ids
        assert tokenizer.decode(tokenizer(text).input_ids) == text


@pytest.fixture
def client(llama_halves: SplitSummary, tmp_path: Path) -> Path:
    """A copy of a shell that a test may damage."""
    return Path(shutil.copytree(llama_halves.client, tmp_path / "client"))


@pytest.mark.parametrize(
    "damage", ["missing", "superfluous", "shape", "type", "truncated", "no file", "no config", "other config"]
)
def test_damage_is_refused(client: Path, damage: str) -> None:
    path = client / "model.safetensors"
    tensors = load_file(path)
    name = "model.layers.0.self_attn.q_proj.weight_scale"
    match damage:
        case "missing":
            del tensors[name]
        case "superfluous":
            tensors["model.layers.0.self_attn.q_proj.weight"] = torch.zeros(32, 32)
        case "shape":
            tensors[name] = tensors[name][:-1].clone()
        case "type":
            tensors[name] = tensors[name].half()
    save_file(tensors, path)
    match damage:
        case "truncated":
            path.write_bytes(path.read_bytes()[:-1])
        case "no file":
            path.unlink()
        case "no config":
            (client / "config.json").unlink()
        case "other config":
            (client / "config.json").write_text('{"model_type": "gpt2"}')
    sign_again(client)
    with pytest.raises(InvalidPackage, match="confide split"):
        load_shell(client, no_product)


@pytest.mark.parametrize("content", ["null", "[" * 100_000, '{"model_type": "llama", "num_attention_heads": 0}'])
def test_a_configuration_that_makes_no_model_is_refused(client: Path, content: str) -> None:
    (client / "config.json").write_text(content)
    sign_again(client)
    with pytest.raises(InvalidPackage, match="confide split"):
        load_shell(client, no_product)


@pytest.mark.parametrize(
    ("old", "new"),
    [('"model.layers.0.mlp.up_proj"', '"model.layers.9.mlp.up_proj"'), ('"columns": 44', '"columns": 45')],
)
def test_a_table_that_names_other_layers_is_refused(client: Path, old: str, new: str) -> None:
    path = client / "manifest.json"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    sign_again(client)
    with pytest.raises(InvalidPackage, match="layer table"):
        load_shell(client, no_product)


def test_a_server_package_is_refused(llama_halves: SplitSummary) -> None:
    with pytest.raises(InvalidPackage, match="client folder"):
        load_shell(llama_halves.server, no_product)


def test_nothing_is_read_that_the_owner_did_not_sign(client: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (client / "generation_config.json").write_text('{"eos_token_id": 7}')
    for reader in ("AutoConfig", "GenerationConfig", "load_file"):
        monkeypatch.setattr(shell_module, reader, None)
    with pytest.raises(InvalidPackage, match="after it was signed"):
        load_shell(client, no_product)


@pytest.mark.parametrize("name", ["special_tokens_map.json", "evil.py", "model-2.safetensors", "more/x.jinja"])
def test_a_surplus_file_is_refused(client: Path, name: str) -> None:
    (client / name).parent.mkdir(exist_ok=True)
    (client / name).write_text("{}")
    with pytest.raises(InvalidPackage, match="not part of the package"):
        load_shell(client, no_product)


def test_only_the_owner_asked_for_will_do(client: Path) -> None:
    load_shell(client, no_product, trusted={OWNER.public})
    with pytest.raises(UntrustedOwner):
        load_shell(client, no_product, trusted={STRANGER.public})


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
def test_a_configuration_that_names_code_is_refused(client: Path, name: str) -> None:
    path = client / name
    values = msgspec.json.decode(path.read_bytes()) if path.exists() else {}
    path.write_bytes(msgspec.json.encode(values | {"auto_map": {"AutoModelForCausalLM": "evil.Evil"}}))
    sign_again(client)
    with pytest.raises(InvalidPackage, match="auto_map"):
        load_shell(client, no_product)


def test_a_split_leaves_the_names_of_code_behind(tiny_llama: Source, tmp_path: Path) -> None:
    """Checkpoints of stock architectures often have some, from before they were stock."""
    model = Path(shutil.copytree(tiny_llama.location, tmp_path / "model"))
    values = msgspec.json.decode((model / "config.json").read_bytes())
    values["auto_map"] = {"AutoConfig": "configuration_old.OldConfig"}
    (model / "config.json").write_bytes(msgspec.json.encode(values))
    halves = split(open_model(str(model)), tmp_path / "out", owner=OWNER, hint=False)
    assert "auto_map" not in (halves.client / "config.json").read_text()
    load_shell(halves.client, no_product)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("prompt_lookup_num_tokens", 10),
        ("assistant_early_exit", 2),
        ("custom_generate", "someone/evil"),
        ("num_beams", 1000),
        ("cache_implementation", "offloaded"),
        ("stop_strings", ["x"]),
        ("\x1b[31m", 1),
    ],
)
def test_a_shell_decides_little_about_generation(client: Path, name: str, value: object) -> None:
    path = client / "generation_config.json"
    settings = msgspec.json.decode(path.read_bytes())
    path.write_bytes(msgspec.json.encode(settings | {"temperature": 0.5}))
    sign_again(client)
    assert load_shell(client, no_product).generation_config.temperature == 0.5
    path.write_bytes(msgspec.json.encode(settings | {name: value}))
    sign_again(client)
    with pytest.raises(InvalidPackage, match="no shell may decide") as caught:
        load_shell(client, no_product)
    assert str(caught.value).isprintable()


def test_a_split_keeps_the_allowed_settings_only(tiny_gpt2: Source, tmp_path: Path) -> None:
    model = tiny_gpt2.load_model()
    model.generation_config.update(temperature=0.7, do_sample=True, prompt_lookup_num_tokens=3)
    quantized = QuantizedModel.quantize(model, find_layers(model.config).select("all"))
    halves = write_split(quantized, None, tmp_path / "out", owner=OWNER, hint=False)
    given = load_shell(halves.client, no_product).generation_config
    assert (given.temperature, given.do_sample, given.prompt_lookup_num_tokens) == (0.7, True, None)
    assert given.eos_token_id == model.generation_config.eos_token_id
