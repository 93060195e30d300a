"""A sealed model as transformers runs it, against the same model from its plain folder."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.scripted import byte_fallback, byte_level
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, AutoTokenizer, GPT2Config, PreTrainedTokenizerFast

from confide.errors import InvalidPackage, ModelNotSupported
from confide.models.source import DEMO_FOLDER, Source, open_model
from confide.packages.sealed.contents import Contents, contents_of
from confide.packages.sealed.load import load_model, load_tokenizer
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.write import seal_model
from owners import OWNER

from .conftest import KEY

TEXT = "The old king called his three sons<|endoftext|> and said: 'ünïcode'"


def seal(model: Path | str, folder: Path) -> UnlockedPackage:
    seal_model(contents_of(str(model)), folder / "package", key=KEY, owner=OWNER)
    return SealedPackage.open(folder / "package", {OWNER.public}).unlock(KEY)


def test_the_demo_model_is_the_same(demo_package: Path) -> None:
    package = SealedPackage.open(demo_package).unlock(KEY)
    model, stock = load_model(package), AutoModelForCausalLM.from_pretrained(DEMO_FOLDER)
    assert type(model) is type(stock)
    assert model.dtype == stock.dtype == torch.float16
    assert model.generation_config.to_dict() == stock.generation_config.to_dict()
    assert model.config.to_diff_dict() | {"_name_or_path": ""} == stock.config.to_diff_dict() | {"_name_or_path": ""}
    assert not model.training
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(model(ids).logits, stock(ids).logits)


@pytest.mark.parametrize("source", ["tiny_gpt2", "tiny_llama"], indirect=True)
def test_small_models_of_other_architectures_are_the_same(source: Source, tmp_path: Path) -> None:
    package = seal(source.location, tmp_path)
    assert load_tokenizer(package) is None
    ids = torch.tensor([[5, 6, 7]])
    assert torch.equal(load_model(package, dtype=torch.float32)(ids).logits, source.load_model()(ids).logits)
    assert load_model(package, dtype=torch.bfloat16).dtype == torch.bfloat16


def test_sharded_weights_are_one_model(tiny_llama: Source, tmp_path: Path) -> None:
    tiny_llama.load_model().save_pretrained(tmp_path / "shards", max_shard_size="20KB")
    package = seal(tmp_path / "shards", tmp_path)
    assert len(package.manifest.weight_files()) > 1
    ids = torch.tensor([[1, 2]])
    assert torch.equal(load_model(package)(ids).logits, tiny_llama.load_model()(ids).logits)


def test_the_demo_tokenizer_is_the_same(demo_package: Path) -> None:
    ours = load_tokenizer(SealedPackage.open(demo_package).unlock(KEY))
    stock = AutoTokenizer.from_pretrained(DEMO_FOLDER)
    assert ours is not None
    assert ours(TEXT)["input_ids"] == stock(TEXT)["input_ids"]
    assert ours.decode(ours(TEXT)["input_ids"]) == stock.decode(stock(TEXT)["input_ids"])
    assert ours.special_tokens_map == stock.special_tokens_map
    assert ours.model_max_length == stock.model_max_length


@pytest.mark.parametrize("template_in", ["tokenizer_config.json", "chat_template.jinja"])
def test_special_tokens_and_the_chat_template_come_along(tiny_gpt2: Source, tmp_path: Path, template_in: str) -> None:
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    words = {word: index for index, word in enumerate(["<s>", "</s>", "<unk>", "hello", "user", ":", "<tool>"])}
    backend = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<tool>"],
        padding_side="left",
        model_max_length=77,
    )
    made.chat_template = "{% for m in messages %}{{ bos_token }}{{ m.role }} : {{ m.content }}{% endfor %}"
    made.save_pretrained(folder, save_jinja_files=template_in.endswith("jinja"))
    assert (folder / "chat_template.jinja").exists() == template_in.endswith("jinja")
    ours, stock = load_tokenizer(seal(folder, tmp_path)), AutoTokenizer.from_pretrained(folder)
    assert ours is not None
    messages = [{"role": "user", "content": "hello"}]
    assert ours.apply_chat_template(messages, tokenize=False) == "<s>user : hello"
    for tokenizer in (ours, stock):
        assert tokenizer("hello <tool> </s> other")["input_ids"] == [3, 6, 1, 2]
        assert tokenizer.decode([3, 6, 1], skip_special_tokens=True) == "hello"
        assert tokenizer.padding_side == "left"
        assert tokenizer.model_max_length == 77
    assert ours.special_tokens_map == stock.special_tokens_map


SPECIAL = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
KINDS: dict[str, tuple[Tokenizer, dict[str, Any], dict[str, Any]]] = {
    "added tokens, as releases since 2023 write them": (
        byte_level("<end>", "<turn>"),
        {
            "tokenizer_class": "GPT2Tokenizer",
            "eos_token": "<end>",
            "added_tokens_decoder": {"0": {"content": "<end>", **SPECIAL}, "1": {"content": "<turn>", **SPECIAL}},
        },
        {},
    ),
    "an end token after every text": (
        byte_fallback(),
        {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "add_eos_token": True},
        {},
    ),
    "no beginning": (
        byte_fallback(),
        {"tokenizer_class": "LlamaTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "add_bos_token": False},
        {},
    ),
    "a space before": (byte_level("<end>"), {"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": True}, {}),
    "a space before, of any class": (
        byte_level("<end>"),
        {"tokenizer_class": "PreTrainedTokenizerFast", "add_prefix_space": True},
        {},
    ),
    "a file of special tokens": (
        byte_level("<end>", "<turn>"),
        {"tokenizer_class": "PreTrainedTokenizerFast"},
        {"special_tokens_map.json": {"eos_token": "<turn>", "pad_token": {"content": "<end>", **SPECIAL}}},
    ),
    "a class of its own": (byte_level("<end>"), {"tokenizer_class": "Qwen2TokenizerFast", "eos_token": "<end>"}, {}),
    "no settings": (byte_level("<end>"), {}, {}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_one_reading_of_a_tokenizer_that_of_transformers(tiny_gpt2: Source, tmp_path: Path, kind: str) -> None:
    made, tokenizer_settings, more = KINDS[kind]
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    made.save(str(folder / "tokenizer.json"))
    for name, content in {"tokenizer_config.json": tokenizer_settings, **more}.items():
        (folder / name).write_text(json.dumps(content))
    sealed, hybrid = load_tokenizer(seal(folder, tmp_path)), open_model(str(folder)).load_tokenizer()
    stock = AutoTokenizer.from_pretrained(folder)
    assert sealed is not None
    assert hybrid is not None
    for text in ("the end", " the", "<end>he<turn>", "日本 🙂", ""):
        assert sealed(text)["input_ids"] == hybrid(text)["input_ids"] == stock(text)["input_ids"]
        assert sealed(text, add_special_tokens=False)["input_ids"] == stock(text, add_special_tokens=False)["input_ids"]
    assert sealed.special_tokens_map == hybrid.special_tokens_map == stock.special_tokens_map
    assert type(sealed) is type(hybrid) is type(stock)
    assert sealed.backend_tokenizer.to_str() == stock.backend_tokenizer.to_str()


def test_nothing_is_left_of_the_folder_of_links(demo_package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Path] = []

    def look(folder: Path) -> None:
        seen.extend(folder.iterdir())
        assert all(str(link.readlink()).startswith("/proc/self/fd/") for link in seen)

    monkeypatch.setattr("confide.models.source.load_tokenizer", look)
    load_tokenizer(SealedPackage.open(demo_package).unlock(KEY))
    assert seen
    assert not seen[0].parent.exists()


def test_a_gguf_model_is_for_another_engine(gguf_package: Path) -> None:
    with pytest.raises(InvalidPackage, match="xllamacpp"):
        load_model(SealedPackage.open(gguf_package).unlock(KEY))


def test_weights_that_are_not_a_whole_model_are_refused(tiny_gpt2: Source, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    values = json.loads((folder / "config.json").read_text()) | {"n_layer": 3}
    (folder / "config.json").write_text(json.dumps(values))
    with pytest.raises(InvalidPackage, match=r"transformer\.h\.2.* are missing"):
        load_model(seal(folder, tmp_path))


def test_a_sentencepiece_tokenizer_is_refused_with_the_reason(tiny_gpt2: Source, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    (folder / "tokenizer.model").touch()
    with pytest.raises(ModelNotSupported, match=r"sentencepiece.*save_pretrained"):
        contents_of(str(folder))


def test_code_of_the_model_is_neither_sealed_nor_run(tiny_gpt2: Source, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "model"))
    values = json.loads((folder / "config.json").read_text())
    values["auto_map"] = {"AutoModelForCausalLM": "evil.Model", "AutoConfig": "evil.Config"}
    (folder / "config.json").write_text(json.dumps(values))
    (folder / "evil.py").write_text("raise SystemExit('it ran')")
    package = seal(folder, tmp_path)
    assert "evil.py" not in package
    assert type(load_model(package).config) is GPT2Config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        ("[1]", r"config\.json is not a JSON object"),
        ('{"model_type": "unheard-of"}', "does not know the architecture 'unheard-of'"),
        ('{"model_type": "gpt2", "n_embd": 7, "n_head": 2}', "cannot make a model of this gpt2"),
        (None, r"without a config\.json"),
    ],
)
def test_a_package_that_is_no_model_is_refused(
    tiny_gpt2: Source, tmp_path: Path, config: str | None, reason: str
) -> None:
    files = {"model.safetensors": Path(tiny_gpt2.location) / "model.safetensors"}
    if config is not None:
        (tmp_path / "config.json").write_text(config)
        files["config.json"] = tmp_path / "config.json"
    contents = Contents("odd", "gpt2", WeightsFormat.SAFETENSORS, "f32", files)
    seal_model(contents, tmp_path / "package", key=KEY, owner=OWNER)
    with pytest.raises(InvalidPackage, match=reason):
        load_model(SealedPackage.open(tmp_path / "package").unlock(KEY))
