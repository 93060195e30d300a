"""Where a model comes from: a hub id, a local folder, or the small GPT-2 that ships with Confide.

Knows nothing of quantization or of protection. Code that a model brings along is never run.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import torch
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils.hub import has_file

from confide.attest.training import ADAPTER_CONFIG
from confide.errors import ConfideError, ModelNotSupported
from confide.models.adapter import Adapter
from confide.models.finite import require_finite
from confide.printable import printable

DEMO_NAME = "demo"
DEMO_FOLDER = Path(__file__).parent / "demo_gpt2"
_CAUSAL_IN_ANY_CASE: Final = ("gpt_neox", "gpt_neox_japanese")
"""Whose configurations say `is_decoder: false` although they are nothing else."""
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")


@dataclass(frozen=True)
class Source:
    """A causal language model that was found, with its configuration read and its weights not yet."""

    name: str
    location: str
    config: PreTrainedConfig
    adapter: Adapter | None = None

    def load_model(self) -> PreTrainedModel:
        """The stock model in float32, on the CPU, in evaluation mode; with its adapter merged in, if it has one.

        Raises ModelNotSupported where weights are missing, which transformers would make up at random, where they are
        not finite, and where transformers cannot load them.
        """
        try:
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                self.location, dtype=torch.float32, trust_remote_code=False, output_loading_info=True
            )
        except Exception as error:  # transformers checks little, and raises what it stumbles over
            raise ModelNotSupported(
                f"transformers cannot load {self.name} ({type(error).__name__}); see that all of its files are there "
                "and whole, and that AutoModelForCausalLM loads it."
            ) from error
        model, report = cast(tuple[PreTrainedModel, dict[str, set[str]]], loaded)
        if missing := sorted(report["missing_keys"]):
            raise ModelNotSupported(
                f"{self.name} is not a whole causal language model: {missing[0]} and {len(missing) - 1} more weights "
                "are missing; give a model that was saved with its language-modelling head."
            )
        require_finite(model.state_dict())
        model.eval()
        return model if self.adapter is None else self.adapter.merge_into(model)

    def load_tokenizer(self) -> PreTrainedTokenizerBase | None:
        """The model's tokenizer, or None where it comes without one."""
        return load_tokenizer(self.location)


def open_model(model: str) -> Source:
    """Find a model: `demo`, an existing folder, or else a hub id.

    Raises ConfideError where there is none, ModelNotSupported where transformers does not know its architecture, where
    it is no causal language model, and where it is quantized already.
    """
    location = _location(model)
    if (Path(location) / ADAPTER_CONFIG).exists():
        raise ModelNotSupported(
            f"{model} holds an adapter ({ADAPTER_CONFIG}), whose weights would be left out; give its base model, "
            "and this folder to `confide split --merge-adapter`, or merge them with peft and give what that saves."
        )
    if (gguf := _gguf(Path(location))) is not None:
        raise ModelNotSupported(
            f"{gguf} is a GGUF file, whose weights llama.cpp has quantized already; give the Hugging Face folder that "
            "it was made from, or serve the file from a trusted environment (`confide seal`)."
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
    except Exception as error:  # transformers checks what it reads only in part, and raises what it stumbles over
        raise ModelNotSupported(
            f"transformers cannot read the configuration of {model} ({type(error).__name__}); get an undamaged copy."
        ) from error
    _require_causal(config, model)
    require_unquantized(config, model)
    return Source(model, location, config)


def _gguf(path: Path) -> Path | None:
    """The GGUF file that this is, or that lies in this folder instead of a model's configuration."""
    if path.is_file():
        return path if path.suffix == ".gguf" else None
    found = sorted(path.glob("*.gguf")) if path.is_dir() and not (path / "config.json").exists() else []
    return found[0] if found else None


def _require_causal(config: PreTrainedConfig, name: str) -> None:
    """By its kind, whatever transformers would make of it: an encoder loads as a decoder, and answers nonsense."""
    text = config.get_text_config()
    if config.is_encoder_decoder:
        kind = f"but an encoder-decoder ({config.model_type}), which reads one text and writes another"
    elif (
        type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING
        or getattr(text, "is_causal", True) is False
        or getattr(text, "use_bidirectional_attention", None) in (True, "all")
        or (getattr(text, "is_decoder", True) is False and config.model_type not in _CAUSAL_IN_ANY_CASE)
    ):
        kind = f"but a {config.model_type}"
        if getattr(text, "is_decoder", None) is False:
            kind += ", an encoder that reads a text from both ends at once"
    else:
        return
    raise ModelNotSupported(
        f"{name} is no causal language model, {kind}; use one that goes on with a text from left to right."
    )


def require_unquantized(config: PreTrainedConfig, name: str) -> None:
    """Of a quantized checkpoint only the library that made it can tell what its integers mean."""
    settings = getattr(config, "quantization_config", None)
    if settings is not None:
        method = settings.get("quant_method") if isinstance(settings, dict) else getattr(settings, "quant_method", None)
        raise ModelNotSupported(
            f"{name} is quantized already ({printable(str(getattr(method, 'value', method))[:40])}); give the "
            "checkpoint that it was made from."
        )


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
