"""What `seal` and `open --verify` try: what could not be served is refused, by the code that serves."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from gguf import GGUFReader, GGUFValueType, GGUFWriter
from safetensors.torch import load_file, save_file
from tests.owners import OWNER
from tests.scripted import byte_fallback, save, saying

from confide.enclave.boot import examine, load_engine, open_engine, try_out
from confide.enclave.engines import dtypes
from confide.enclave.engines.engine import Dtype, EngineSettings
from confide.errors import ConfideError, ConversationRefused, EngineError, InvalidPackage, ModelNotSupported
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage, UnlockedPackage
from confide.packages.sealed.write import seal_model

KEY = ModelKey(b"k" * 32)
TOKENIZER = byte_fallback()
STRING, COUNT = GGUFValueType.STRING, GGUFValueType.UINT16


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model = saying([], 4, TOKENIZER.get_vocab_size(), TOKENIZER.token_to_id("</s>"))
    return save(model, TOKENIZER, tmp_path / "model", bos_token="<s>", eos_token="</s>")


@pytest.fixture
def file(folder: Path, tmp_path: Path) -> Path:
    return write_gguf(open_model(str(folder)), tmp_path / "whole.gguf", GgufType.F16).path


def seal(model: Path, out: Path, examine: Callable[[UnlockedPackage], Any] | None = try_out) -> UnlockedPackage:
    seal_model(contents_of(str(model)), out / "package", key=KEY, owner=OWNER, examine=examine)
    return SealedPackage.open(out / "package", {OWNER.public}).unlock(KEY)


def rewritten(source: Path, target: Path, *more: tuple[str, Any, GGUFValueType], without: str = "-") -> Path:
    """A GGUF file with more metadata, and without a tensor."""
    reader = GGUFReader(source)
    added = {name for name, _, _ in more}
    writer = GGUFWriter(target, str(reader.fields["general.architecture"].contents()))
    for name, field in reader.fields.items():
        if not name.startswith("GGUF.") and name not in {"general.architecture", *added}:
            kinds = {"sub_type": field.types[-1]} if field.types[0] is GGUFValueType.ARRAY else {}
            writer.add_key_value(name, field.contents(), field.types[0], **kinds)
    for name, value, kind in more:
        writer.add_key_value(name, value, kind)
    for tensor in reader.tensors:
        if tensor.name != without:
            writer.add_tensor(tensor.name, tensor.data, raw_dtype=tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return target


def test_what_can_be_served_is_sealed(folder: Path, file: Path, tmp_path: Path) -> None:
    try_out(seal(folder, tmp_path / "a"))
    try_out(seal(rewritten(file, tmp_path / "same.gguf"), tmp_path / "b"))


def test_a_model_without_a_tokenizer_has_its_weights_looked_at(folder: Path, tmp_path: Path) -> None:
    (folder / "tokenizer.json").unlink()
    (folder / "tokenizer_config.json").unlink()
    seal(folder, tmp_path / "good")
    spoil(folder)
    with pytest.raises(ModelNotSupported, match="not all finite"):
        seal(folder, tmp_path / "bad")


def spoil(folder: Path, odd: float = float("nan")) -> None:
    weights = load_file(folder / "model.safetensors")
    weights["transformer.h.0.mlp.c_fc.weight"][1, 1] = odd
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("how", [try_out, examine])
def test_weights_that_are_no_numbers_are_not_sealed(folder: Path, tmp_path: Path, how: Any) -> None:
    spoil(folder)
    with pytest.raises(ModelNotSupported, match=r"c_fc are not all finite"):
        seal(folder, tmp_path / "out", how)
    assert list((tmp_path / "out").iterdir()) == []


def test_a_package_that_was_sealed_untried_is_refused_when_it_is_tried(folder: Path, tmp_path: Path) -> None:
    spoil(folder, float("inf"))
    with pytest.raises(ModelNotSupported, match="not all finite"):
        try_out(seal(folder, tmp_path / "out", None))


@pytest.mark.parametrize("missing", ["transformer.h.0.ln_1.weight", "lm_head.weight"])
def test_a_model_that_lacks_weights_is_not_sealed(folder: Path, tmp_path: Path, missing: str) -> None:
    weights = load_file(folder / "model.safetensors")
    del weights[missing]
    save_file(weights, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(InvalidPackage, match="missing"):
        seal(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"chat_template": "{{ raise_exception('no users here') }}"}, ConversationRefused),
        ({"chat_template": "{% for %}"}, ConversationRefused),
        ({"added_tokens_decoder": {"0": 7}}, ModelNotSupported),
    ],
)
def test_a_tokenizer_that_cannot_serve_is_not_sealed(
    folder: Path, tmp_path: Path, settings: dict[str, Any], kind: type[ConfideError]
) -> None:
    path = folder / "tokenizer_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))
    with pytest.raises(kind):
        seal(folder, tmp_path / "out")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ([("split.count", 2, COUNT), ("split.no", 0, COUNT)], "one of 2 parts"),
        ([("general.type", "adapter", STRING)], "an adapter"),
        ([("general.type", "mmproj", STRING)], "a projector"),
        ([("general.type", "\x1b[2J", STRING)], "holds no model"),
        ([("gpt2.attention.causal", False, GGUFValueType.BOOL)], "no causal language model"),
    ],
)
def test_gguf_files_that_are_no_whole_model_are_refused_by_name(
    file: Path, tmp_path: Path, more: list[tuple[str, Any, GGUFValueType]], said: str
) -> None:
    with pytest.raises(ModelNotSupported, match=said) as refused:
        seal(rewritten(file, tmp_path / "odd.gguf", *more), tmp_path / "out", None)
    assert "\x1b" not in str(refused.value)


@pytest.mark.parametrize("without", ["blk.0.attn_norm.weight", "output_norm.bias", "token_embd.weight"])
def test_a_gguf_file_that_lacks_tensors_is_not_sealed(file: Path, tmp_path: Path, without: str) -> None:
    with pytest.raises(EngineError, match="tensors are missing"):
        seal(rewritten(file, tmp_path / "odd.gguf", without=without), tmp_path / "out")


@pytest.mark.parametrize(
    ("asked", "held"),
    [(None, ("bf16", "bf16")), (Dtype.F32, ("f32", "f32")), (Dtype.INT8, ("int8", "f32"))],
    ids=["measured", "f32", "int8"],
)
def test_a_model_is_computed_in_the_type_that_is_fastest_or_asked_for(
    asked: Dtype | None, held: tuple[str, str], folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dtypes, "fastest_dtype", lambda _: pytest.fail("known answers are of float32"))
    unlocked = seal(folder, tmp_path / "out")
    monkeypatch.setattr(dtypes, "fastest_dtype", lambda model: Dtype.BF16 if model.device.type == "meta" else Dtype.F32)
    facts = open_engine(unlocked, settings=EngineSettings(dtype=asked)).facts
    assert (facts.quantization, facts.dtype) == held
    assert facts.rounded == (asked is not Dtype.F32)


def test_a_gguf_model_has_its_type_and_another_one_is_refused_before_the_key_is_asked_for(
    file: Path, tmp_path: Path
) -> None:
    package = seal(file, tmp_path / "out", None).package
    for dtype in Dtype:
        with pytest.raises(EngineError, match="leave the dtype out"):
            load_engine(package, None, None, settings=EngineSettings(dtype=dtype))  # type: ignore[arg-type]


def test_settings_are_for_every_engine(folder: Path, file: Path, tmp_path: Path) -> None:
    threads = torch.get_num_threads()
    try:
        for model, out in ((folder, "a"), (file, "b")):
            engine = open_engine(seal(model, tmp_path / out, None), settings=EngineSettings("own/name", 32, 2, 1))
            assert (engine.facts.model, engine.facts.context, engine.facts.settings["threads"]) == ("own/name", 32, "1")
    finally:
        torch.set_num_threads(threads)
