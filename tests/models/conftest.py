"""Small models of each architecture, and their splits: made once, read by many tests, written by none."""

from pathlib import Path

import pytest
from transformers import GPT2Config, LlamaConfig

from confide.models.source import Source, open_model
from confide.models.split import SplitSummary, split
from families import save_random
from owners import OWNER

TINY_GPT2 = GPT2Config(vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=1)
TINY_LLAMA = LlamaConfig(
    vocab_size=64,
    hidden_size=32,
    intermediate_size=44,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=128,
    attention_bias=True,
    tie_word_embeddings=False,
    bos_token_id=0,
    eos_token_id=1,
    rope_parameters={
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    },
)


@pytest.fixture(scope="session")
def tiny_gpt2(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_model(str(save_random(TINY_GPT2, tmp_path_factory.mktemp("gpt2"))))


@pytest.fixture(scope="session")
def tiny_llama(tmp_path_factory: pytest.TempPathFactory) -> Source:
    return open_model(str(save_random(TINY_LLAMA, tmp_path_factory.mktemp("llama"))))


@pytest.fixture(scope="session", params=["tiny_gpt2", "tiny_llama", "demo"])
def source(request: pytest.FixtureRequest) -> Source:
    return open_model("demo") if request.param == "demo" else request.getfixturevalue(request.param)


@pytest.fixture(scope="session")
def halves(source: Source, tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    """The split of `source`, everything protected, without a hint."""
    return split(source, tmp_path_factory.mktemp("split"), owner=OWNER, hint=False)


@pytest.fixture(scope="session")
def llama_halves(tiny_llama: Source, tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    """With its hint."""
    return split(tiny_llama, tmp_path_factory.mktemp("split"), owner=OWNER)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a test may split to."""
    return tmp_path / "out"
