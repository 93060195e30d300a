"""Writing a quantized model in two halves: a shell with its hint for the client, int8 matrices for the server.

Folders get their names at the end, so that an interrupted split leaves nothing that looks whole; what was made of the
hint is kept for the same split run again.
"""

import copy
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import ConfideError
from confide.mapped import Mapped, on_cores
from confide.models.conversation import warn_of_plain_template
from confide.models.precision import Recipe
from confide.models.quantized import OnProgress, QuantizedGroup, QuantizedModel
from confide.models.source import Source
from confide.packages.checks import CHECKS_NAME, make_checks, write_checks
from confide.packages.hint import hint_size
from confide.packages.hint_writer import HintWriter, OnHint, forget_drafts, place_hint
from confide.packages.manifest import (
    FORMAT,
    MASK_TENSOR,
    UNNAMED,
    Manifest,
    ModelDigest,
    PackageKind,
    Provenance,
    joined,
)
from confide.packages.owner import OwnerKey
from confide.packages.server_package import group_file
from confide.packages.shell import GENERATION_SETTINGS, SHELL_WEIGHTS, allowed_settings
from confide.packages.signing import sign_package
from confide.rlwe.parameters import Profile


@dataclass(frozen=True)
class SplitSummary:
    """What a split made. Parameters are counted once where weights are tied.

    client_bytes, server_bytes: of whole folders, but for the hint. hint_bytes: 0 where none was made.
    """

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
    hint_bytes: int

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
    hint: bool = True,
    epoch: int = 0,
    provenance: Provenance = UNNAMED,
    progress: OnProgress | None = None,
    on_hint: OnHint | None = None,
    mapped: Mapped = on_cores,
) -> SplitSummary:
    """Quantize a model and write its two halves; see `QuantizedModel.load`, `write_split` and `HintWriter`."""
    with _drafts(Path(out)) as draft:
        quantized = QuantizedModel.load(
            source, protect=protect, recipe=recipe, profile=profile, texts=texts, progress=progress
        )
        tokenizer = source.load_tokenizer()
        return _write(quantized, tokenizer, draft, Path(out), owner, epoch, provenance, hint, on_hint, mapped)


def write_split(
    quantized: QuantizedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    out: Path | str,
    *,
    owner: OwnerKey,
    hint: bool = True,
    epoch: int = 0,
    provenance: Provenance = UNNAMED,
    on_hint: OnHint | None = None,
) -> SplitSummary:
    """Write the shell to out/client and the server's package to out/server, both or neither.

    owner: signs both. hint: whether to make the hint, which takes the longest by far and which no open weights need;
    an interrupted one is kept in `out` and gone on with. epoch: of the public polynomials. provenance: what the
    manifest says of it. Raises ConfideError where either folder exists.
    """
    with _drafts(Path(out)) as draft:
        return _write(quantized, tokenizer, draft, Path(out), owner, epoch, provenance, hint, on_hint, on_cores)


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
    quantized: QuantizedModel,
    tokenizer: PreTrainedTokenizerBase | None,
    draft: Path,
    out: Path,
    owner: OwnerKey,
    epoch: int,
    provenance: Provenance,
    hint: bool,
    on_hint: OnHint | None,
    mapped: Mapped,
) -> SplitSummary:
    client, server = draft / "client", draft / "server"
    client.mkdir()
    server.mkdir()
    manifest = msgspec.structs.replace(_table(quantized, epoch), provenance=provenance)
    writer = HintWriter(manifest, owner, mapped) if manifest.profile is Profile.PRIVATE_WEIGHTS else None
    _write_matrices(quantized, server, writer)
    if writer is None:
        _write_matrices(quantized, client, None)
    if tokenizer is not None:
        warn_of_plain_template(tokenizer, "The model")
        _without_code(tokenizer).save_pretrained(client)
    _write_shell_model(quantized.model, client)
    made = None
    if writer is not None and hint:
        made, digests = writer.make(lambda index: quantized.matrices[index], out, on_hint)
        manifest = msgspec.structs.replace(manifest, hint=digests)
    sign_package(server, manifest, owner)
    shell = manifest.for_shell()
    sign_package(client, shell, owner)
    matrices = (matrix.numpy() for matrix in quantized.matrices)
    write_checks(client / CHECKS_NAME, make_checks(shell, matrices, owner.public), owner)
    summary = SplitSummary(
        client=out / "client",
        server=out / "server",
        model_type=manifest.model_type,
        profile=manifest.profile,
        groups=len(manifest.groups),
        layers=sum(len(first.layers) for _, (first, *_) in joined(manifest.groups)),
        protected_parameters=quantized.protected_parameters,
        total_parameters=quantized.total_parameters,
        parameter_names=tuple(sorted({group.parameters(manifest.profile).name for group in manifest.groups})),
        client_bytes=_folder_bytes(client),
        server_bytes=_folder_bytes(server),
        hint_bytes=0 if made is None else hint_size(manifest),
    )
    if made is not None:
        place_hint(made, client)
    server.rename(summary.server)
    try:
        client.rename(summary.client)
    except BaseException:
        shutil.rmtree(summary.server)
        raise
    forget_drafts(out)
    return summary


def _table(quantized: QuantizedModel, epoch: int) -> Manifest:
    digest = ModelDigest()
    for part in quantized.groups:
        for layer, matrix in zip(part.group.layers, _parts(part), strict=True):
            digest.add(layer.name, layer.rows, part.group.columns, matrix.numpy().data, part.group.first_column)
    groups = tuple(part.group for part in quantized.groups)
    model_type = quantized.model.config.model_type
    return Manifest(
        FORMAT, PackageKind.SERVER, quantized.profile, model_type, digest.hexdigest(), groups, {}, epoch=epoch
    )


def _write_matrices(quantized: QuantizedModel, folder: Path, writer: HintWriter | None) -> None:
    for index, part in enumerate(quantized.groups):
        named = {layer.name: matrix for layer, matrix in zip(part.group.layers, _parts(part), strict=True)}
        if writer is not None:
            named[MASK_TENSOR] = writer.u(index, part.weights)
        save_file(named, group_file(folder, index))


def _parts(part: QuantizedGroup) -> tuple[Tensor, ...]:
    parts: tuple[Tensor, ...] = part.weights.split([layer.rows for layer in part.group.layers])
    return parts


def _without_code(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """The same without the names of classes that a model's own code would bring: nothing of that is ever run."""
    tokenizer.init_kwargs.pop("auto_map", None)
    return tokenizer


def _write_shell_model(model: PreTrainedModel, client: Path) -> None:
    tied = model.all_tied_weights_keys
    # A checkpoint may hold two different matrices although its configuration says that they are tied; then
    # transformers does not tie them, and neither must the shell.
    config = copy.deepcopy(model.config)
    config.tie_word_embeddings = bool(tied)
    config.dtype = torch.float32
    config.__dict__.pop("auto_map", None)
    config.save_pretrained(client)
    if model.generation_config is not None:
        # save_pretrained would refuse settings that loading lets pass with a warning.
        settings = allowed_settings(model.generation_config.to_dict())
        (client / GENERATION_SETTINGS).write_bytes(msgspec.json.format(msgspec.json.encode(settings), indent=1))
    kept = {name: tensor.contiguous() for name, tensor in model.state_dict().items() if name not in tied}
    save_file(kept, client / SHELL_WEIGHTS)


def _folder_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
