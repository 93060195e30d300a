"""Writing a quantized model in two halves: a shell for the client, int8 matrices for the server.

Folders get their names at the end, so that an interrupted split leaves nothing that looks whole.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import ConfideError
from confide.models.precision import Recipe
from confide.models.quantized import OnProgress, QuantizedModel
from confide.models.source import Source
from confide.packages.checks import CHECKS_NAME, Checks, group_vector, write_checks
from confide.packages.manifest import FORMAT, Manifest, ModelDigest, PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.server_package import group_file
from confide.packages.shell import SHELL_WEIGHTS
from confide.packages.signing import seal_package
from confide.rlwe.parameters import Profile
from confide.rlwe.streams import fresh_key


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
    recipe: Recipe | None = None,
    profile: Profile = Profile.PRIVATE_WEIGHTS,
    texts: Sequence[Tensor] = (),
    progress: OnProgress | None = None,
) -> SplitSummary:
    """Quantize a model and write its two halves; see `QuantizedModel.load` and `write_split`."""
    with _drafts(Path(out)) as draft:
        quantized = QuantizedModel.load(
            source, protect=protect, recipe=recipe, profile=profile, texts=texts, progress=progress
        )
        return _write(quantized, source.load_tokenizer(), draft, Path(out), owner)


def write_split(
    quantized: QuantizedModel, tokenizer: PreTrainedTokenizerBase | None, out: Path | str, *, owner: OwnerKey
) -> SplitSummary:
    """Write the shell to out/client and the server's package to out/server, both or neither.

    owner: signs both. Raises ConfideError where either folder exists.
    """
    with _drafts(Path(out)) as draft:
        return _write(quantized, tokenizer, draft, Path(out), owner)


@contextmanager
def _drafts(out: Path) -> Iterator[Path]:
    """A folder beside the final ones, gone in the end; nothing is made where one of these exists."""
    for name in ("client", "server"):
        if (out / name).exists():
            raise ConfideError(f"{out / name} exists already; choose another folder, or remove it first.")
    out.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=".unfinished-split-", dir=out))
    try:
        yield draft
    finally:
        shutil.rmtree(draft)
        if not any(out.iterdir()):
            out.rmdir()


def _write(
    quantized: QuantizedModel, tokenizer: PreTrainedTokenizerBase | None, draft: Path, out: Path, owner: OwnerKey
) -> SplitSummary:
    client, server = draft / "client", draft / "server"
    client.mkdir()
    server.mkdir()
    manifest = _write_matrices(quantized, server)
    if tokenizer is not None:
        tokenizer.save_pretrained(client)
    _write_shell_model(quantized.model, client)
    seal_package(server, manifest, owner)
    shell = manifest.for_shell()
    seal_package(client, shell, owner)
    write_checks(client / CHECKS_NAME, _checks(shell, quantized))
    summary = SplitSummary(
        client=out / "client",
        server=out / "server",
        model_type=manifest.model_type,
        profile=manifest.profile,
        groups=len(manifest.groups),
        layers=sum(len(group.layers) for group in manifest.groups),
        protected_parameters=quantized.protected_parameters,
        total_parameters=quantized.total_parameters,
        parameter_names=tuple(sorted({group.parameters(manifest.profile).name for group in manifest.groups})),
        client_bytes=_folder_bytes(client),
        server_bytes=_folder_bytes(server),
    )
    server.rename(summary.server)
    try:
        client.rename(summary.client)
    except BaseException:
        shutil.rmtree(summary.server)
        raise
    return summary


def _write_matrices(quantized: QuantizedModel, server: Path) -> Manifest:
    digest = ModelDigest()
    for index, part in enumerate(quantized.groups):
        matrices = part.weights.split([layer.rows for layer in part.group.layers])
        named = {layer.name: matrix for layer, matrix in zip(part.group.layers, matrices, strict=True)}
        save_file(named, group_file(server, index))
        for name, matrix in named.items():
            digest.add(name, len(matrix), part.group.columns, matrix.numpy().data)
    groups = tuple(part.group for part in quantized.groups)
    model_type = quantized.model.config.model_type
    return Manifest(FORMAT, PackageKind.SERVER, quantized.profile, model_type, digest.hexdigest(), groups, {})


def _checks(shell: Manifest, quantized: QuantizedModel) -> Checks:
    seed = fresh_key()
    vectors = [group_vector(seed, index, matrix.numpy()) for index, matrix in enumerate(quantized.matrices)]
    return Checks.make(shell, vectors, seed)


def _write_shell_model(model: PreTrainedModel, client: Path) -> None:
    tied = model.all_tied_weights_keys
    # A checkpoint may hold two different matrices although its configuration says that they are tied; then
    # transformers does not tie them, and neither must the shell.
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = bool(tied)
    config.dtype = torch.float32
    config.save_pretrained(client)
    if model.generation_config is not None:
        # save_pretrained would refuse settings that loading lets pass with a warning.
        model.generation_config.to_json_file(client / "generation_config.json")
    kept = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(kept, client / SHELL_WEIGHTS)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
