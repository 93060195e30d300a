"""Which tokens end an answer: all that any file of a model names."""

from typing import Any

import pytest
import torch
from tests.scripted import byte_level, fast, saying

from confide.hybrid.model import HybridModel
from confide.models.ends import end_at_all, end_tokens

SPECIAL = ("<text>", "<turn>", "<more>", "<last>")
TOKENIZER = byte_level(*SPECIAL)
VOCABULARY = TOKENIZER.get_vocab()
SIZE = TOKENIZER.get_vocab_size()
TEMPLATE = "{% for m in messages %}{{ m.content }}{% endfor %}"


def model(said: str, end: int) -> Any:
    """Says `said` and the token `end`, and then goes on, after four tokens."""
    return saying([*(VOCABULARY[letter] for letter in said), end, *[VOCABULARY["z"]] * 9], 4, SIZE, end=0)


def test_the_union_of_all_files() -> None:
    made = model("ho", 1)
    made.generation_config.eos_token_id = [2, 0]
    made.config.eos_token_id = [3, 2]
    assert end_tokens(made, fast(TOKENIZER, eos_token="<turn>")) == (1, 2, 0, 3)
    made.generation_config.eos_token_id = made.config.eos_token_id = None
    assert end_tokens(made, None) == ()
    made.generation_config.eos_token_id = [-1, True, "x", None, 5]
    assert end_tokens(made, None) == (5,)


def test_what_pads_is_one_token_and_the_tokenizers_own() -> None:
    made = model("ho", 1)
    end_at_all(made, fast(TOKENIZER, eos_token="<turn>", pad_token="<more>"))
    assert (made.generation_config.eos_token_id, made.generation_config.pad_token_id) == ([1, 0], 2)


@pytest.mark.parametrize("named_by", ["tokenizer", "generation settings", "configuration"])
@pytest.mark.parametrize("end", [1, 3])
def test_generate_and_chat_end_at_each_of_a_list(named_by: str, end: int) -> None:
    made = model("ho", end)
    tokenizer = fast(TOKENIZER, eos_token=SPECIAL[end] if named_by == "tokenizer" else "<text>")
    tokenizer.chat_template = TEMPLATE
    ends = [0, 2, 1, 3]
    made.generation_config.eos_token_id = ends if named_by == "generation settings" else None
    made.config.eos_token_id = ends if named_by == "configuration" else None
    hybrid = HybridModel(made, tokenizer=tokenizer, progress=False)
    assert hybrid.chat([{"role": "user", "content": "abcd"}], max_new_tokens=8, do_sample=False) == "ho"
    ids = torch.tensor([[10, 11, 12, 13]])
    both = hybrid.generate(ids.repeat(2, 1), attention_mask=torch.ones(2, 4), max_new_tokens=8, do_sample=False)
    assert both[:, 4:].tolist() == [[VOCABULARY["h"], VOCABULARY["o"], end]] * 2
