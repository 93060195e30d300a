"""KV caches of conversations: which one a prompt goes on with, and what is forgotten."""

import torch
from transformers import DynamicCache, GPT2Config, MistralConfig

from confide.hybrid.conversations import CONVERSATIONS, KeptConversations

CONFIG = GPT2Config()


def cache(tokens: int) -> DynamicCache:
    made = DynamicCache()
    made.update(torch.arange(float(tokens)).view(1, 1, tokens, 1), torch.zeros(1, 1, tokens, 1), 0)
    return made


def held(found: DynamicCache | None) -> list[float]:
    assert found is not None
    length = int(found.get_seq_length())
    return found.layers[0].keys.flatten().tolist() if length else []


def test_a_conversation_goes_on_with_its_own_cache() -> None:
    kept = KeptConversations(CONFIG, 100)
    kept.put([1, 2, 3, 4, 5], cache(4))  # the last token has not been read
    assert kept.tokens == 4
    assert held(kept.take([1, 2, 3, 4, 5, 6])) == [0, 1, 2, 3]
    assert kept.tokens == 0
    assert held(kept.take([1, 2, 3, 4, 5, 6])) == []


def test_a_branch_leaves_the_other_conversation_as_it_was() -> None:
    kept = KeptConversations(CONFIG, 100)
    kept.put([1, 2, 3, 4, 5, 6], cache(6))
    branch = kept.take([1, 2, 9])
    assert held(branch) == [0, 1]
    branch.crop(-1)
    assert held(kept.take([1, 2, 3, 4, 5, 6, 7])) == [0, 1, 2, 3, 4, 5]


def test_the_last_token_of_a_prompt_is_always_read() -> None:
    kept = KeptConversations(CONFIG, 100)
    kept.put([1, 2, 3], cache(3))
    assert held(kept.take([1, 2, 3])) == [0, 1]


def test_the_oldest_go_first() -> None:
    kept = KeptConversations(CONFIG, 10)
    kept.put([1, 2, 3, 4], cache(4))
    kept.put([5, 6, 7, 8], cache(4))
    kept.put([9, 10, 11, 12], cache(4))
    assert kept.tokens == 8
    assert held(kept.take([1, 2, 3, 4, 5])) == []
    kept.put(list(range(11)), cache(11))  # too long to be kept at all
    assert kept.tokens == 8
    many = KeptConversations(CONFIG, 1000)
    for first in range(CONVERSATIONS + 3):
        many.put([first, 1], cache(2))
    assert many.tokens == 2 * CONVERSATIONS


def test_nothing_said_is_in_a_representation() -> None:
    kept = KeptConversations(CONFIG, 100)
    kept.put([123, 456], cache(2))
    assert repr(kept) == "KeptConversations(1, <hidden>)"


def test_a_cache_that_slides_is_not_kept() -> None:
    kept = KeptConversations(MistralConfig(sliding_window=4), 100)
    kept.put([1, 2, 3], cache(2))
    assert kept.tokens == 0
    assert kept.take([1, 2, 3]) is None
