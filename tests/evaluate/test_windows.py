"""A text becomes windows: nothing is lost or scored twice, and limits hold."""

import pytest
from transformers import GPT2Config, LlamaConfig, MptConfig, PreTrainedTokenizerBase

from confide.errors import EvaluationError
from confide.evaluate.windows import LONGEST_CONTEXT, cut_windows, model_context
from confide.models.source import open_model

TEXT = "The old king called his three sons and said, I will give thee a good one. " * 8


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    found = open_model("demo").load_tokenizer()
    assert found is not None
    return found


def test_windows_hold_the_text_once_and_in_order(tokenizer: PreTrainedTokenizerBase) -> None:
    windows = cut_windows(TEXT, tokenizer, 16)
    tokens = tokenizer(TEXT)["input_ids"]
    assert [token for window in windows.ids for token in window] == tokens[: len(tokens) - (len(tokens) % 16 == 1)]
    assert {len(window) for window in windows.ids[:-1]} == {16}
    assert windows.scored_tokens == sum(map(len, windows.ids)) - len(windows)


def test_a_last_window_of_one_token_has_nothing_to_score(tokenizer: PreTrainedTokenizerBase) -> None:
    assert [len(window) for window in cut_windows(TEXT, tokenizer, 16, max_tokens=33).ids] == [16, 16]
    assert [len(window) for window in cut_windows(TEXT, tokenizer, 16, max_tokens=34).ids] == [16, 16, 2]


def test_the_first_windows_are_used(tokenizer: PreTrainedTokenizerBase) -> None:
    assert cut_windows(TEXT, tokenizer, 16, max_windows=3).ids == cut_windows(TEXT, tokenizer, 16).ids[:3]


class StartsTexts:
    """A tokenizer of letters that begins every text with token 1."""

    bos_token_id = 1

    def __call__(self, text: str, add_special_tokens: bool = True, verbose: bool = True) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(letter) for letter in text]}


def test_every_window_begins_as_texts_do() -> None:
    windows = cut_windows("abcdefg", StartsTexts(), 4)  # type: ignore[arg-type]
    assert windows.ids == ((1, 97, 98, 99), (1, 100, 101, 102), (1, 103))
    assert windows.scored_tokens == 7


def test_one_window_has_no_interval(tokenizer: PreTrainedTokenizerBase) -> None:
    for options in ({"max_tokens": 16}, {"max_windows": 1}):
        with pytest.raises(EvaluationError, match="1 window"):
            cut_windows(TEXT, tokenizer, 16, **options)
    with pytest.raises(EvaluationError, match="0 window"):
        cut_windows("", tokenizer, 16)


def test_the_digest_is_of_tokens_and_of_where_they_are_cut(tokenizer: PreTrainedTokenizerBase) -> None:
    digests = {cut_windows(TEXT, tokenizer, context).digest for context in (16, 17)}
    digests.add(cut_windows(TEXT.replace("king", "queen"), tokenizer, 16).digest)
    assert len(digests) == 3
    assert cut_windows(TEXT, tokenizer, 16).digest in digests


def test_the_context_is_the_models_own_up_to_a_limit() -> None:
    assert model_context(GPT2Config(n_positions=512)) == 512
    assert model_context(MptConfig(max_seq_len=256)) == 256
    assert model_context(LlamaConfig(max_position_embeddings=131_072)) == LONGEST_CONTEXT
    assert model_context(LlamaConfig(max_position_embeddings=131_072), 4096) == 4096
    with pytest.raises(EvaluationError, match="512"):
        model_context(GPT2Config(n_positions=512), 513)
