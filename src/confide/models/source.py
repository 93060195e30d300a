"""Where a model comes from: the built-in demo, a local Hugging Face folder, or a model hub. Runs no code of theirs."""

from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.configuration_utils import PreTrainedConfig

from confide.errors import ModelNotSupported

DEMO_FOLDER = Path(__file__).with_name("demo_gpt2")


@dataclass(frozen=True)
class Source:
    """A model that can be loaded: its name or path, and its configuration."""

    location: str
    config: PreTrainedConfig

    def model(self) -> PreTrainedModel:
        """The model in float32, ready to generate."""
        model = AutoModelForCausalLM.from_pretrained(self.location, dtype=torch.float32)
        return model.eval()  # type: ignore[no-any-return]

    def tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The tokenizer, or None where the model came without one."""
        return tokenizer_in(self.location)


def open_model(name: str) -> Source:
    """Find a model: `demo`, a local folder in Hugging Face layout, or a hub id. ModelNotSupported where there is none."""
    location = str(DEMO_FOLDER) if name == "demo" else name
    try:
        return Source(location, AutoConfig.from_pretrained(location))
    except (OSError, ValueError, KeyError) as error:
        raise ModelNotSupported(
            f"No model can be read at {name!r}; give `demo`, a folder with config.json and safetensors, "
            "or the id of a model on a hub that this machine reaches."
        ) from error


def tokenizer_in(location: str) -> PreTrainedTokenizerBase | None:
    """The tokenizer of a local folder or a hub id, or None where there is none."""
    if Path(location).is_dir() and not list(Path(location).glob("tokenizer*")):
        return None
    try:
        return AutoTokenizer.from_pretrained(location)  # type: ignore[no-any-return]
    except (OSError, ValueError):
        return None
