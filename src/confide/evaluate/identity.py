"""What the results of an evaluation depend on, so that only results of the same are put together."""

import hashlib
from pathlib import Path

import torch
import transformers

from confide.errors import EvaluationError
from confide.evaluate.results import Settings
from confide.evaluate.windows import Windows
from confide.models.source import TOKENIZER_FILES, Source

_WEIGHTS = ("*.safetensors", "*.bin")


def evaluation_settings(source: Source, windows: Windows, **options: str) -> Settings:
    """The model, the text as it was cut, what computes it, and the options that change results.

    The number of threads and the libraries' versions are among them, because they decide the order of float sums and
    with it the last bits of logits.
    """
    return {
        "model": model_digest(source),
        "text or limit": windows.digest,
        "context": str(windows.context),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
        "number of threads": str(torch.get_num_threads()),
        **{name.replace("_", " "): value for name, value in options.items()},
    }


def model_digest(source: Source) -> str:
    """SHA-256 of a folder's configuration, weights and tokenizer, or the commit of a hub model."""
    folder = Path(source.location)
    if not folder.is_dir():
        commit = getattr(source.config, "_commit_hash", None)
        if commit is None:
            raise EvaluationError(f"Which version of {source.name} this is cannot be told; give a local copy of it.")
        return f"{source.location}@{commit}"
    digest = hashlib.sha256()
    for path in sorted({folder / "config.json", *_existing(folder)}):
        with path.open("rb") as file:
            digest.update(f"{path.name} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def _existing(folder: Path) -> list[Path]:
    weights = [path for pattern in _WEIGHTS for path in folder.glob(pattern)]
    return weights + [folder / name for name in TOKENIZER_FILES if (folder / name).exists()]
