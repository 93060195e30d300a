import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from confide.errors import ConfideError, InsecureParameters, ModelNotSupported
from confide.models import quantized
from confide.models import split as split_module
from confide.models.clear import load_clear
from confide.models.source import Source, open_model
from confide.models.split import SplitSummary, split
from confide.packages.entropy import row_entropy
from confide.packages.manifest import read_manifest
from confide.packages.server_package import ServerPackage, group_file, row_norms
from confide.rlwe.parameters import Norms, Profile
from owners import OWNER


def server_matrices(halves: SplitSummary) -> dict[str, torch.Tensor]:
    groups = range(halves.groups)
    return {
        name: matrix
        for index in groups
        for name, matrix in load_file(group_file(halves.server, index)).items()
        if name != "u"
    }


def test_the_shell_holds_no_protected_weight(source: Source, halves: SplitSummary) -> None:
    matrices = server_matrices(halves)
    shell = load_file(halves.client / "model.safetensors")
    model = source.load_model()
    protected = {f"{name}.weight" for name in matrices}
    originals = dict(model.named_parameters())
    assert protected < set(originals)
    assert not protected & set(shell)
    others = {name for name in originals if name not in protected}
    scales = {f"{name}.weight_scale" for name in matrices}
    assert set(shell) == others | scales
    for name in others:
        assert torch.equal(shell[name], originals[name])
    for name in scales:
        assert shell[name].shape == (len(matrices[name.removesuffix(".weight_scale")]),)
    assert all(tensor.dtype == torch.float32 for tensor in shell.values())
    for original in (originals[name].detach() for name in protected):
        for form in (original, original.t()):
            assert not any(
                tensor.shape == form.shape and torch.allclose(tensor, form, atol=0.02) for tensor in shell.values()
            )
    files = {path.name for path in halves.client.iterdir()}
    tokenizer = {"tokenizer.json", "tokenizer_config.json"} if source.name == "demo" else set()
    signed = {"config.json", "generation_config.json", "model.safetensors"} | tokenizer
    assert files == signed | {"manifest.json", "signature.json", "checks.msgpack"}
    assert set(read_manifest(halves.client).files) == signed


def test_the_server_holds_int8_matrices_and_nothing_else(source: Source, halves: SplitSummary) -> None:
    expected = {group_file(halves.server, index).name for index in range(halves.groups)}
    assert {path.name for path in halves.server.iterdir()} == expected | {"manifest.json", "signature.json"}
    assert set(read_manifest(halves.server).files) == expected
    matrices = server_matrices(halves)
    assert {matrix.dtype for matrix in matrices.values()} == {torch.int8}
    assert {matrix.ndim for matrix in matrices.values()} == {2}
    manifest = read_manifest(halves.server)
    assert set(matrices) == {layer.name for group in manifest.groups for layer in group.layers}
    assert sum(matrix.numel() for matrix in matrices.values()) == halves.protected_parameters
    ServerPackage.open(halves.server).load()


def test_matrices_times_scales_are_the_weights(source: Source, halves: SplitSummary) -> None:
    shell = load_file(halves.client / "model.safetensors")
    model = source.load_model()
    transposed = source.config.model_type == "gpt2"
    for name, matrix in server_matrices(halves).items():
        weights = model.get_parameter(f"{name}.weight").detach().double()
        scale = shell[f"{name}.weight_scale"].double()[:, None]
        assert ((matrix.double() * scale - (weights.t() if transposed else weights)).abs() <= 0.5001 * scale).all()


def test_both_tables_agree_and_name_secure_parameters(halves: SplitSummary) -> None:
    shell, server = read_manifest(halves.client), read_manifest(halves.server)
    shell.require_counterpart(server)
    assert halves.parameter_names == ("n2048_q48_t30_a32",)
    matrices = ServerPackage.open(halves.server).matrices()
    for group, weights in zip(server.groups, matrices, strict=True):
        parameters = group.parameters(server.profile)
        assert row_norms(weights).row_l1 * parameters.max_activation < 2**29
        assert group.entropy_bits == row_entropy(weights.numpy())


def test_other_weights_have_another_digest(tiny_gpt2: Source, folder: Path, tmp_path: Path) -> None:
    model = GPT2LMHeadModel.from_pretrained(tiny_gpt2.location)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[3, 4] *= -1
    model.save_pretrained(tmp_path / "other")
    one = split(tiny_gpt2, folder, owner=OWNER, hint=False)
    other = split(open_model(str(tmp_path / "other")), tmp_path / "out2", owner=OWNER, hint=False)
    assert read_manifest(one.client).model_digest != read_manifest(other.client).model_digest


def test_profile_and_choice(tiny_llama: Source, folder: Path) -> None:
    steps: list[tuple[str, int, int]] = []
    summary = split(
        tiny_llama,
        folder,
        protect=r"1\.self_attn\.[qv]_proj",
        profile=Profile.OPEN_WEIGHTS,
        progress=lambda *step: steps.append(step),
        owner=OWNER,
    )
    assert summary.parameter_names == ("open_t32",)
    assert summary.protected_parameters == 32 * 32 + 16 * 32
    assert steps == [("model.layers.1.self_attn.q_proj-v_proj", 1, 1)]
    model = load_clear(summary.client, summary.server)
    ids = torch.arange(10)[None]
    difference = (model(ids).logits - tiny_llama.load_model()(ids).logits).abs().max()
    assert 0 < difference < 0.1


@pytest.mark.parametrize("existing", ["client", "server"])
def test_existing_folders_are_left_alone(tiny_gpt2: Source, folder: Path, existing: str) -> None:
    (folder / existing).mkdir(parents=True)
    with pytest.raises(ConfideError, match="exists already"):
        split(tiny_gpt2, folder, owner=OWNER)
    assert [path.name for path in folder.iterdir()] == [existing]


@pytest.mark.parametrize("moment", ["group", "shell", "table", "rename"])
def test_an_interrupted_split_leaves_nothing(
    tiny_gpt2: Source, folder: Path, moment: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    def progress(_: str, done: int, __: int) -> None:
        if moment == "group" and done == 3:
            raise KeyboardInterrupt

    if moment == "shell":
        monkeypatch.setattr(GPT2LMHeadModel, "state_dict", interrupt)
    elif moment == "table":
        monkeypatch.setattr(split_module, "sign_package", interrupt)
    elif moment == "rename":
        rename = Path.rename
        monkeypatch.setattr(Path, "rename", lambda a, b: interrupt() if b.name == "client" else rename(a, b))
    with pytest.raises(KeyboardInterrupt):
        split(tiny_gpt2, folder, owner=OWNER, progress=progress, hint=False)
    assert not folder.exists()


def test_a_refusal_touches_nothing(tiny_gpt2: Source, folder: Path) -> None:
    folder.mkdir()
    (folder / "mine.txt").write_text("keep")
    with pytest.raises(ConfideError, match="matches"):
        split(tiny_gpt2, folder, owner=OWNER, protect="no such layer")
    assert [path.name for path in folder.iterdir()] == ["mine.txt"]


def test_a_variant_with_more_linear_layers_is_refused(tiny_gpt2: Source, folder: Path, tmp_path: Path) -> None:
    config = GPT2LMHeadModel.from_pretrained(tiny_gpt2.location).config
    config.add_cross_attention = True
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "cross")
    with pytest.raises(ModelNotSupported, match="crossattention"):
        split(open_model(str(tmp_path / "cross")), folder, owner=OWNER)
    assert not folder.exists()


def test_weights_that_are_not_finite_are_refused(tiny_llama: Source, folder: Path, tmp_path: Path) -> None:
    model = LlamaForCausalLM.from_pretrained(tiny_llama.location)
    with torch.no_grad():
        model.model.layers[1].mlp.up_proj.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "broken")
    with pytest.raises(ModelNotSupported, match=r"layers\.1\.mlp\.up_proj"):
        split(open_model(str(tmp_path / "broken")), folder, owner=OWNER)


def test_insecure_parameters_name_their_group(tiny_gpt2: Source, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quantized, "row_norms", lambda _: Norms(1 << 24, 127.0))
    with pytest.raises(InsecureParameters, match=r"transformer\.h\.0\.attn\.c_attn"):
        split(tiny_gpt2, folder, owner=OWNER)


def test_matrices_that_are_not_tied_stay_so(tiny_gpt2: Source, folder: Path, tmp_path: Path) -> None:
    """A checkpoint with two different embeddings under a configuration that ties them."""
    untied = Path(shutil.copytree(tiny_gpt2.location, tmp_path / "untied"))
    weights = load_file(untied / "model.safetensors")
    weights["lm_head.weight"] = weights["transformer.wte.weight"] + 1
    save_file(weights, untied / "model.safetensors", {"format": "pt"})
    summary = split(open_model(str(untied)), folder, owner=OWNER, hint=False)
    model = load_clear(summary.client, summary.server)
    assert isinstance(model, GPT2LMHeadModel)
    assert torch.equal(model.lm_head.weight, model.transformer.wte.weight + 1)
