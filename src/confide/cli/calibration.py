"""The text that `--calibrate` names, as a model reads it."""

from pathlib import Path
from typing import TYPE_CHECKING

import typer

if TYPE_CHECKING:
    from torch import Tensor

    from confide.models.source import Source

TOKENS = 8192
"""Read at most; more hardly helps, see docs/decisions/0014-calibration.md."""
_CHARACTERS = 16 * TOKENS


def calibration_texts(source: "Source", file: Path | None) -> "list[Tensor]":
    """The beginning of a file as token ids, int64 (1, tokens); nothing where there is no file."""
    if file is None:
        return []
    import torch

    tokenizer = source.load_tokenizer()
    if tokenizer is None:
        raise typer.BadParameter("this model has no tokenizer, so no text can calibrate it")
    text = file.read_text(encoding="utf-8", errors="replace")[:_CHARACTERS]
    return [torch.tensor([tokenizer(text, verbose=False)["input_ids"][:TOKENS]])]
