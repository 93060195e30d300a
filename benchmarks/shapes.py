"""Models split, licensed and served, for questions about whole models: known shapes, with random weights."""

import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, GPTNeoXConfig, PreTrainedConfig

from confide import HybridModel
from confide.ledger.licences import licence_book
from confide.models.source import Source, open_model
from confide.models.split import split
from confide.packages.owner import OwnerKey

PYTHIA_160M = GPTNeoXConfig(
    vocab_size=50304,
    hidden_size=768,
    num_hidden_layers=12,
    num_attention_heads=12,
    intermediate_size=3072,
    max_position_embeddings=2048,
    rope_parameters={"rope_type": "default", "rope_theta": 10000.0, "partial_rotary_factor": 0.25},
)


@dataclass(frozen=True)
class SplitModel:
    """Where the parts are, who signed them, and a licence key without limits."""

    source: Source
    client: Path
    server: Path
    owner: str
    licence: str

    def open(self, url: str) -> HybridModel:
        """The private model of a server at an address."""
        return HybridModel.from_shell(self.client, server=url, owner=self.owner, licence=self.licence, progress=False)


@contextmanager
def split_shape(config: PreTrainedConfig) -> Iterator[SplitModel]:
    """The halves of a model with random weights, in a folder of their own."""
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder:
        AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(folder)
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
    with serving_by([sys.executable, "-m", "confide", "serve", str(package), "--port", "0", "--json"]) as url:
        yield url


@contextmanager
def serving_by(command: list[str]) -> Iterator[str]:
    """A process that prints the address it serves at, as a line of JSON; at the end it is told to stop."""
    with announced_by(command) as announcement:
        yield announcement["url"]


@contextmanager
def announced_by(command: list[str]) -> Iterator[dict[str, Any]]:
    """A server's process, which prints a line of JSON when it serves; at the end it is told to stop."""
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout is not None
        yield json.loads(process.stdout.readline())
    finally:
        process.terminate()
        process.wait()
