from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from confide.hybrid.model import HybridModel
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from owners import OWNER

from .fake import FakeServer, serving

Open = Callable[..., HybridModel]


@pytest.fixture(autouse=True)
def own_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A refusal list of each test's own."""
    folder = tmp_path / "home"
    monkeypatch.setenv("CONFIDE_HOME", str(folder))
    return folder


def make(folder: Path, kind: str) -> SplitSummary:
    torch.manual_seed(1)
    if kind == "gpt2":
        config = GPT2Config(vocab_size=97, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=0)
        GPT2LMHeadModel(config).save_pretrained(folder / "model")
    else:
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=97,
                hidden_size=16,
                intermediate_size=20,
                num_hidden_layers=1,
                num_attention_heads=2,
                num_key_value_heads=1,
                max_position_embeddings=64,
                eos_token_id=0,
            )
        ).save_pretrained(folder / "model")
    return split(open_model(str(folder / "model")), folder / "split", owner=OWNER)


@pytest.fixture(scope="session", params=["gpt2", "llama"])
def either(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    """A tiny model's two halves, of two families in turn."""
    return make(tmp_path_factory.mktemp(request.param), request.param)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    """A tiny GPT-2's two halves."""
    return make(tmp_path_factory.mktemp("parts"), "gpt2")


@pytest.fixture
def server(parts: SplitSummary) -> Iterator[FakeServer]:
    with serving(parts.server) as made:
        yield made


@pytest.fixture
def open_shell() -> Iterator[Open]:
    """Opens shells on servers, and closes them in the end."""
    opened: list[HybridModel] = []

    def open_one(parts: SplitSummary, server: FakeServer, **options: object) -> HybridModel:
        arguments = {"owner": OWNER.public.raw, "patience": 5, "progress": False} | options
        opened.append(HybridModel.from_shell(parts.client, server=server.url, **arguments))  # type: ignore[arg-type]
        return opened[-1]

    yield open_one
    for model in opened:
        model.close()


@pytest.fixture
def model(parts: SplitSummary, server: FakeServer, open_shell: Open) -> HybridModel:
    """The tiny GPT-2 on its server."""
    return open_shell(parts, server)
