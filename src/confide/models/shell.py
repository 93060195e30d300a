"""The client's half of a split model: the stock transformers model with `ProtectedLinear` where matrices were.

Who computes the integer products is the caller's choice: the layer server, or the clear reference. All else is the
same code on the same floats, so equal integers give equal tokens.
"""

from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM, GenerationConfig, PreTrainedModel, PreTrainedTokenizerBase

from confide.errors import InvalidPackage
from confide.models.package import SHELL_KIND, Group, Manifest, read_manifest
from confide.models.quantize import quantize_activations
from confide.models.source import tokenizer_in
from confide.models.split import SCALES, SHELL_WEIGHTS


class IntegerProduct(Protocol):
    """Computes W x exactly for a layer group: x int32 (tokens, columns) -> int32 (tokens, rows)."""

    def __call__(self, group: int, x: Tensor) -> Tensor: ...


class GroupProduct:
    """One layer group's product, computed once for all layers that share the input."""

    def __init__(self, index: int, group: Group, product: IntegerProduct) -> None:
        self._index = index
        self._bits = group.activation_bits
        self._product = product
        self._layers = len(group.layers)
        self._input: Tensor | None = None
        self._result: tuple[Tensor, Tensor] | None = None
        self._uses_left = 0

    def of(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x float (tokens, columns) -> W x int32 (tokens, rows) and the tokens' scales (tokens, 1)."""
        if self._result is None or self._input is not x or not self._uses_left:
            values, scale = quantize_activations(x.view(-1, x.shape[-1]), self._bits)
            self._result = self._product(self._index, values), scale
            # Holding the tensor makes sure that no other one can have its identity meanwhile.
            self._input, self._uses_left = x, self._layers
        self._uses_left -= 1
        result = self._result
        if not self._uses_left:
            self._input = self._result = None
        return result


class ProtectedLinear(nn.Module):
    """A linear layer whose matrix is elsewhere: y = (W x) * weight scale * token scale + bias."""

    scale: Tensor

    def __init__(self, group: GroupProduct, rows: slice, scale: Tensor, bias: nn.Parameter | None) -> None:
        super().__init__()
        self._group = group
        self._rows = rows
        self.register_buffer("scale", scale, persistent=False)
        self.bias = bias

    def forward(self, x: Tensor) -> Tensor:
        """x float (..., columns) -> float (..., rows)."""
        integers, token_scale = self._group.of(x)
        y = integers[:, self._rows].to(x.dtype).mul_(self.scale).mul_(token_scale)
        if self.bias is not None:
            y += self.bias
        return y.view(*x.shape[:-1], -1)


def load_shell(folder: Path | str, product: IntegerProduct, device: torch.device | str = "cpu") -> PreTrainedModel:
    """The shell's model, with `product` behind its protected layers. InvalidPackage where the folder is not whole."""
    folder = Path(folder)
    manifest = read_manifest(folder, SHELL_KIND)
    try:
        weights, scales = load_file(folder / SHELL_WEIGHTS), load_file(folder / SCALES)
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError, SafetensorError) as error:
        raise InvalidPackage(f"{folder} lacks a part of the shell; split the model again.") from error
    with torch.device("meta"):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    _make_computed_buffers(model)
    _protect(model, manifest, scales, product, folder)
    _load(model, weights, folder)
    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model.eval().to(device)  # type: ignore[arg-type, no-any-return]


def shell_tokenizer(folder: Path | str) -> PreTrainedTokenizerBase | None:
    """The shell's tokenizer, or None for a model that came without one."""
    return tokenizer_in(str(folder))


def _protect(
    model: PreTrainedModel, manifest: Manifest, scales: dict[str, Tensor], product: IntegerProduct, folder: Path
) -> None:
    for index, group in enumerate(manifest.groups):
        shared = GroupProduct(index, group, product)
        start = 0
        for layer in group.layers:
            scale = scales.pop(layer.name, None)
            if scale is None or scale.shape != (layer.rows,) or scale.dtype != torch.float32:
                raise InvalidPackage(f"{folder} lacks the scales of {layer.name}; split the model again.")
            try:
                replaced = model.get_submodule(layer.name)
            except AttributeError as error:
                raise InvalidPackage(f"The shell's model has no layer {layer.name}; split the model again.") from error
            protected = ProtectedLinear(shared, slice(start, start + layer.rows), scale, replaced.bias)  # type: ignore[arg-type]
            model.set_submodule(layer.name, protected)
            start += layer.rows
    if scales:
        raise InvalidPackage(f"{folder} has scales of layers that are not in its table; split the model again.")


def _load(model: PreTrainedModel, weights: dict[str, Tensor], folder: Path) -> None:
    """Put the unprotected weights in place, tied ones included."""
    expected = set(model.state_dict())
    tied = set(model.all_tied_weights_keys)
    missing, unknown = expected - tied - set(weights), set(weights) - expected
    if missing or unknown:
        raise InvalidPackage(
            f"{folder} holds the wrong tensors ({len(missing)} missing, {len(unknown)} unknown); split the model again."
        )
    try:
        model.load_state_dict({name: weight.float() for name, weight in weights.items()}, strict=False, assign=True)
    except RuntimeError as error:
        raise InvalidPackage(f"A tensor in {folder} has a wrong shape; split the model again.") from error
    model.tie_weights()


def _make_computed_buffers(model: PreTrainedModel) -> None:
    """Give values to the buffers that no file holds, such as rotary frequencies.

    transformers computes them where it initializes weights, which costs nothing while those have no storage yet.
    """
    for name, buffer in list(model.named_non_persistent_buffers()):
        owner, _, attribute = name.rpartition(".")
        model.get_submodule(owner).register_buffer(attribute, torch.empty_like(buffer, device="cpu"), persistent=False)
    model.initialize_weights()
