"""Where a model comes from: a hub id, a local folder, or the small GPT-2 that ships with Confide.

Knows nothing of quantization or of protection. Code that a model brings along is never run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import has_file

from confide.errors import ConfideError, ModelNotSupported

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo_gpt2"
ADAPTER = "adapter_config.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """A causal language model that was found, with its configuration read and its weights not yet."""

    name: str
    location: str
    config: PreTrainedConfig

    def load_model(self) -> PreTrainedModel:
        """The stock model in float32, on the CPU, in evaluation mode.

        Raises ModelNotSupported where weights are missing: transformers would make them up at random.
        """
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            self.location, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
        )
        model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
        if missing := sorted(report["missing_keys"]):
            raise ModelNotSupported(
                f"{self.name} is not a whole causal language model: {missing[0]} and {len(missing) - 1} more weights "
                "are missing; give a model that was saved with its language-modelling head."
            )
        model.eval()
        return model

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, or None where it comes without one."""
        return load_tokenizer(self.location)


def open_model(model: str) -> Source:
    """Find a model: `demo`, an existing folder, or else a hub id.

    Raises ConfideError where there is none, ModelNotSupported where transformers does not know its architecture.
    """
    location = _location(model)
    if (Path(location) / ADAPTER).exists():
        raise ModelNotSupported(
            f"{model} holds an adapter ({ADAPTER}), whose weights would be left out; merge it into its base model "
            "(`merge_and_unload` in peft), save that, and give its folder."
        )
    nothing = ConfideError(
        f"There is no model {model!r}: it is neither a folder with a config.json nor a hub model that can be "
        f"reached from here; check the name, or use {DEMO_NAME!r} for the built-in one."
    )
    try:
        values, _ = PreTrainedConfig.get_config_dict(location)
    except OSError as error:
        raise nothing from error
    if not values:
        raise nothing
    try:
        config = AutoConfig.from_pretrained(location, trust_remote_code=False)
    except (ValueError, KeyError) as error:
        raise ModelNotSupported(
            f"{model} has the architecture {values.get('model_type')!r}, which transformers does not know without "
            "running code that comes with the model; use a model of a stock architecture."
        ) from error
    return Source(model, location, config)


def _location(model: str) -> str:
    if model == DEMO_NAME:
        return str(DEMO_FOLDER)
    folder = Path(model).expanduser()
    return str(folder) if folder.is_dir() else model


def load_tokenizer(location: Path | str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a folder or hub model as transformers reads it, or None where it has no tokenizer files.

    The one reading for all modes. ModelNotSupported where transformers cannot read it without a model's own code.
    """
    location = str(location)
    # AutoTokenizer would make an empty tokenizer of the right class rather than say that there is none.
    if not any(has_file(location, name) for name in TOKENIZER_FILES):
        return None
    try:
        return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(location, trust_remote_code=False))
    except Exception as error:  # transformers checks little, and raises what it stumbles over
        raise ModelNotSupported(
            f"transformers cannot read the model's tokenizer ({type(error).__name__}); see that AutoTokenizer loads "
            "it without code of the model's own, and save it again."
        ) from error
