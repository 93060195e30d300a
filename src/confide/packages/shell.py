"""A shell becomes a model: the stock transformers architecture without the protected matrices.

Those are never allocated; their layers ask an IntegerProduct. What it is made of, and where it runs, the shell
does not know. No file is read before it is known to be the one that the owner signed.
"""

from collections.abc import Container
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoConfig, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import InvalidPackage
from confide.models.protected import IntegerProduct, protect_group
from confide.models.sharing import empty_model
from confide.models.source import load_tokenizer
from confide.packages.manifest import Manifest, PackageKind
from confide.packages.owner import OwnerPublicKey
from confide.packages.signing import open_package, require_files

SHELL_WEIGHTS = "model.safetensors"


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
    model = _empty_model(folder, manifest)
    for index, group in enumerate(manifest.groups):
        protect_group(model, index, group, product)
    _fill_computed_buffers(model, device)
    _load_weights(model, folder, device)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    model.requires_grad_(False)
    model.eval()
    return model


def shell_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase | None:
    """The shell's tokenizer, or None for a model that came without one."""
    return load_tokenizer(str(folder))


def _empty_model(folder: Path, manifest: Manifest) -> PreTrainedModel:
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        if config.model_type != manifest.model_type:
            raise InvalidPackage(f"The configuration in {folder} is another model's; run `confide split` again.")
        return empty_model(config)
    except InvalidPackage:
        raise
    except Exception as error:  # transformers checks little, and raises what it stumbles over
        raise InvalidPackage(f"{folder / 'config.json'} is missing or damaged; run `confide split` again.") from error


def _load_weights(model: PreTrainedModel, folder: Path, device: torch.device | str) -> None:
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
