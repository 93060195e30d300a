"""Models split, licensed and served, for questions about whole models; GPT-2-small's shape with random weights."""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from confide import HybridModel
from confide.hybrid.ledger.licences import licence_book
from confide.models.owner import OwnerKey
from confide.models.source import Source, open_model
from confide.models.split import split


@dataclass(frozen=True)
class SplitModel:
    """Where the parts are, who signed them, and a licence key without limits."""

    source: Source
    client: Path
    server: Path
    owner: str
    licence: str

    def open(self, url: str, *, refill_ahead: bool = False) -> HybridModel:
        """The private model of a server at an address."""
        return HybridModel.from_shell(
            self.client, server=url, owner=self.owner, licence=self.licence, refill_ahead=refill_ahead
        )


@contextmanager
def split_gpt2() -> Iterator[SplitModel]:
    """The halves of GPT-2-small's shape, in a folder of their own."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        GPT2LMHeadModel(GPT2Config()).save_pretrained(folder)
        with split_source(open_model(folder)) as model:
            yield model


@contextmanager
def split_source(source: Source) -> Iterator[SplitModel]:
    """A model's two halves, in a folder of their own."""
    with tempfile.TemporaryDirectory() as folder:
        owner = OwnerKey.generate()
        parts = split(source, Path(folder) / "split", owner=owner)
        with licence_book(parts.server / "state") as book:
            _, licence = book.create("benchmark", disclosure=None)
        gc.collect()
        yield SplitModel(source, parts.client, parts.server, str(owner.public), licence)


@contextmanager
def serving(package: Path) -> Iterator[str]:
    """The layer server in a process of its own; yields its address."""
    command = [sys.executable, "-m", "confide", "serve", str(package), "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())["url"]
    finally:
        process.terminate()
        process.wait()
