"""What only the transformers engine promises."""

import asyncio
from contextlib import aclosing

import pytest
import torch
from tests.enclave.engines.conftest import PROMPT, Answer, Bench, answer
from transformers import PreTrainedModel

from confide.enclave.engines import transformers_engine
from confide.enclave.engines.engine import Engine, Message, Sampling
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import EngineError
from confide.models.source import open_model


def test_a_seed_gives_the_same_answer_whatever_else_runs(transformers_bench: Bench) -> None:
    sampling = [Sampling(12, temperature=1.2, seed=seed) for seed in range(8)]

    async def together(engine: Engine) -> list[Answer]:
        return await asyncio.gather(*(answer(engine, PROMPT, one) for one in sampling))

    alone = [transformers_bench.run(lambda engine, one=one: answer(engine, PROMPT, one)) for one in sampling]
    assert transformers_bench.run(together) == alone


def test_requests_share_passes_and_are_answered_as_alone(transformers_bench: Bench) -> None:
    prompts = [f"{PROMPT} for the {number}th time," for number in range(8)]

    async def all_at_once(engine: Engine) -> list[Answer]:
        read = [await engine.read(prompt) for prompt in prompts]
        return await asyncio.gather(*(answer(engine, prompt, Sampling(12, 0)) for prompt in read))

    assert transformers_bench.make().facts.settings["batching"] == "together"
    alone = [transformers_bench.run(lambda engine, one=one: answer(engine, one, Sampling(12, 0))) for one in prompts]
    before = transformers_bench.computed()
    assert transformers_bench.run(all_at_once) == alone
    passes = transformers_bench.computed() - before
    assert passes <= 8 + 8 + 11  # a prompt each, and a pass beside each; then those of the last one


def test_greedy_answers_are_those_of_generate(transformers_bench: Bench, demo_model: PreTrainedModel) -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids
    expected = tokenizer.decode(demo_model.generate(ids, max_new_tokens=20, do_sample=False)[0, ids.shape[1] :])
    assert transformers_bench.run(lambda engine: answer(engine, PROMPT, Sampling(20, 0))).text == expected


def test_a_long_prompt_is_read_in_turns(transformers_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(transformers_engine, "PREFILL", 1)

    async def short_beside_long(engine: Engine) -> bool:
        long = asyncio.create_task(answer(engine, PROMPT * 10, Sampling(1, 0)))
        await asyncio.sleep(0)
        await answer(engine, PROMPT, Sampling(2, 0))
        waits = not long.done()
        await long
        return waits

    assert transformers_bench.run(short_beside_long)
    once = transformers_bench.run(lambda engine: answer(engine, PROMPT, Sampling(12, 0))).text
    monkeypatch.undo()
    assert transformers_bench.run(lambda engine: answer(engine, PROMPT, Sampling(12, 0))).text == once


def test_a_failing_model_is_one_requests_trouble(transformers_bench: Bench, demo_model: PreTrainedModel) -> None:
    async def fail_once(engine: Engine) -> None:
        hook = demo_model.register_forward_pre_hook(lambda *_: torch.zeros(1) @ torch.zeros(2))
        with pytest.raises(EngineError, match="RuntimeError"):
            await answer(engine, PROMPT, Sampling(2, 0))
        hook.remove()
        assert (await answer(engine, PROMPT, Sampling(2, 0))).tokens == 2

    transformers_bench.run(fail_once)


def test_closing_ends_what_runs_and_takes_no_more(demo_model: PreTrainedModel) -> None:
    async def close() -> None:
        engine = TransformersEngine(demo_model, open_model("demo").load_tokenizer(), "demo")
        async with aclosing(engine.generate(PROMPT, Sampling(400, 0))) as pieces:
            await anext(pieces)
            await engine.close()
            with pytest.raises(EngineError, match="closed"):
                [piece async for piece in pieces]
        with pytest.raises(EngineError, match="closed"):
            await answer(engine, PROMPT, Sampling(1))

    asyncio.run(close())


def test_a_chat_template_is_followed_and_its_beginning_comes_once(demo_model: PreTrainedModel) -> None:
    tokenizer = open_model("demo").load_tokenizer()
    assert tokenizer is not None
    tokenizer.chat_template = (
        "{{ bos_token }}{% for m in messages %}[{{ m.role }}] {{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}[assistant] {% endif %}"
    )
    engine = TransformersEngine(demo_model, tokenizer, "demo")
    messages = [Message("system", "Be kind."), Message("user", "Hello")]
    read = asyncio.run(engine.read(messages))
    assert read.text == "<|endoftext|>[system] Be kind.\n[user] Hello\n[assistant] "
    asyncio.run(engine.close())
