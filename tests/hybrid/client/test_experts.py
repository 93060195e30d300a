"""A mixture of experts whose attention is protected: exact, and the server sees the same whichever experts run."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from transformers import MixtralConfig, MixtralForCausalLM

from confide.models.clear import load_clear
from confide.models.source import open_model
from confide.models.split import SplitSummary, split
from owners import OWNER

from .conftest import Open
from .fake import serving


@pytest.fixture(scope="module")
def mixture(tmp_path_factory: pytest.TempPathFactory) -> SplitSummary:
    folder = tmp_path_factory.mktemp("mixtral")
    torch.manual_seed(4)
    config = MixtralConfig(
        vocab_size=97,
        hidden_size=16,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        num_local_experts=4,
        max_position_embeddings=64,
    )
    MixtralForCausalLM(config).save_pretrained(folder / "model")
    return split(open_model(str(folder / "model")), folder / "split", owner=OWNER, protect="attention")


def test_private_answers_are_those_in_the_clear(mixture: SplitSummary, open_shell: Open) -> None:
    prompts = [torch.tensor([[5, 6, 7]]), torch.tensor([[90, 3, 41]])]
    seen: list[Counter[tuple[int, int]]] = []
    with serving(Path(mixture.server)) as server:
        private = open_shell(mixture, server)
        clear = load_clear(mixture.client, mixture.server)
        for prompt in prompts:
            server.frames.clear()
            options = {"max_new_tokens": 8, "do_sample": False}
            assert torch.equal(private.generate(prompt, **options), clear.generate(prompt, **options))  # type: ignore[operator]
            seen.append(Counter((frame.group, frame.count) for frame in server.frames))
    assert mixture.groups == 4
    assert seen[0] == seen[1]
