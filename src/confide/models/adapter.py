"""LoRA adapters that are merged into their base model: a folder as peft saves it, read as data.

Of its configuration only what says how the matrices are added up is taken; what would load or import something, or
change the model's shape, is refused by name. Every tensor must find its place.
"""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load
from transformers import PreTrainedModel

from confide.attest.training import ADAPTER_CONFIG, ADAPTER_WEIGHTS, adapter_digest
from confide.disk.files import read_bounded
from confide.errors import ModelNotSupported
from confide.extras import named_extras
from confide.models.finite import require_finite
from confide.printable import printable

_MAX_CONFIG: Final = 1 << 20
_MAX_WEIGHTS: Final = 16 << 30
_TAKEN: Final = frozenset(
    {
        "alpha_pattern",
        "bias",
        "exclude_modules",
        "fan_in_fan_out",
        "layers_pattern",
        "layers_to_transform",
        "lora_alpha",
        "lora_bias",
        "modules_to_save",
        "r",
        "rank_pattern",
        "target_modules",
        "use_dora",
        "use_rslora",
    }
)
_WITHOUT_EFFECT: Final = frozenset(
    {
        "base_model_name_or_path",
        "ensure_weight_tying",
        "inference_mode",
        "init_lora_weights",
        "lora_dropout",
        "megatron_core",
        "peft_type",
        "peft_version",
        "qalora_group_size",
        "revision",
        "task_type",
    }
)
"""About training, and names."""


@dataclass(frozen=True)
class Adapter:
    """A LoRA adapter that was found. digest: SHA-256 over names and content of its two files, in hexadecimal."""

    folder: Path
    digest: str
    settings: dict[str, Any] = field(repr=False)
    weights: bytes = field(repr=False)

    def merge_into(self, model: PreTrainedModel) -> PreTrainedModel:
        """The model with the adapter in its weights. ModelNotSupported where they do not go together.

        NotInstalled without peft.
        """
        with named_extras():
            from peft import LoraConfig, PeftModel, set_peft_model_state_dict
        before = {name for name, _ in model.named_parameters()}
        try:
            wrapped = PeftModel(model, LoraConfig(**self.settings, task_type="CAUSAL_LM", inference_mode=True))
            report: Any = set_peft_model_state_dict(wrapped, load(self.weights))
        except (ValueError, TypeError, KeyError, RuntimeError, AttributeError, SafetensorError) as error:
            raise ModelNotSupported(
                f"The adapter in {self.folder} does not fit this model ({type(error).__name__}); give the base model "
                "that it was trained on."
            ) from error
        expected = [name for name in report.missing_keys if "lora_" in name or "modules_to_save" in name]
        if odd := sorted([*report.unexpected_keys, *expected]):
            raise ModelNotSupported(
                f"The adapter in {self.folder} does not fit this model: {printable(odd[0])[:200]} has no counterpart; "
                "give the base model that it was trained on."
            )
        merged: PreTrainedModel = wrapped.merge_and_unload()
        if {name for name, _ in merged.named_parameters()} != before:
            raise ModelNotSupported(f"The adapter in {self.folder} changes more than weights; merge it with peft.")
        _require_still_tied(merged, self.folder)
        require_finite(merged.state_dict())
        merged.eval()
        return merged


def read_adapter(folder: Path) -> Adapter:
    """The adapter in a folder. ModelNotSupported for what is no LoRA adapter, or asks for more than adding matrices."""
    return adapter_of(
        folder, _read(folder / ADAPTER_CONFIG, _MAX_CONFIG), _read(folder / ADAPTER_WEIGHTS, _MAX_WEIGHTS)
    )


def adapter_of(folder: Path, config: bytes, weights: bytes) -> Adapter:
    """The adapter that its two files hold. folder: where they are from, for errors. ModelNotSupported as above."""
    try:
        given = msgspec.json.decode(config, type=dict[str, Any])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise ModelNotSupported(f"{folder / ADAPTER_CONFIG} is damaged; save the adapter again.") from error
    if given.get("peft_type") != "LORA":
        kind = printable(str(given.get("peft_type")))[:40]
        raise ModelNotSupported(f"{folder} holds an adapter of the kind {kind}, and only LORA is merged; use peft.")
    for name, value in sorted(given.items()):
        if name not in _TAKEN | _WITHOUT_EFFECT and value not in (None, False, {}, [], ""):
            raise ModelNotSupported(
                f"The adapter in {folder} sets {printable(name)[:60]}, which is not merged here; merge it with peft, "
                "and split what that saves."
            )
    settings = {name: value for name, value in given.items() if name in _TAKEN and value is not None}
    return Adapter(folder, adapter_digest({ADAPTER_CONFIG: config, ADAPTER_WEIGHTS: weights}), settings, weights)


def _read(path: Path, limit: int) -> bytes:
    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise ModelNotSupported(
            f"{path} cannot be read ({error.strerror}); give a folder that peft's `save_pretrained` made."
        ) from error


def _require_still_tied(model: PreTrainedModel, folder: Path) -> None:
    """What the model has once must still be one: the shell would keep one of two."""
    tensors = model.state_dict()
    for name, source in model.all_tied_weights_keys.items():
        if tensors[name].data_ptr() != tensors[source].data_ptr():
            raise ModelNotSupported(
                f"The adapter in {folder} gives {name} weights of its own, which the model shares with {source}; merge "
                "it with peft, untie them, and split what that saves."
            )
