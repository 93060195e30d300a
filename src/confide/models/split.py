"""Cuts a model in two: a shell for the client, and the protected layers' int8 matrices for the server."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from confide.errors import InvalidPackage
from confide.models.package import SERVER_KIND, SHELL_KIND, Group, Layer, Manifest, write_manifest
from confide.models.quantize import quantize_weight
from confide.models.roles import LinearGroup, linear_weight, protected_groups
from confide.models.server_package import WEIGHTS, weights_digest
from confide.models.source import Source
from confide.rlwe.parameters import Parameters, Profile

SHELL_WEIGHTS = "model.safetensors"
SCALES = "scales.safetensors"


@dataclass(frozen=True)
class SplitSummary:
    """What a split did: folders, layer groups, parameters, and the encryption parameters used, by name."""

    client: Path
    server: Path
    groups: int
    protected_parameters: int
    total_parameters: int
    encryption: tuple[str, ...]

    @property
    def protected_share(self) -> float:
        """Protected parameters over all parameters."""
        return self.protected_parameters / self.total_parameters


def split(
    source: Source,
    out: Path | str,
    *,
    protect: str = "all",
    profile: Profile = Profile.PRIVATE_WEIGHTS,
    on_group: Callable[[int, int], None] | None = None,
) -> SplitSummary:
    """Write `out/client` and `out/server`. An interrupted split leaves neither.

    protect: see `roles.protected_groups`. on_group: called with groups done and in all. InvalidPackage where the
    folders exist already.
    """
    out = Path(out)
    client, server = out / "client", out / "server"
    for folder in (client, server):
        if folder.exists():
            raise InvalidPackage(f"{folder} exists already; give another --out, or delete it first.")
    model = source.model()
    total = sum(parameter.numel() for parameter in model.parameters())
    chosen = protected_groups(model, protect)
    drafts = [_empty(folder.with_name(f".{folder.name}.draft")) for folder in (client, server)]
    try:
        matrices, scales, groups = _quantize_groups(model, chosen, profile, on_group)
        protected = sum(matrix.numel() for matrix in matrices.values())
        digest = weights_digest(matrices.items())
        _write_server(drafts[1], _manifest(model, SERVER_KIND, profile, digest, groups), matrices)
        shell = _manifest(model, SHELL_KIND, profile, digest, [_without_norms(group) for group in groups])
        _write_shell(drafts[0], shell, source, model, scales)
        drafts[0].rename(client)
        drafts[1].rename(server)
    finally:
        for draft in drafts:
            shutil.rmtree(draft, ignore_errors=True)
    names = tuple(sorted({group.parameters(profile).name for group in groups}))
    return SplitSummary(client, server, len(groups), protected, total, names)


def _empty(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _quantize_groups(
    model: PreTrainedModel,
    chosen: list[LinearGroup],
    profile: Profile,
    on_group: Callable[[int, int], None] | None,
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[Group]]:
    """Int8 matrices and scales by layer name, and the layer table with norms. Frees each float matrix on the way."""
    matrices: dict[str, Tensor] = {}
    scales: dict[str, Tensor] = {}
    groups = []
    for done, group in enumerate(chosen, 1):
        layers, l1, l2 = [], 0, 0.0
        for name in group.layers:
            module = model.get_submodule(name)
            matrix, scale = quantize_weight(linear_weight(module).detach())
            module.weight = torch.nn.Parameter(torch.empty(0), requires_grad=False)
            matrices[name], scales[name] = matrix.contiguous(), scale
            layers.append(Layer(name, matrix.shape[0]))
            l1 = max(l1, int(matrix.abs().sum(dim=1, dtype=torch.int64).max()))
            l2 = max(l2, float(torch.linalg.vector_norm(matrix.to(torch.float32), dim=1).max()))
        rows, columns = sum(layer.rows for layer in layers), matrices[group.name].shape[1]
        parameters = Parameters.derive(profile, rows=rows, columns=columns, row_l1=l1, row_l2=l2)
        groups.append(Group(group.name, tuple(layers), columns, parameters.activation_bits, l1, l2))
        if on_group:
            on_group(done, len(chosen))
    return matrices, scales, groups


def _without_norms(group: Group) -> Group:
    """What the client may know: the norms say more of the weights than it needs."""
    return Group(group.name, group.layers, group.columns, group.activation_bits)


def _manifest(model: PreTrainedModel, kind: str, profile: Profile, digest: str, groups: list[Group]) -> Manifest:
    return Manifest(1, kind, profile, str(model.config.model_type), digest, tuple(groups))


def _write_server(folder: Path, manifest: Manifest, matrices: dict[str, Tensor]) -> None:
    save_file({f"{name}.weight": matrix for name, matrix in matrices.items()}, folder / WEIGHTS)
    write_manifest(folder, manifest)


def _write_shell(
    folder: Path, manifest: Manifest, source: Source, model: PreTrainedModel, scales: dict[str, Tensor]
) -> None:
    save_file(scales, folder / SCALES)
    save_file(_unprotected(model, set(scales)), folder / SHELL_WEIGHTS)
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    tokenizer = source.tokenizer()
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    write_manifest(folder, manifest)


def _unprotected(model: PreTrainedModel, protected: set[str]) -> dict[str, Tensor]:
    """The weights that stay with the client, each tied tensor once."""
    kept: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name.removesuffix(".weight") in protected or (tensor.numel() and tensor.data_ptr() in seen):
            continue
        seen.add(tensor.data_ptr())
        kept[name] = tensor.contiguous()
    return kept
