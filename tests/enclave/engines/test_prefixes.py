"""What is kept of prompts: found again by whoever has its salt, by nobody else, and in nothing but time to be seen."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from tests.enclave.engines.conftest import PROMPT, Bench
from transformers import DynamicCache, MistralConfig

from confide.enclave.engines import transformers_engine
from confide.enclave.engines.engine import Engine, Piece, Sampling
from confide.enclave.engines.prefixes import SECONDS, Names, Prefixes
from confide.enclave.engines.rows import RoomyLayer

MINE, YOURS = b"m" * 32, b"y" * 32
PART = 4
TOKENS = list(range(100, 122))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def cache_of(tokens: Sequence[int], layers: int = 2) -> DynamicCache:
    """One that tells which tokens it has read."""
    numbers = torch.tensor(tokens, dtype=torch.float32)[None, None, :, None]
    return DynamicCache([(numbers + layer, -numbers - layer) for layer in range(layers)])


def keep(prefixes: Prefixes, salt: bytes | None, tokens: Sequence[int]) -> None:
    """As an engine does, part by part."""
    names = Names.of(salt, tokens, PART)
    for index, end in enumerate(range(PART, len(tokens) + 1, PART)):
        prefixes.put(names, index, cache_of(tokens[:end]))


def found(prefixes: Prefixes, salt: bytes | None, tokens: Sequence[int]) -> list[int]:
    """The tokens that need not be read."""
    cache = DynamicCache()
    prefixes.take(Names.of(salt, tokens, PART), cache)
    if not cache.layers:
        return []
    first, second = cache.layers
    assert torch.equal(first.keys, -first.values)
    assert torch.equal(second.keys, first.keys + 1)
    return [int(number) for number in first.keys.flatten()]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def prefixes(clock: Clock) -> Prefixes:
    return Prefixes(1 << 20, clock=clock)


def test_whole_parts_are_found_up_to_where_texts_differ(prefixes: Prefixes) -> None:
    keep(prefixes, MINE, TOKENS)
    assert found(prefixes, MINE, TOKENS) == TOKENS[:20]
    assert found(prefixes, MINE, [*TOKENS, 7, 8, 9]) == TOKENS[:20]
    assert found(prefixes, MINE, TOKENS[:10] + [0] * 12) == TOKENS[:8]
    assert found(prefixes, MINE, [0, *TOKENS[1:]]) == []  # the other parts are the same, and stand elsewhere
    assert found(prefixes, MINE, TOKENS[4:]) == []
    assert found(prefixes, MINE, TOKENS[:9]) == TOKENS[:8]
    assert found(prefixes, MINE, TOKENS[:8]) == TOKENS[:4]  # the last token is read, for its logits
    assert found(prefixes, MINE, TOKENS[:3]) == []
    assert repr(prefixes) == "Prefixes(5, <hidden>)"


def test_who_has_another_salt_or_none_finds_nothing(prefixes: Prefixes) -> None:
    keep(prefixes, MINE, TOKENS)
    for salt in (YOURS, None, b"", MINE[:-1], MINE + b"m"):
        assert found(prefixes, salt, TOKENS) == []
    keep(prefixes, None, TOKENS)
    assert found(prefixes, None, TOKENS) == []


def test_what_is_taken_is_its_takers_own(prefixes: Prefixes) -> None:
    keep(prefixes, MINE, TOKENS)
    cache = DynamicCache()
    cache.layers = [RoomyLayer(), RoomyLayer()]
    prefixes.take(Names.of(MINE, TOKENS, PART), cache)
    assert cache.get_seq_length() == 20
    for layer in cache.layers:
        layer.keys.zero_()
    cache.update(torch.ones(1, 1, 2, 1), torch.ones(1, 1, 2, 1), 0)
    assert found(prefixes, MINE, TOKENS) == TOKENS[:20]
    read = cache_of(TOKENS[:4])
    prefixes.put(Names.of(YOURS, TOKENS, PART), 0, read)
    read.layers[0].keys.zero_()
    assert found(prefixes, YOURS, TOKENS)[:4] == TOKENS[:4]


def test_what_is_unused_goes_in_time(prefixes: Prefixes, clock: Clock) -> None:
    keep(prefixes, MINE, TOKENS)
    keep(prefixes, YOURS, TOKENS)
    clock.now = SECONDS - 1
    assert found(prefixes, MINE, TOKENS[:13]) == TOKENS[:12]
    clock.now = SECONDS + 1
    prefixes.expire()
    assert prefixes.size == 3 * PART * 16
    assert found(prefixes, MINE, TOKENS) == TOKENS[:12]
    assert found(prefixes, YOURS, TOKENS) == []
    clock.now = 3 * SECONDS
    assert found(prefixes, MINE, TOKENS) == []
    assert prefixes.size == 0


def test_no_more_is_kept_than_there_is_room_for_and_the_end_goes_before_the_beginning(clock: Clock) -> None:
    prefixes = Prefixes(4 * PART * 16, clock=clock)
    keep(prefixes, MINE, TOKENS)
    assert prefixes.size == 4 * PART * 16
    assert found(prefixes, MINE, TOKENS) == TOKENS[:16]
    keep(prefixes, YOURS, TOKENS[:9])
    assert found(prefixes, YOURS, TOKENS[:9]) == TOKENS[:8]
    assert found(prefixes, MINE, TOKENS) == TOKENS[:8]
    assert prefixes.size == 4 * PART * 16
    nothing = Prefixes(0)
    keep(nothing, MINE, TOKENS)
    assert (nothing.size, found(nothing, MINE, TOKENS)) == (0, [])
    prefixes.clear()
    assert (prefixes.size, found(prefixes, YOURS, TOKENS[:9])) == (0, [])


def test_caches_that_slide_or_are_no_such_are_not_kept(prefixes: Prefixes) -> None:
    names = Names.of(MINE, TOKENS, PART)
    sliding = DynamicCache(config=MistralConfig(sliding_window=8, num_hidden_layers=1))
    sliding.update(torch.ones(1, 1, PART, 1), torch.ones(1, 1, PART, 1), 0)
    for cache in (sliding, None, object(), cache_of(TOKENS[:3]), cache_of(TOKENS[:5])):
        prefixes.put(names, 0, cache)
    assert prefixes.size == 0


# -- in the engine -------------------------------------------------------------------------------------------------


async def told(engine: Engine, prompt: str, salt: bytes | None, **more: object) -> list[Piece]:
    sampling = Sampling(6, **{"temperature": 0, "logprobs": 3, "salt": salt, **more})  # type: ignore[arg-type]
    return [piece async for piece in engine.generate(prompt, sampling) if not piece.empty]


def cached(pieces: Sequence[Piece]) -> int:
    assert not any(piece.cached for piece in pieces[1:])
    return pieces[0].cached


def said(pieces: Sequence[Piece]) -> list[object]:
    """Texts and probabilities, to the last bit."""
    return [(piece.text, piece.finish, piece.chosen) for piece in pieces]


@pytest.mark.parametrize("more", [{}, {"temperature": 1.1, "seed": 5}], ids=["greedy", "seeded"])
def test_answers_are_the_same_to_the_last_bit_and_the_work_is_less(
    more: dict[str, object], transformers_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL", PART)
    turns = [PROMPT, PROMPT + ", for he was old, that", PROMPT + ", for he was old, that they should"]
    cold = [transformers_bench.run(lambda engine, text=text: told(engine, text, None, **more)) for text in turns]
    salt = repr(more).encode()
    steps = []
    for text, expected in zip(turns, cold, strict=True):
        before = transformers_bench.computed()
        warm = transformers_bench.run(lambda engine, text=text: told(engine, text, salt, **more))
        assert said(warm) == said(expected)
        tokens = len(transformers_bench.run(lambda engine, text=text: engine.read(text)).tokens)
        steps.append((cached(warm), transformers_bench.computed() - before, -(-(tokens - cached(warm)) // PART)))
    assert [one[0] for one in steps] == sorted({one[0] for one in steps})  # more each time
    assert all(computed == parts + 5 for _, computed, parts in steps)
    assert [cached(pieces) for pieces in cold] == [0, 0, 0]


def test_two_users_never_share(transformers_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL", PART)
    secret = PROMPT + ": the treasure lies under the oak"

    def work(salt: bytes | None) -> tuple[int, int]:
        """What was found, and what was computed: by that alone could anybody tell."""
        before = transformers_bench.computed()
        pieces = transformers_bench.run(lambda engine: told(engine, secret, salt))
        return cached(pieces), transformers_bench.computed() - before

    alone = work(b"nobody" * 6)
    assert work(MINE) == alone
    assert work(MINE) > alone
    assert work(MINE)[1] < alone[1]
    assert work(YOURS) == alone
    assert work(None) == alone
    assert work(None) == alone  # and who has none keeps nothing


def test_what_was_read_is_let_go_of_though_nobody_asks_again(
    transformers_bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL", PART)
    monkeypatch.setattr(transformers_engine, "LOOK_SECONDS", 0.0)
    looks: list[str] = []
    expire = Prefixes.expire
    monkeypatch.setattr(Prefixes, "expire", lambda self: looks.append(repr(self)) or expire(self))

    async def ask(engine: Engine) -> None:
        await told(engine, PROMPT, None)
        for _ in range(10):
            await asyncio.sleep(0)
        assert not looks  # nothing is kept of it
        await told(engine, PROMPT, b"t" * 32)
        async with asyncio.timeout(60):
            while len(looks) < 3:  # as long as anything is kept
                await asyncio.sleep(0)

    transformers_bench.run(ask)
