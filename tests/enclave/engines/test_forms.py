"""Answers with a form: what is accepted, that it ends soon, and that what is whole validates, whatever the model."""

import asyncio
import contextlib
import json
import random
import time
from collections.abc import Callable
from typing import Any

import jsonschema
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.enclave.engines.conftest import PROMPT, Answer, Bench, answer

from confide.enclave.api.calls import BARE, OWN, TAGGED, CallReader, Style, form_of, whole_calls
from confide.enclave.engines import guides
from confide.enclave.engines.engine import Engine, Sampling
from confide.enclave.engines.forms import MAX_BYTES, MAX_COUNT, MAX_DEPTH, MAX_JOINED, MAX_PATTERNS, Form
from confide.enclave.engines.guides import Guide, Guides
from confide.enclave.engines.tools import Offer, Tool
from confide.errors import RequestRefused

Schema = dict[str, Any]
NAMES = ["a", "b c", "é", '"', "type", "\\u0000"]
BYTES = Guides(lambda token: bytes([token]), 256, (), ())
LIKELY = torch.zeros(256)
LIKELY[list(b'"}],0')] = 3.0  # or few walks come to an end


def guide(schema: Schema) -> Guide:
    return asyncio.run(BYTES.guide(Form.of_schema(schema, "response_format")))


def walk(guide: Guide, draw: torch.Generator) -> str | None:
    """A text in this form by chance alone, byte by byte; None for one that is long."""
    made = bytearray()
    while len(made) < 300:
        byte = int(torch.multinomial(guide(LIKELY).softmax(-1), 1, generator=draw))
        guide.add(byte)
        made.append(byte)
        if guide.over:
            return made.decode()
    return None


def any_schema(rng: random.Random, levels: int) -> Schema:
    """A schema of what is offered, that has answers."""
    plain: list[Schema] = [
        {"type": "string", "minLength": rng.randrange(3), "maxLength": 3 + rng.randrange(5)},
        {"type": "string", "pattern": rng.choice(["^[a-c]{2,4}$", "x|y", "^\\w\\s\\d$", "^[^a-z]$", "(no|yes)$"])},
        {"type": "string", "format": rng.choice(["date", "uuid", "ipv4", "time"])},
        {"type": "integer", "minimum": rng.randrange(-50, 5), "exclusiveMaximum": rng.randrange(6, 5000)},
        {"type": "number", "exclusiveMinimum": -1.5, "maximum": rng.choice([0.25, 7, 1e6])},
        {"type": "integer", "multipleOf": rng.choice([1, 3, 7]), "minimum": 0, "maximum": 1000},
        {"enum": [rng.choice(["a", 1, 1.5, None, True, "é\n", {"a": [1]}, []]) for _ in range(3)]},
        {"const": rng.choice(["", 0, -0.5, "\u2028", False])},
        {"type": rng.sample(["boolean", "null", "integer"], 2)},
        {"$ref": "#/$defs/one"},
    ]
    if not levels or rng.random() < 0.2:
        return rng.choice(plain)
    inner = [any_schema(rng, levels - 1) for _ in range(3)]
    names = rng.sample(NAMES, 3)
    deep: list[Schema] = [
        {
            "type": "object",
            "properties": dict(zip(names, inner, strict=True)),
            "required": rng.sample([*names, "more"], 2),
            "additionalProperties": rng.choice([False, True, {"type": "boolean"}]) if rng.random() < 0.5 else True,
        },
        {"type": "object", "additionalProperties": inner[0], "minProperties": 1, "maxProperties": 2},
        {"type": "object", "patternProperties": {"^x[0-9]$": inner[0]}, "additionalProperties": False},
        {"type": "array", "items": inner[0], "minItems": rng.randrange(3), "maxItems": 3},
        {"type": "array", "prefixItems": inner[:2], "items": False, "minItems": 1},
        {"anyOf": inner},
        {"allOf": [{"type": "object", "required": names[:1]}, {"properties": {names[0]: inner[0]}}]},
        {"oneOf": [{"type": "string"}, {"type": "array", "items": inner[0]}]},
        {"title": "T", "description": "d", "default": 1, "anyOf": [inner[0], {"type": "null"}]},
    ]  # fmt: skip
    return rng.choice(deep)


def whole_schema(seed: int) -> Schema:
    rng = random.Random(seed)
    return {**any_schema(rng, 3), "$defs": {"one": {"type": "array", "items": {"type": "boolean"}, "maxItems": 2}}}


def require_valid(text: str, schema: Schema) -> None:
    jsonschema.Draft202012Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize("schemas", [range(30), pytest.param(range(30, 600), marks=pytest.mark.slow)], ids=["", "more"])
def test_what_is_whole_is_valid_by_chance_alone(schemas: range) -> None:
    draw = torch.Generator().manual_seed(1)
    ended = refused = 0
    for seed in schemas:
        schema = whole_schema(seed)
        jsonschema.Draft202012Validator.check_schema(schema)
        try:
            text = walk(guide(schema), draw)
        except RequestRefused:  # such as a required property that `additionalProperties` forbids
            refused += 1
            continue
        if text is not None:
            require_valid(text, schema)
            ended += 1
    assert ended > 0.7 * len(schemas)
    assert refused < 0.1 * len(schemas)


def free(engine: Engine) -> bool:
    return "response_format" not in engine.facts.cannot


def formed(bench: Bench, schema: Schema, seed: int, most: int = 60) -> Answer:
    sampling = Sampling(most, temperature=1.0, seed=seed, form=Form.of_schema(schema, "response_format"))
    return bench.run(lambda engine: answer(engine, PROMPT, sampling))


@pytest.mark.parametrize("schemas", [range(4), pytest.param(range(4, 60), marks=pytest.mark.slow)], ids=["", "more"])
def test_whatever_a_model_says_is_valid_once_it_stops(bench: Bench, schemas: range) -> None:
    if not free(bench.make()):
        pytest.skip("refused by name")
    finishes = []
    for seed in schemas:
        schema = whole_schema(seed)
        made = formed(bench, schema, seed)
        finishes.append(made.finish)
        if made.finish == "stop":
            require_valid(made.text, schema)
        else:
            assert (made.finish, made.tokens) == ("length", 60)
    assert finishes.count("stop") >= len(schemas) // 2


def deep(levels: int) -> Schema:
    schema: Schema = {}
    for _ in range(levels):
        schema = {"items": schema}
    return schema


def chained(links: int) -> Schema:
    """References that ask for more and more at once."""
    defs: Schema = {"0": {"type": "string"}}
    for link in range(1, links):
        defs[str(link)] = {"$ref": f"#/$defs/{link - 1}", "pattern": f".*a.{{{link}}}"}
    return {"$ref": f"#/$defs/{links - 1}", "$defs": defs}


PATTERN = {"type": "string", "pattern": ".*a.{20}"}
TOO_MUCH: dict[str, Schema] = {
    "levels": deep(MAX_DEPTH),
    "bytes": {"description": "y" * MAX_BYTES},
    "values": {"enum": [0] * 5000},
    "number": {"type": "number", "maximum": 1e300},
    "infinity": {"type": "number", "maximum": 10**400},
    "length": {"type": "string", "minLength": MAX_COUNT + 1},
    "items": {"type": "array", "items": {"type": "array", "maxItems": 10**9}},
    "pattern": {"type": "string", "pattern": "a" * 5000},
    "repetitions": {"type": "string", "pattern": "^(a{100}){100}$"},
    "of classes": {"type": "string", "pattern": r"^(?:[^\]a]{70}\(){,60}(?<b>(c|d){2}){2000}"},
    "flags": {"type": "string", "pattern": "(?x)a # [\n(b{1000}){1000}]"},
    "patterns": {"prefixItems": [PATTERN] * (MAX_PATTERNS + 1)},
    "names": {"patternProperties": {f"^{number}": {} for number in range(MAX_PATTERNS + 1)}},
    "conjunction": {"allOf": [{"type": "string", "pattern": f".*a.{{{number}}}"} for number in range(20)]},
    "chain": chained(MAX_JOINED),
    "own words": {"type": "object", "x-guidance": {"whitespace_flexible": True}},
    "twice the same": {"type": "object", "minProperties": 2},
}
TEN = range(10)
HOSTILE: dict[str, Schema] = {
    "long": {"type": "string", "minLength": MAX_COUNT},
    "many": {"type": "array", "minItems": MAX_COUNT},
    "repetitions": {"type": "string", "pattern": "^(a{60}){60}b$"},
    "states": {"type": "string", "pattern": "^(a|b)*a(a|b){24}c$"},
    "unions": {"allOf": [{"anyOf": [{"properties": {f"{a}{b}": {}}} for b in range(9)]} for a in range(50)]},
    "enums": {"allOf": [{"enum": [*range(1000)]}, {"enum": [*map(str, range(1000))]}, {"enum": [*range(999)]}]},
    "both ways": {"$ref": "#/$defs/a", "$defs": {"a": {"allOf": [{"$ref": "#/$defs/a"}, {"$ref": "#"}]}}},
    "tree": {"$ref": "#/$defs/9", "$defs": {str(n): {"prefixItems": [{"$ref": f"#/$defs/{n - 1}"}] * 9} for n in TEN}},
    "properties": {"type": "object", "properties": {f"p{number}": {"type": "string"} for number in range(1000)}},
    "joined": {"allOf": [PATTERN | {"pattern": f".*a.{{{number}}}"} for number in range(3)]},
    "names": {"patternProperties": {f"^{a}.*{b}.*$": {} for a in "abcdefgh" for b in "stuvwxyz"}},
}  # fmt: skip


@pytest.mark.parametrize("name", TOO_MUCH)
def test_a_schema_beyond_the_bounds_is_refused_before_it_is_read(name: str) -> None:
    with pytest.raises(RequestRefused) as refusal:
        Form.of_schema(TOO_MUCH[name], "response_format")
    assert refusal.value.field == "response_format"


@pytest.mark.parametrize("name", HOSTILE)
def test_a_schema_within_them_does_not_take_for_ever(name: str) -> None:
    form = Form.of_schema(HOSTILE[name], "response_format")
    begun = time.process_time()
    try:
        made = asyncio.run(BYTES.guide(form))
        for _ in range(20):
            made.add(int(made(LIKELY).argmax()))
            if made.over:
                break
    except RequestRefused:
        pass
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("text", ["[", "\\", "(", "[\\", "(?P<", "(?<a", "{1", "{1}", "(a){2}"])
def test_a_pattern_is_measured_in_one_go(text: str) -> None:
    begun = time.process_time()
    with contextlib.suppress(RequestRefused):
        Form.of_schema({"pattern": text * (4096 // len(text))}, "a")
    assert time.process_time() - begun < 0.5


def test_what_takes_long_to_compile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guides, "COMPILE_SECONDS", 0.0)
    with pytest.raises(RequestRefused):
        guide({"type": "object"})


def test_an_answer_that_takes_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guides, "LIMITS", guides.LLParserLimits(max_lexer_states=40, verbose_errors=False))
    made = guide({"type": "string", "pattern": "^[ab]*a[ab]{20}c$"})
    made.read('"', ended=False)
    with pytest.raises(RequestRefused):
        made.read("abbabaabab" * 5, ended=False)


def test_a_text_is_held_against_its_form() -> None:
    made = guide({"type": "object", "properties": {"é🙂": {"type": "integer"}}, "required": ["é🙂"]})
    made.read('{"é', ended=False)
    made.read("", ended=False)
    made.read('🙂":1', ended=False)
    with pytest.raises(RequestRefused):
        made.read("", ended=True)  # within it
    made = guide({"type": "array"})
    with pytest.raises(RequestRefused):
        made.read("[] ", ended=False)
    made = guide({"type": "array"})
    made.read("[]", ended=True)
    made.read("", ended=True)


def test_tokens_that_are_no_text_end_an_answer_or_never_come() -> None:
    tokens = [b"<end>", b'"', b"x", b"ab", b"", b'"']  # the last ones: padding, and a second name for one
    made = asyncio.run(
        Guides(tokens.__getitem__, 6, [2], [0]).guide(Form.of_schema({"type": "string", "maxLength": 4}, "a"))
    )

    def allowed() -> set[int]:
        return {token for token, logit in enumerate(made(torch.zeros(8)).tolist()) if logit == 0}

    assert allowed() == {5}
    made.add(5)
    assert {3, 5} <= allowed() <= {1, 3, 5}
    made.add(3)
    made.add(5)
    assert made.over


def test_a_model_without_the_tokens_for_a_form() -> None:
    made = asyncio.run(Guides(lambda _: b"a", 3, (), ()).guide(Form.of_schema({"type": "object"}, "a")))
    with pytest.raises(RequestRefused):
        made(torch.zeros(3))


def test_llama_cpp_that_answers_freely_is_found_out(gguf_bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it does where it cannot compile a grammar."""
    complete = gguf_bench.counting.handle_completions

    def freely(request: dict[str, Any], deliver: Callable[[dict[str, Any]], bool]) -> None:
        complete(request | {"grammar": ""}, deliver)

    monkeypatch.setattr(gguf_bench.counting, "handle_completions", freely)
    with pytest.raises(RequestRefused):
        formed(gguf_bench, {"type": "object"}, 0)


DEFS = {"w": {"type": "string", "maxLength": 3}}
LOOK_UP = {"type": "object", "properties": {"w": {"$ref": "#/$defs/w"}}, "required": ["w"], "$defs": DEFS}
SEND = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 9}}, "required": ["n"]}
CLOSED = {"additionalProperties": False}
TOOLS = (Tool("look_up", parameters=LOOK_UP | CLOSED), Tool("send", parameters=SEND | CLOSED))


@pytest.mark.parametrize("several", [True, False])
def test_a_call_that_must_be_made_keeps_to_its_function(bench: Bench, several: bool) -> None:
    if not free(bench.make()):
        pytest.skip("refused by name")
    offer = Offer(TOOLS, must=True, several=several)
    sampling = Sampling(60, temperature=1.0, seed=3, form=form_of(offer, OWN, "tools"))
    made = bench.run(lambda engine: answer(engine, PROMPT, sampling))
    reader = CallReader(OWN, offer)
    text, parts = reader.read(made.text)
    calls = whole_calls(parts)
    assert calls
    assert not text
    for call in calls:
        require_valid(call.arguments, {tool.name: dict(tool.parameters) for tool in TOOLS}[call.name])
    if not several:
        assert (made.finish, len(calls)) == ("stop", 1)


@pytest.mark.parametrize(
    ("style", "text", "kept"),
    [
        (TAGGED, "<b> and <tool_c", True),
        (TAGGED, 'Well: <tool_call>\n{"name": "send", "arguments": {"n":7}}\n</tool_call>\n<tool_call>', True),
        (TAGGED, '<tool_call>{"name":"look_up","arguments":{"w":"abc"}}</tool_call> So.', True),
        (TAGGED, '<tool_call>{"name": "rm', False),
        (TAGGED, '<tool_call>{"name": "send", "arguments": {"n":77', False),
        (TAGGED, '<tool_call>{"name": "look_up", "arguments": {"w":"abcd', False),
        (TAGGED, "<tool_call>send", False),
        (TAGGED, '<tool_call>{"name": "send", "arguments": {"n":7}} or', False),
        (BARE, "Well, {1}", True),
        (BARE, '{"name": "send", "parameters": {"n":7}}; {"name":"look_up","parameters":{"w":"abc"}}', True),
        (BARE, '{"name": "send", "parameters": {"n":77', False),
        (BARE, '{"name": "send", "arguments": ', False),
        (BARE, ' {"name": "send", "parameters": {"n":77', False),
    ],
)
def test_calls_within_a_text_keep_to_their_functions(style: Style, text: str, kept: bool) -> None:
    made = asyncio.run(BYTES.guide(form_of(Offer(TOOLS), style, "tools")))
    if kept:
        return made.read(text, ended=False)
    with pytest.raises(RequestRefused):
        made.read(text, ended=False)


WORDS = st.sampled_from(["type", "properties", "items", "enum", "anyOf", "allOf", "oneOf", "$ref", "$defs", "pattern",
                         "minimum", "required", "additionalProperties", "const", "format", "minLength", "maxItems",
                         "patternProperties", "multipleOf", "prefixItems", "minProperties", "a"])  # fmt: skip
VALUES = st.recursive(
    st.sampled_from(["string", "object", "array", "integer", "#/$defs/a", "#", "a+", "date", "[", None, True, -1, 1e9]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=4),
    max_leaves=10,
)  # fmt: skip


@given(schema=st.dictionaries(WORDS, VALUES, max_size=4))
@settings(deadline=None, max_examples=50)
def test_whatever_is_sent_for_a_schema_is_kept_or_refused(schema: Schema) -> None:
    with contextlib.suppress(RequestRefused):
        made = guide(schema)
        for _ in range(10):
            made.add(int(made(LIKELY).argmax()))
            if made.over:
                return
