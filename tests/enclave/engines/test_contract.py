"""What every engine must do, whichever it is."""

import asyncio
import json
import math
from contextlib import aclosing

import pytest
from tests.enclave.engines.conftest import PROMPT, Answer, Bench, answer, settled

from confide.enclave.engines.engine import Chosen, Engine, Message, Piece, Sampling
from confide.enclave.engines.forms import Form
from confide.errors import EngineError, PromptTooLong, RequestRefused


def greedy(tokens: int, stop: tuple[str, ...] = ()) -> Sampling:
    return Sampling(tokens, temperature=0, stop=stop)


def test_facts_name_the_model_and_its_context(bench: Bench) -> None:
    facts = bench.make().facts
    assert (facts.model, facts.context) == ("demo", 512)
    assert facts.quantization in ("f32", "f16")


def test_greedy_answers_are_the_same_each_time_and_come_in_pieces(bench: Bench) -> None:
    first, second = (bench.run(lambda engine: answer(engine, PROMPT, greedy(24))) for _ in range(2))
    assert first == second
    assert (first.tokens, first.finish) == (24, "length")
    assert first.pieces > 12
    assert first.text.startswith(", ")


def test_one_seed_gives_one_answer_and_other_seeds_give_others(bench: Bench) -> None:
    def sample(seed: int | None) -> str:
        sampling = Sampling(12, temperature=1.0, top_p=0.95, top_k=100, seed=seed)
        return bench.run(lambda engine: answer(engine, PROMPT, sampling)).text

    assert sample(7) == sample(7)
    assert len({sample(seed) for seed in (7, 8, 9)}) == 3
    assert len({sample(None) for _ in range(3)}) > 1


def test_top_k_and_top_p_of_nearly_nothing_are_greedy(bench: Bench) -> None:
    expected = bench.run(lambda engine: answer(engine, PROMPT, greedy(8))).text
    for sampling in (Sampling(8, top_k=1, seed=1), Sampling(8, top_p=1e-6, seed=1)):
        assert bench.run(lambda engine, sampling=sampling: answer(engine, PROMPT, sampling)).text == expected


def test_an_answer_ends_before_its_stop_text(bench: Bench) -> None:
    whole = bench.run(lambda engine: answer(engine, PROMPT, greedy(24))).text
    for stop in (whole[9:16], whole[11:14], whole[10:20]):  # wherever tokens begin and end
        stopped = bench.run(lambda engine, stop=stop: answer(engine, PROMPT, greedy(24, (stop, "never said"))))
        assert stopped.text == whole[: whole.index(stop)]
        assert stopped.finish == "stop"
        assert stopped.tokens < 24


async def told(engine: Engine, sampling: Sampling) -> tuple[str, list[Chosen]]:
    pieces = [piece async for piece in engine.generate(PROMPT, sampling)]
    return "".join(piece.text for piece in pieces), [one for piece in pieces for one in piece.chosen]


def test_tokens_are_told_with_their_probabilities(bench: Bench) -> None:
    text, tokens = bench.run(lambda engine: told(engine, Sampling(12, temperature=0, logprobs=3)))
    assert "".join(one.token.text for one in tokens) == text
    assert len(tokens) == 12
    for one in tokens:
        assert len(one.top) == 3
        assert one.token.text == one.top[0].text  # greedy
        assert [top.logprob for top in one.top] == sorted((top.logprob for top in one.top), reverse=True)
        assert 0 < sum(math.exp(top.logprob) for top in one.top) <= 1 + 1e-3
    hot = Sampling(12, temperature=2.0, seed=3, logprobs=0, logit_bias={20: 1.0}, presence_penalty=1.0)
    text, tokens = bench.run(lambda engine: told(engine, hot))
    assert "".join(one.token.text for one in tokens) == text
    assert not any(one.top for one in tokens)
    _, plain = bench.run(lambda engine: told(engine, Sampling(1, temperature=0, logprobs=20)))
    first = {top.text: top.logprob for top in plain[0].top}
    if tokens[0].token.text in first:  # the model's own, whatever the temperature
        assert math.isclose(tokens[0].token.logprob, first[tokens[0].token.text], abs_tol=0.02)
    assert bench.run(lambda engine: told(engine, greedy(3)))[1] == []


def test_nothing_is_told_of_a_stop_text(bench: Bench) -> None:
    whole = bench.run(lambda engine: answer(engine, PROMPT, greedy(24))).text
    stop = whole[9:16]
    text, tokens = bench.run(lambda engine: told(engine, Sampling(24, temperature=0, stop=(stop,), logprobs=0)))
    said = "".join(one.token.text for one in tokens)
    assert said.startswith(text)
    assert len(said.removeprefix(text)) < len(tokens[-1].token.text)  # the token within which it begins, and no other


def test_a_bias_forces_a_token_and_forbids_one(bench: Bench) -> None:
    [king] = bench.run(lambda engine: engine.read(" king")).tokens
    forced = bench.run(lambda engine: answer(engine, PROMPT, Sampling(3, temperature=0, logit_bias={king: 100})))
    assert forced.text == " king" * 3
    [comma] = bench.run(lambda engine: engine.read(",")).tokens
    assert bench.run(lambda engine: answer(engine, PROMPT, greedy(1))).text == ","
    without = bench.run(lambda engine: answer(engine, PROMPT, Sampling(24, temperature=0, logit_bias={comma: -100})))
    assert "," not in without.text
    with pytest.raises(RequestRefused) as refusal:
        bench.run(lambda engine: answer(engine, PROMPT, Sampling(1, logit_bias={9_999_999: 1})))
    assert refusal.value.field == "logit_bias"


@pytest.mark.parametrize("penalty", ["presence_penalty", "frequency_penalty"])
def test_a_penalty_keeps_tokens_from_coming_again(bench: Bench, penalty: str) -> None:
    [king] = bench.run(lambda engine: engine.read(" king")).tokens
    bias = {king: 20.0}  # alone it would come each time
    options = {penalty: 2.0, "logit_bias": bias}
    plain = bench.run(lambda engine: answer(engine, "Once", Sampling(24, temperature=0, logit_bias=bias)))
    penalised = bench.run(lambda engine: answer(engine, "Once", Sampling(24, temperature=0, **options)))
    assert plain.text == " king" * 24
    if penalty == "frequency_penalty":
        assert 4 <= penalised.text.count(" king") < 22  # it grows with each
    else:
        assert penalised.text.count(" king") == 24  # it does not
        counts = [0, 0]
        for weak in (4.0, 5.0, 6.0, 7.0):
            for index, presence in enumerate((0.0, 2.0)):
                sampling = Sampling(24, temperature=0, logit_bias={king: weak}, presence_penalty=presence)
                said = bench.run(lambda engine, sampling=sampling: answer(engine, "Once", sampling)).text
                counts[index] += said.count(" king")
        assert counts[1] < counts[0]


def test_min_p_of_nearly_one_is_greedy(bench: Bench) -> None:
    expected = bench.run(lambda engine: answer(engine, PROMPT, greedy(8))).text
    assert bench.run(lambda engine: answer(engine, PROMPT, Sampling(8, min_p=1.0, seed=1))).text == expected
    free = {bench.run(lambda engine, seed=seed: answer(engine, PROMPT, Sampling(8, seed=seed))).text for seed in (1, 2)}
    assert free - {expected}


PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 8},
        "kind": {"enum": ["king", "wolf"]},
        "sons": {"type": "array", "items": {"type": "integer", "maximum": 99, "minimum": 0}, "maxItems": 3},
    },
    "required": ["name", "kind", "sons"],
    "additionalProperties": False,
}


def test_answers_keep_to_a_schema(bench: Bench) -> None:
    form = Form.of_schema(PERSON, "response_format")
    if "response_format" in bench.make().facts.cannot:
        return
    for seed in range(2):
        sampling = Sampling(120, temperature=1.5, seed=seed, form=form, logprobs=1)
        made = bench.run(lambda engine, sampling=sampling: answer(engine, PROMPT, sampling))
        assert made.finish == "stop"
        person = json.loads(made.text)
        assert list(person) == ["name", "kind", "sons"]
        assert len(person["name"]) <= 8
        assert person["kind"] in ("king", "wolf")
        assert all(type(son) is int and 0 <= son <= 99 for son in person["sons"])
        assert len(person["sons"]) <= 3
    cut = bench.run(lambda engine: answer(engine, PROMPT, Sampling(3, temperature=0, form=form)))
    assert (cut.text[0], cut.finish) == ("{", "length")


@pytest.mark.parametrize(
    "schema",
    [
        {"type": "nothing"},
        {"oneOf": [{"type": "integer"}, {"type": "number"}]},
        {"type": "string", "format": "of my own"},
        {"type": "string", "pattern": "^("},
        {"$ref": "https://example.com/schema"},
        {"$ref": "file:///etc/passwd"},
        {"type": "object", "not": {"required": ["a"]}},
        {"allOf": [{"enum": [*range(first, first + 99)]} for first in range(9)]},
    ],
)
def test_a_schema_that_cannot_be_kept_is_refused_and_not_ignored(bench: Bench, schema: dict[str, object]) -> None:
    if "response_format" in bench.make().facts.cannot:
        return
    form = Form.of_schema(schema, "response_format")
    with pytest.raises(RequestRefused) as refusal:
        bench.run(lambda engine: answer(engine, PROMPT, Sampling(20, temperature=0, form=form)))
    assert refusal.value.field == "response_format"
    assert "passwd" not in str(refusal.value)


def test_the_shortest_of_answers(bench: Bench) -> None:
    one = bench.run(lambda engine: answer(engine, PROMPT, greedy(1)))
    assert (one.tokens, one.finish) == (1, "length")


def test_closing_an_answer_stops_the_work(bench: Bench) -> None:
    async def leave(engine: Engine) -> int:
        async with aclosing(engine.generate(PROMPT, greedy(400))) as pieces:
            assert [await anext(pieces) for _ in range(2)]
        computed = await settled(bench)
        assert (await answer(engine, PROMPT, greedy(2))).tokens == 2
        return computed

    before = bench.computed()
    assert bench.run(leave) - before < 200


def _cosine(one: list[float], other: list[float]) -> float:
    return sum(x * y for x, y in zip(one, other, strict=True))


def test_sixteen_at_once_are_answered_side_by_side(bench: Bench) -> None:
    prompts = [f"{PROMPT} for the {number}th time," for number in range(16)]
    begun: set[str] = set()
    several = asyncio.Event()

    async def watch(engine: Engine, prompt: str) -> Answer:
        text, tokens = "", 0
        async for piece in engine.generate(prompt, greedy(12)):
            begun.add(prompt)
            if len(begun) > 1:
                several.set()
            await asyncio.wait_for(several.wait(), 60)  # none ends before another has begun
            text, tokens = text + piece.text, tokens + piece.tokens
        return Answer(text, tokens, None, 0)

    async def all_at_once(engine: Engine) -> list[Answer]:
        return await asyncio.gather(*(watch(engine, prompt) for prompt in prompts))

    together = bench.run(all_at_once)
    assert all(part.tokens == 12 for part in together)
    alone = [bench.run(lambda engine, prompt=prompt: answer(engine, prompt, greedy(8))).text for prompt in prompts[:4]]
    assert all(part.text.startswith(text) for part, text in zip(together, alone, strict=False))


def test_prompts_that_do_not_fit_are_refused_before_anything_is_computed(bench: Bench) -> None:
    before = bench.computed()
    for prompt, tokens in ((PROMPT * 100, 1), (PROMPT, 510), ("", 1)):
        with pytest.raises(EngineError) as refusal:
            bench.run(lambda engine, prompt=prompt, tokens=tokens: answer(engine, prompt, greedy(tokens)))
        assert isinstance(refusal.value, PromptTooLong) == bool(prompt)
        assert "king" not in str(refusal.value)
    assert bench.computed() == before


def test_the_whole_context_can_be_used(bench: Bench) -> None:
    prompt = PROMPT * 45
    room = 512 - len(bench.run(lambda engine: engine.read(prompt)).tokens)
    assert 0 < room < 100
    filled = bench.run(lambda engine: answer(engine, prompt, Sampling(room, seed=1)))
    assert filled.tokens == room or filled.finish == "stop"


def test_a_conversation_without_a_template_is_told_by_the_plain_one(bench: Bench) -> None:
    said = [Message("user", "Who is there?"), Message("assistant", "A wolf.")]
    prompt = bench.run(lambda engine: engine.read(said))
    assert prompt.text == "User: Who is there?\n\nAssistant: A wolf.\n\nAssistant:"
    assert prompt.tokens == bench.run(lambda engine: engine.read(prompt.text)).tokens
    assert repr(prompt) == "Prompt()"
    made = bench.run(lambda engine: answer(engine, prompt, greedy(5)))  # type: ignore[arg-type]
    assert made == bench.run(lambda engine: answer(engine, prompt.text, greedy(5)))


def test_which_stop_text_ended_an_answer(bench: Bench) -> None:
    whole = bench.run(lambda engine: answer(engine, PROMPT, greedy(24))).text

    async def last(engine: Engine, *stop: str) -> Piece:
        return [piece async for piece in engine.generate(PROMPT, greedy(24, stop))][-1]

    said = whole[9:16]
    assert bench.run(lambda engine: last(engine, said)).stop == said
    assert bench.run(lambda engine: last(engine, "never said", said)).stop == said
    for stop in ((), ("never said",)):
        ended = bench.run(lambda engine, stop=stop: last(engine, *stop))
        assert (ended.finish, ended.stop) == ("length", None)


def test_embeddings_have_length_one_and_their_own_order(bench: Bench) -> None:
    texts = ["The king had three sons.", "The king had two sons.", "Fish swim."]
    kings, also_kings, fish = bench.run(lambda engine: engine.embed(texts))
    assert all(math.isclose(math.hypot(*row), 1, rel_tol=1e-3) for row in (kings, also_kings, fish))
    assert _cosine(kings, also_kings) > _cosine(kings, fish) + 0.01
    with pytest.raises(PromptTooLong):
        bench.run(lambda engine: engine.embed([PROMPT * 100]))
