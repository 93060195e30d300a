"""LoRA adapters merged into their base: the weights that peft gives, and nothing else that a configuration asks."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from confide.attest.training import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from confide.errors import ModelNotSupported, NotInstalled
from confide.models.adapter import read_adapter
from confide.models.source import Source, open_model
from confide.models.split import split
from confide.packages.manifest import PackageKind, Provenance
from confide.packages.signing import open_package
from confide.rlwe.parameters import Profile
from families import FAMILIES, save_random
from owners import OWNER

LORA = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]}


def with_adapter(source: Source, folder: Path) -> Source:
    return Source(source.name, source.location, source.config, read_adapter(folder))


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Source, Path, Any]:
    """A base model, an adapter's folder, and the weights that peft merges."""
    peft = pytest.importorskip("peft")
    folder = tmp_path_factory.mktemp(request.param)
    source = open_model(str(save_random(FAMILIES[request.param], folder / "model")))
    layers = ["q_proj", "down_proj"] if request.param == "llama" else ["c_attn"]
    config = peft.LoraConfig(
        r=3,
        lora_alpha=12,
        target_modules=layers,
        task_type="CAUSAL_LM",
        use_rslora=True,
        fan_in_fan_out=request.param == "gpt2",
        init_lora_weights=False,
    )
    torch.manual_seed(2)
    wrapped = peft.get_peft_model(source.load_model(), config)
    wrapped.save_pretrained(folder / "adapter")
    return source, folder / "adapter", wrapped.merge_and_unload().state_dict()


def test_the_weights_are_those_that_peft_merges(trained: tuple[Source, Path, Any]) -> None:
    source, folder, expected = trained
    base, merged = source.load_model().state_dict(), with_adapter(source, folder).load_model().state_dict()
    assert merged.keys() == expected.keys() == base.keys()
    assert all(torch.equal(merged[name], expected[name]) for name in merged)
    assert any(not torch.equal(merged[name], base[name]) for name in merged)


def test_the_manifest_says_which_adapter(trained: tuple[Source, Path, Any], tmp_path: Path) -> None:
    source, folder, _ = trained
    merged = with_adapter(source, folder)
    assert merged.adapter is not None
    digests = []
    for name, one in (("plain", source), ("merged", merged)):
        provenance = Provenance(adapter=one.adapter.digest if one.adapter else "")
        made = split(one, tmp_path / name, owner=OWNER, provenance=provenance, profile=Profile.OPEN_WEIGHTS)
        manifest = open_package(made.client, PackageKind.SHELL).manifest
        assert manifest.provenance.adapter == provenance.adapter
        digests.append(manifest.model_digest)
    assert digests[0] != digests[1]


def test_an_adapter_of_another_model_is_refused(trained: tuple[Source, Path, Any], tmp_path: Path) -> None:
    _, folder, _ = trained
    other = open_model(str(save_random(FAMILIES["pythia"], tmp_path / "model")))
    with pytest.raises(ModelNotSupported, match="does not fit this model"):
        with_adapter(other, folder).load_model()


def test_every_tensor_finds_its_place(trained: tuple[Source, Path, Any], tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    source, folder, _ = trained
    (tmp_path / ADAPTER_CONFIG).write_bytes((folder / ADAPTER_CONFIG).read_bytes())
    tensors = load_file(folder / ADAPTER_WEIGHTS)
    name = min(tensors)
    for changed in (
        {key: value for key, value in tensors.items() if key != name},
        tensors | {name.replace("layers.0", "layers.9").replace(".h.0", ".h.9"): tensors[name].clone()},
        tensors | {name: torch.zeros(1, 1)},
        tensors | {name: torch.full_like(tensors[name], float("nan"))},
    ):
        save_file(changed, tmp_path / ADAPTER_WEIGHTS)
        with pytest.raises(ModelNotSupported):
            with_adapter(source, tmp_path).load_model()
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"nonsense")
    with pytest.raises(ModelNotSupported, match="does not fit"):
        with_adapter(source, tmp_path).load_model()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"peft_type": "IA3"}, "kind IA3"),
        ({"peft_type": None}, "only LORA"),
        ({"megatron_config": {"a": 1}, "megatron_core": "os"}, "megatron_config"),
        ({"auto_mapping": {"parent_library": "os"}}, "auto_mapping"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"unheard_of\x1b[2J": 1}, "unheard_of"),
    ],
)
def test_what_a_configuration_may_not_ask(changes: dict[str, Any], said: str, tmp_path: Path) -> None:
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(LORA | changes))
    with pytest.raises(ModelNotSupported, match=said) as caught:
        read_adapter(tmp_path)
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b"\xff", b"{"])
def test_what_is_no_configuration(content: bytes, tmp_path: Path) -> None:
    with pytest.raises(ModelNotSupported, match="cannot be read"):
        read_adapter(tmp_path)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    (tmp_path / ADAPTER_CONFIG).write_bytes(content)
    with pytest.raises(ModelNotSupported, match="damaged"):
        read_adapter(tmp_path)


def test_the_digest_is_of_both_files(tmp_path: Path) -> None:
    def digest(config: dict[str, Any], weights: bytes) -> str:
        (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(config))
        (tmp_path / ADAPTER_WEIGHTS).write_bytes(weights)
        return read_adapter(tmp_path).digest

    assert len({digest(LORA, b"a"), digest(LORA, b"b"), digest(LORA | {"r": 3}, b"a")}) == 3
    assert digest(LORA, b"a") == digest(LORA, b"a")


def test_without_peft_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    (tmp_path / ADAPTER_WEIGHTS).write_bytes(b"")
    (tmp_path / ADAPTER_CONFIG).write_text(json.dumps(LORA))
    source = open_model(str(save_random(FAMILIES["gpt2"], tmp_path / "model")))
    with pytest.raises(NotInstalled, match=r"confide\[adapters\]"):
        with_adapter(source, tmp_path).load_model()
