"""Sentences are cut where they end, and sampled ones are the same for the same seed."""

import pytest
import torch

from confide.errors import EvaluationError
from confide.evaluate.sentences import cut_sentences, sample_sentences
from confide.models.source import open_model

TEXT = 'The old king had three sons. No! "Go home," he said to them. And so they\nwent home together, all three.'


def test_a_text_is_cut_into_its_sentences() -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    found = cut_sentences(TEXT, tokenizer, 10, 8)
    read = [tokenizer.decode(ids) for ids in found.ids]
    assert read[0] == "The old king had three sons."
    assert read[1].startswith('"Go home')
    assert read[2].startswith("And so they went")
    assert max(map(len, found.ids)) == 8
    assert len(cut_sentences(TEXT, tokenizer, 2, 8)) == 2
    with pytest.raises(EvaluationError, match="longer text"):
        cut_sentences("Only one sentence is here.", tokenizer, 10, 8)


def test_samples_depend_on_the_seed_alone() -> None:
    model = open_model("demo").load_model()
    first = sample_sentences(model, 3, 9, seed=1)
    state = torch.random.get_rng_state()
    assert sample_sentences(model, 3, 9, seed=1) == first
    assert torch.equal(torch.random.get_rng_state(), state)
    assert sample_sentences(model, 3, 9, seed=2) != first
    assert [len(ids) for ids in first.ids] == [9, 9, 9]
    assert len(set(first.ids)) == 3
    model.config.bos_token_id = None
    with pytest.raises(EvaluationError, match="text file"):
        sample_sentences(model, 3, 9, seed=1)
