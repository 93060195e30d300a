"""Cutting a causal language model in two: a shell for the client, int8 matrices for the server.

Goes layer by layer and lets go of each float matrix once it is quantized. Folders get their names at the end, so that
an interrupted split leaves nothing that looks whole.
"""

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from confide.errors import ConfideError, InsecureParameters, ModelNotSupported
from confide.models.checks import CHECKS_NAME, Checks, group_vector, write_checks
from confide.models.owner import OwnerKey
from confide.models.package import FORMAT, Group, Layer, Manifest, ModelDigest, PackageKind
from confide.models.quantize import quantize_weights
from confide.models.roles import LayerGroup, all_groups, select_groups
from confide.models.seal import seal_package
from confide.models.server_package import group_file, row_norms
from confide.models.shell import SHELL_WEIGHTS
from confide.models.source import Source
from confide.rlwe.freivalds import Field
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.streams import fresh_key

OnProgress = Callable[[str, int, int], None]
"""Called with a layer group's name when it is written, the groups done so far, and the groups there are."""


@dataclass(frozen=True)
class SplitSummary:
    """What a split made. Parameters are counted once where weights are tied; bytes are of whole folders."""

    client: Path
    server: Path
    model_type: str
    profile: Profile
    groups: int
    layers: int
    protected_parameters: int
    total_parameters: int
    parameter_names: tuple[str, ...]
    client_bytes: int
    server_bytes: int

    @property
    def protected_share(self) -> float:
        """Protected parameters, of all."""
        return self.protected_parameters / self.total_parameters


def split(
    source: Source,
    out: Path | str,
    *,
    owner: OwnerKey,
    protect: str = "all",
    profile: Profile = Profile.PRIVATE_WEIGHTS,
    progress: OnProgress | None = None,
) -> SplitSummary:
    """Write the shell to out/client and the server's package to out/server, both or neither.

    owner: signs both. protect: see `roles.select_groups`. Raises ConfideError where either folder exists,
    ModelNotSupported for an architecture that is not in the table, InsecureParameters where a layer's rows are too
    long.
    """
    out = Path(out)
    chosen = select_groups(source.config, protect)
    for name in ("client", "server"):
        if (out / name).exists():
            raise ConfideError(f"{out / name} exists already; choose another folder, or remove it first.")
    out.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".unfinished-split-", dir=out))
    try:
        cut = _Cut(source, draft, profile)
        for done, group in enumerate(chosen, start=1):
            cut.write_group(group)
            if progress:
                progress(group.name, done, len(chosen))
        summary = cut.finish(out, owner)
        cut.server.rename(summary.server)
        try:
            cut.client.rename(summary.client)
        except BaseException:
            shutil.rmtree(summary.server)
            raise
        return summary
    finally:
        shutil.rmtree(draft)
        if not any(out.iterdir()):
            out.rmdir()


class _Cut:
    """A split on its way: the loaded model, losing one matrix after another to the server's folder."""

    def __init__(self, source: Source, draft: Path, profile: Profile) -> None:
        self.client, self.server = draft / "client", draft / "server"
        self.client.mkdir()
        self.server.mkdir()
        self._source = source
        self._profile = profile
        self._model = source.load_model()
        self._total = self._model.num_parameters()
        _require_known_layers(self._model)
        self._digest = ModelDigest()
        self._groups: list[Group] = []
        self._scales: dict[str, Tensor] = {}
        self._check_seed = fresh_key()
        self._check_vectors: list[Field] = []

    def write_group(self, group: LayerGroup) -> None:
        """Quantize a group's layers, write their matrices and drop the float ones."""
        matrices = {name: self._take_matrix(name) for name in group.layers}
        save_file(matrices, group_file(self.server, len(self._groups)))
        norms = [row_norms(matrix) for matrix in matrices.values()]
        row_l1, row_l2 = max(l1 for l1, _ in norms), max(l2 for _, l2 in norms)
        rows = sum(len(matrix) for matrix in matrices.values())
        columns = next(iter(matrices.values())).shape[1]
        try:
            parameters = Parameters.derive(self._profile, rows=rows, columns=columns, row_l1=row_l1, row_l2=row_l2)
        except InsecureParameters as error:
            raise InsecureParameters(f"{group.name} cannot be protected. {error}") from error
        stacked = torch.cat(list(matrices.values())).numpy()
        self._check_vectors.append(group_vector(self._check_seed, len(self._groups), stacked))
        layers = tuple(Layer(name, len(matrix)) for name, matrix in matrices.items())
        self._groups.append(Group(group.name, layers, columns, parameters.activation_bits, row_l1, row_l2))

    def _take_matrix(self, name: str) -> Tensor:
        layer = self._model.get_submodule(name)
        weights = layer.get_parameter("weight").detach()
        # Conv1D stores (inputs, outputs).
        matrix, scale = quantize_weights(weights.t() if isinstance(layer, Conv1D) else weights)
        if not torch.isfinite(scale).all():
            raise ModelNotSupported(f"The weights of {name} are not all finite; get an undamaged copy of the model.")
        layer.register_parameter("weight", None)
        matrix = matrix.contiguous()
        rows, columns = matrix.shape
        self._digest.add(name, rows, columns, matrix.numpy().data)
        self._scales[f"{name}.weight_scale"] = scale
        return matrix

    def finish(self, out: Path, owner: OwnerKey) -> SplitSummary:
        """Write the shell, and sign both halves."""
        tokenizer = self._source.load_tokenizer()
        if tokenizer is not None:
            tokenizer.save_pretrained(self.client)
        self._write_shell_model()
        server = Manifest(
            FORMAT,
            PackageKind.SERVER,
            self._profile,
            self._model.config.model_type,
            self._digest.hexdigest(),
            tuple(self._groups),
            {},
        )
        seal_package(self.server, server, owner)
        shell = server.for_shell()
        seal_package(self.client, shell, owner)
        write_checks(self.client / CHECKS_NAME, Checks.make(shell, self._check_vectors, self._check_seed))
        return SplitSummary(
            client=out / "client",
            server=out / "server",
            model_type=server.model_type,
            profile=self._profile,
            groups=len(self._groups),
            layers=len(self._scales),
            protected_parameters=sum(group.rows * group.columns for group in self._groups),
            total_parameters=self._total,
            parameter_names=tuple(sorted({group.parameters(self._profile).name for group in self._groups})),
            client_bytes=_folder_bytes(self.client),
            server_bytes=_folder_bytes(self.server),
        )

    def _write_shell_model(self) -> None:
        model = self._model
        tied = model.all_tied_weights_keys
        # A checkpoint may hold two different matrices although its configuration says that they are tied; then
        # transformers does not tie them, and neither must the shell.
        model.config.tie_word_embeddings = bool(tied)
        model.config.dtype = torch.float32
        model.config.save_pretrained(self.client)
        if model.generation_config is not None:
            # save_pretrained would refuse settings that loading lets pass with a warning.
            model.generation_config.to_json_file(self.client / "generation_config.json")
        kept = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
        save_file(kept | self._scales, self.client / SHELL_WEIGHTS)


def _require_known_layers(model: PreTrainedModel) -> None:
    """Refuse a variant whose blocks hold linear layers that the table of roles does not name, or others than it says.

    Otherwise `--protect all` would leave some of them to the client without a word.
    """
    groups = all_groups(model.config)
    known = {layer for group, _ in groups for layer in group.layers}
    head = model.get_output_embeddings()
    linear = {
        name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D) and module is not head
    }
    if odd := sorted(known ^ linear):
        raise ModelNotSupported(
            f"This {model.config.model_type} model is a variant whose layer {odd[0]} cannot be protected; "
            "use one with the standard layers."
        )


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
