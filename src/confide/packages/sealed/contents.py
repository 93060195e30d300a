"""What of a model is sealed: the weights, and the files without which they are no language model."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Final

import msgspec
from gguf import MODEL_ARCH, MODEL_ARCH_NAMES, GGUFReader, LlamaFileType

from confide.errors import ConfideError, ModelNotSupported
from confide.models.source import DEMO_FOLDER, DEMO_NAME, TOKENIZER_FILES, open_model
from confide.packages.manifest import safe_name
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.tensors import file_layout
from confide.printable import printable

CONFIG: Final = "config.json"
GENERATION_CONFIG: Final = "generation_config.json"
TOKENIZER: Final = "tokenizer.json"
_WEIGHTS: Final = "model.safetensors"
WEIGHTS_INDEX: Final = "model.safetensors.index.json"
_GGUF: Final = "model.gguf"
_ENCODERS: Final = frozenset(
    MODEL_ARCH_NAMES[kind]
    for kind in MODEL_ARCH
    if "BERT" in kind.name
    or kind.name in ("T5", "T5ENCODER", "MMPROJ", "WAVTOKENIZER_DEC", "GEMMA_EMBEDDING", "LLAMA_EMBED")
)
"""GGUF's names of what goes on with no text, not all of which say so in `attention.causal`."""
TOKENIZER_PARTS: Final = (
    TOKENIZER,
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
)
"""What transformers reads a fast tokenizer from, older files included."""
_OPTIONAL: Final = (GENERATION_CONFIG, *TOKENIZER_PARTS)


class _Index(msgspec.Struct, frozen=True):
    """Which file of a folder each tensor is in."""

    weight_map: dict[str, Annotated[str, msgspec.Meta(pattern=r"\A[A-Za-z0-9_][A-Za-z0-9_.\-]{0,110}\.safetensors\Z")]]


@dataclass(frozen=True)
class Contents:
    """A model on disk, in the clear. files: by their names in the package. The rest as in SealedManifest."""

    name: str
    architecture: str
    weights: WeightsFormat
    quantization: str
    files: Mapping[str, Path]

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files.values())


def contents_of(model: str) -> Contents:
    """Find what to seal of `demo`, a Hugging Face folder or a .gguf file.

    Raises ConfideError where there is no model, ModelNotSupported for one that could not be opened from memory later.
    """
    path = DEMO_FOLDER if model == DEMO_NAME else Path(model).expanduser().resolve()
    name = model if model == DEMO_NAME else path.name
    if path.is_dir():
        return _of_folder(name, path)
    if path.is_file() and path.suffix == ".gguf":
        return _of_gguf(path)
    raise ConfideError(
        f"There is no model to seal at {model}: give {DEMO_NAME!r}, a Hugging Face folder or a .gguf file. "
        "A hub model must be downloaded first."
    )


def _of_folder(name: str, folder: Path) -> Contents:
    config = open_model(str(folder)).config
    _require_tokenizer(folder)
    weights = weight_files(folder)
    names = [CONFIG, *(name for name in _OPTIONAL if (folder / name).is_file()), *weights]
    files = {name: folder / name for name in names}
    dtype = _main_dtype(folder, weights)
    return Contents(safe_name(name), config.model_type, WeightsFormat.SAFETENSORS, dtype, files)


def _require_tokenizer(folder: Path) -> None:
    """Where there is a tokenizer, tokenizer.json must hold all of it: nothing else can be read from memory."""
    has_other = any((folder / name).is_file() for name in TOKENIZER_FILES)
    if has_other and not (folder / TOKENIZER).is_file():
        raise ModelNotSupported(
            f"The tokenizer in {folder} is a sentencepiece or vocabulary file, which libraries read from disk only; "
            f"convert it with transformers (AutoTokenizer.from_pretrained(...).save_pretrained(...)) so that there is "
            f"a {TOKENIZER}, and seal again."
        )


def weight_files(folder: Path) -> list[str]:
    """The names of the safetensors files of a folder. ModelNotSupported where there are none, or one is missing."""
    if (folder / _WEIGHTS).is_file():
        return [_WEIGHTS]
    try:
        names = sorted(set(msgspec.json.decode((folder / WEIGHTS_INDEX).read_bytes(), type=_Index).weight_map.values()))
    except (OSError, ValueError, msgspec.MsgspecError, RecursionError) as error:
        raise ModelNotSupported(
            f"{folder} has neither {_WEIGHTS} nor a sound {WEIGHTS_INDEX}; save the model as safetensors first."
        ) from error
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise ModelNotSupported(f"{folder} lacks the file {missing[0]} that {WEIGHTS_INDEX} names; download it whole.")
    return names


def _main_dtype(folder: Path, weights: list[str]) -> str:
    """The type of most of the weights' bytes, as safetensors calls it, in small letters."""
    sizes: dict[str, int] = {}
    for name in weights:
        try:
            layout = file_layout(folder / name)
        except (OSError, ValueError) as error:
            raise ModelNotSupported(
                f"{folder / name} is not a safetensors file that can be opened later: {error}. Save the model again."
            ) from error
        for entry in layout.values():
            sizes[entry.dtype] = sizes.get(entry.dtype, 0) + entry.bytes
    return max(sizes, key=sizes.__getitem__, default="none").lower()


def _of_gguf(path: Path) -> Contents:
    try:
        fields = GGUFReader(path).fields
        architecture = str(fields["general.architecture"].contents())
        kind = LlamaFileType(fields["general.file_type"].contents()).name
        holds = str(fields["general.type"].contents()) if "general.type" in fields else "model"
        parts = int(fields["split.count"].contents()) if "split.count" in fields else 1
        causal = fields[_causal(architecture)].contents() if _causal(architecture) in fields else True
    except Exception as error:  # the library checks little, and raises what it stumbles over
        raise ModelNotSupported(
            f"{path} is not a GGUF model that says its architecture and its type; convert the model again."
        ) from error
    if holds != "model":
        raise ModelNotSupported(f"{path} holds no model, but {_words(holds)}; merge it into its model, and seal that.")
    if parts > 1:
        raise ModelNotSupported(
            f"{path} is one of {parts} parts of a model; put them together with llama.cpp's `llama-gguf-split "
            "--merge`, and seal the whole."
        )
    if not causal or architecture in _ENCODERS:
        raise ModelNotSupported(
            f"{path} is no causal language model ({_words(architecture)}); use one that goes on with a text from left "
            "to right."
        )
    quantization = kind.removeprefix("MOSTLY_").removeprefix("ALL_").lower()
    return Contents(safe_name(path.stem), safe_name(architecture), WeightsFormat.GGUF, quantization, {_GGUF: path})


def _causal(architecture: str) -> str:
    return f"{architecture}.attention.causal"


def _words(text: str) -> str:
    return {"adapter": "an adapter", "mmproj": "a projector", "imatrix": "an importance matrix"}.get(
        text, printable(text[:40])
    )
