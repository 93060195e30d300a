"""A sealed safetensors model as transformers runs it, its configuration and tokenizer included, without a file.

Code that a model brings along is never run.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    CONFIG_MAPPING,
    MODEL_FOR_CAUSAL_LM_MAPPING,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from confide.errors import InvalidPackage
from confide.models import source
from confide.models.finite import require_finite
from confide.models.sharing import empty_model
from confide.packages.sealed.contents import CONFIG, GENERATION_CONFIG, TOKENIZER, TOKENIZER_PARTS
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.memory import MemoryFolder
from confide.packages.sealed.package import UnlockedPackage
from confide.packages.sealed.reader import OnChunk
from confide.packages.sealed.tensors import read_tensors


def load_model(
    package: UnlockedPackage,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    on_chunk: OnChunk | None = None,
) -> PreTrainedModel:
    """The stock model, in evaluation mode and without gradients. dtype: that of its configuration by default.

    Raises InvalidPackage where the package is not what its owner signed, or not a whole causal language model, and
    ModelNotSupported where weights are not finite.
    """
    if package.manifest.weights is not WeightsFormat.SAFETENSORS:
        raise InvalidPackage(f"{package.package.folder} holds a GGUF model; run it with the xllamacpp engine.")
    config, tensors = _config(package), read_tensors(package, on_chunk)
    model = _stock_model(config, tensors, dtype or config.dtype or torch.float32)
    if GENERATION_CONFIG in package:
        model.generation_config = GenerationConfig.from_dict(_json(package, GENERATION_CONFIG))
    model.requires_grad_(False)
    model.eval()
    cast(nn.Module, model).to(device)
    return model


def load_empty(package: UnlockedPackage) -> PreTrainedModel:
    """The stock model on the meta device, without weights. InvalidPackage as `load_model`."""
    config = _config(package)
    with _model_of(config):
        return empty_model(config)


@contextmanager
def _model_of(config: PreTrainedConfig) -> Iterator[None]:
    """transformers checks little, and raises what it stumbles over: InvalidPackage here."""
    try:
        yield
    except Exception as error:
        raise InvalidPackage(
            f"transformers cannot make a model of this {config.model_type} ({type(error).__name__}); "
            "see that the plain model loads, and seal it again."
        ) from error


def _stock_model(config: PreTrainedConfig, tensors: dict[str, Tensor], dtype: torch.dtype | str) -> PreTrainedModel:
    with _model_of(config):
        architecture = cast(type[PreTrainedModel], MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])
        loaded: Any = architecture.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, output_loading_info=True
        )
    model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
    if missing := sorted(report["missing_keys"]):
        raise InvalidPackage(f"The weights {missing[0]} and {len(missing) - 1} more are missing; seal a whole model.")
    require_finite(model.state_dict())
    return model


def load_tokenizer(package: UnlockedPackage) -> PreTrainedTokenizerBase | None:
    """The model's tokenizer with its chat template, or None where it was sealed without one.

    As `models.source.load_tokenizer` reads the folder that was sealed. ModelNotSupported where transformers cannot.
    """
    if TOKENIZER not in package:
        return None
    names = [name for name in (CONFIG, *TOKENIZER_PARTS) if name in package]
    with MemoryFolder({name: package.file(name) for name in names}) as folder:
        return source.load_tokenizer(folder)


def _config(package: UnlockedPackage) -> PreTrainedConfig:
    values = _json(package, CONFIG)
    kind = str(values.get("model_type"))
    if kind not in CONFIG_MAPPING:
        raise InvalidPackage(f"This version of transformers does not know the architecture {kind!r}; use a newer one.")
    return CONFIG_MAPPING[kind].from_dict(values)


def _json(package: UnlockedPackage, name: str) -> dict[str, Any]:
    try:
        values = json.loads(package.file(name).read())  # as transformers does: it writes Infinity and NaN
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise InvalidPackage(f"{name} is not a JSON object; seal a sound model.")
    return values
