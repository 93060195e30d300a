"""A shell becomes a model: the stock transformers architecture without the protected matrices.

Those are never allocated; their layers ask an IntegerProduct. What it is made of, and where it runs, the shell
does not know. No file is read before it is known to be the one that the owner signed.
"""

from collections.abc import Container
from pathlib import Path
from typing import Any, Final

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import InvalidPackage
from confide.models.head import quantize_head
from confide.models.protected import IntegerProduct, protect_group
from confide.models.sharing import empty_model
from confide.models.source import load_tokenizer
from confide.packages.manifest import Manifest, PackageKind, joined, read_package_file
from confide.packages.owner import OwnerPublicKey
from confide.packages.signing import open_package, require_files

SHELL_WEIGHTS: Final = "model.safetensors"
GENERATION_SETTINGS: Final = "generation_config.json"
_MAX_CONFIGURATION: Final = 4 << 20
_SETTINGS: Final = frozenset(
    {
        "bos_token_id",
        "decoder_start_token_id",
        "do_sample",
        "eos_token_id",
        "epsilon_cutoff",
        "eta_cutoff",
        "max_length",
        "max_new_tokens",
        "min_p",
        "no_repeat_ngram_size",
        "pad_token_id",
        "repetition_penalty",
        "temperature",
        "top_k",
        "top_p",
        "transformers_version",
        "typical_p",
        "use_cache",
    }
)
"""What a shell may say about generation: token ids and how to sample. Whatever makes the course of a run depend on
its text (draft models, prompt look-up), or loads something, is for who runs it to say."""


def load_shell(
    folder: Path | str,
    product: IntegerProduct,
    device: torch.device | str = "cpu",
    trusted: Container[OwnerPublicKey] | None = None,
) -> PreTrainedModel:
    """The shell's model in float32 on `device`, in evaluation mode, without gradients.

    trusted: see `open_package`. Raises InvalidPackage where the folder is no shell, is not what its owner signed, or
    holds too few, too many or misshapen tensors.
    """
    folder = Path(folder)
    manifest = open_package(folder, PackageKind.SHELL, trusted).manifest
    require_files(folder, manifest)
    _require_no_code(folder, manifest)
    model = empty_shell(folder, manifest)
    for first, parts in joined(manifest.groups):
        protect_group(model, first, parts, product)
    _fill_computed_buffers(model, device)
    load_weights(model, folder, device)
    if GENERATION_SETTINGS in manifest.files:
        model.generation_config = GenerationConfig(**_generation_settings(folder / GENERATION_SETTINGS))
    model.requires_grad_(False)
    model.eval()
    quantize_head(model)
    return model


def shell_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase | None:
    """The shell's tokenizer, or None for a model that came without one."""
    return load_tokenizer(str(folder))


def allowed_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those of a model's generation settings that a shell may bring; None stands for transformers' default."""
    return {name: value for name, value in settings.items() if name in _SETTINGS and value is not None}


def _generation_settings(path: Path) -> dict[str, Any]:
    settings = _read_json(path)
    if odd := sorted(settings.keys() - _SETTINGS):
        raise InvalidPackage(
            f"{path} sets {odd[0][:60]!a}, which no shell may decide; have its owner run `confide split` again, or "
            "give it to `generate` yourself."
        )
    return settings


def _require_no_code(folder: Path, manifest: Manifest) -> None:
    """InvalidPackage where a configuration names classes of a model's own code. Files of code the table refuses."""
    for name in sorted(manifest.files):
        if name.endswith("config.json") and "auto_map" in _read_json(folder / name):
            raise InvalidPackage(
                f"{folder / name} names code that a model would bring along (auto_map), and none is ever run; "
                "have its owner run `confide split` again."
            )


def _read_json(path: Path) -> dict[str, Any]:
    try:
        return msgspec.json.decode(read_package_file(path, _MAX_CONFIGURATION), type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidPackage(f"{path} is damaged; run `confide split` again.") from error


def empty_shell(folder: Path, manifest: Manifest) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if config.model_type != manifest.model_type:
            raise InvalidPackage(f"The configuration in {folder} is another model's; run `confide split` again.")
        return empty_model(config)
    except InvalidPackage:
        raise
    except Exception as error:  # transformers checks little, and raises what it stumbles over
        raise InvalidPackage(f"{folder / 'config.json'} is missing or damaged; run `confide split` again.") from error


def load_weights(model: PreTrainedModel, folder: Path, device: torch.device | str) -> None:
    path = folder / SHELL_WEIGHTS
    try:
        tensors = load_file(path, device=str(device))
    except (OSError, SafetensorError) as error:
        raise InvalidPackage(f"{path} is missing or damaged; run `confide split` again.") from error
    tied = model.all_tied_weights_keys
    expected = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    for name in sorted(expected.keys() | tensors.keys()):
        if not _same_form(expected.get(name), tensors.get(name)):
            raise InvalidPackage(
                f"{path}: the tensor {name} is missing, superfluous or misshapen for this model; "
                "run `confide split` again."
            )
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()


def _same_form(expected: Tensor | None, given: Tensor | None) -> bool:
    return (
        expected is not None
        and given is not None
        and expected.shape == given.shape
        and expected.dtype == given.dtype == torch.float32
    )


def _fill_computed_buffers(model: PreTrainedModel, device: torch.device | str) -> None:
    """Make the buffers that no file holds because the configuration determines them, such as rotary frequencies.

    transformers builds every model without memory and has `_init_weights` compute them afterwards, as here. It gives
    the weights beside them random values as well, so those must come later.
    """
    owners = set()
    for name, buffer in list(model.named_non_persistent_buffers()):
        path, _, leaf = name.rpartition(".")
        owner = model.get_submodule(path)
        owner.register_buffer(leaf, torch.empty_like(buffer, device=device), persistent=False)
        owners.add(owner)
    for owner in owners:
        model._init_weights(owner)
