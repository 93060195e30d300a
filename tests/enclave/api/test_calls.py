"""Calls of tools: as families of models write them, wherever their text is cut, and as the API gives and takes them."""

import json
import random
from collections.abc import Iterator
from typing import Any

import openai
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel
from starlette.testclient import TestClient
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving
from tests.scripted import byte_level, fast

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.calls import (
    BARE,
    LISTED,
    MAX_CALLS,
    NAMED,
    OWN,
    TAGGED,
    CallReader,
    Style,
    style_of,
    told_plainly,
    whole_calls,
)
from confide.enclave.engines.engine import Message
from confide.enclave.engines.prompts import Prompts
from confide.enclave.engines.tools import Offer, Tool, ToolCall
from confide.errors import RequestRefused

CHAT = "/v1/chat/completions"
OFFER = Offer((Tool("look_up"), Tool("send")))
A, B = '{"word": "a {\\"} b"}', "{}"
HERMES = "{% if tools %}<tool_call>{{ tools }}</tool_call>{% endif %}"


def read(style: Style, text: str, offer: Offer = OFFER, cuts: int = 1) -> tuple[str, list[tuple[str, str]]]:
    """Text and calls of a whole answer that comes in parts of so many letters."""
    reader, shown, parts = CallReader(style, offer), "", []
    for start in range(0, len(text), cuts):
        more, calls = reader.read(text[start : start + cuts])
        shown += more
        parts += calls
    shown += reader.rest()
    return shown, [(call.name, call.arguments) for call in whole_calls(parts)]


BOTH = [("look_up", A), ("send", B)]
WRITTEN = {
    "tags": (TAGGED, f'Well.<tool_call>\n{{"name": "look_up", "arguments": {A}}}\n</tool_call>\n<tool_call>\n'
             f'{{"arguments": {B}, "name": "send"}}\n</tool_call>\n', "Well.", BOTH),
    "text after": (TAGGED, f'<tool_call>{{"name": "send", "arguments": {B}}}</tool_call>\n So.', "\n So.", BOTH[1:]),
    "no end": (TAGGED, f'<tool_call>{{"name": "send", "arguments": {B}}}', "", BOTH[1:]),
    "list": (LISTED, f'[TOOL_CALLS] [{{"name": "look_up", "arguments": {A}, "id": "1"}}, {{"name": "send", '
             f'"arguments": {B}}}]', "", BOTH),
    "text, list": (LISTED, f'Aha [TOOL_CALLS][{{"name": "send", "arguments": {B}}}]', "Aha ", BOTH[1:]),
    "names": (NAMED, f"[TOOL_CALLS]look_up[ARGS]{A}[TOOL_CALLS]send[ARGS]{B}", "", BOTH),
    "llama": (BARE, f'{{"name": "send", "parameters": {B}}}', "", BOTH[1:]),
    "llama, two": (BARE, f'<|python_tag|>{{"name": "look_up", "parameters": {A}}}; {{"name": "send", '
                   f'"parameters": {B}}}', "", BOTH),
    "llama, text": (BARE, "Well, {}", "Well, {}", []),
    "own": (OWN, f'[{{"name":"look_up","arguments":{A}}},{{"name":"send","arguments":{B}}}]', "", BOTH),
}  # fmt: skip
TEXTS = {
    "no JSON": (TAGGED, "<tool_call>look_up()</tool_call>"),
    "not offered": (TAGGED, '<tool_call>{"name": "rm", "arguments": {}}</tool_call>'),
    "no object": (TAGGED, '<tool_call>{"name": "send", "arguments": [1]}</tool_call>'),
    "text within": (TAGGED, '<tool_call>{"name": "send", "arguments": "{}"}</tool_call>'),
    "cut": (TAGGED, '<tool_call>{"name": "send", "arguments": {"a": '),
    "half a tag": (TAGGED, "1 <tool_c"),
    "other tags": (TAGGED, "[TOOL_CALLS][]"),
    "a list of others": (LISTED, '[TOOL_CALLS][{"name": "rm", "arguments": {}}]'),
    "only a tag": (LISTED, "[TOOL_CALLS]"),
    "a name of others": (NAMED, "[TOOL_CALLS]rm[ARGS]{}"),
    "no name": (NAMED, "[TOOL_CALLS]{}"),
    "JSON": (BARE, '{"answer": 42} and so on'),
    "python": (BARE, "<|python_tag|>print(1)"),
    "spaces": (BARE, " \n "),
    "deep": (BARE, '{"name": ' + "[" * 5000),
    "deep and whole": (BARE, '{"name": "send", "parameters": {"a":' + "[" * 3000 + "]" * 3000 + "}}"),
}


@pytest.mark.parametrize("cuts", [1, 3, 1000])
@pytest.mark.parametrize("name", WRITTEN)
def test_calls_are_read_wherever_they_are_cut(name: str, cuts: int) -> None:
    style, text, shown, calls = WRITTEN[name]
    assert read(style, text, cuts=cuts) == (shown, calls)


@pytest.mark.parametrize("cuts", [1, 1000])
@pytest.mark.parametrize("name", TEXTS)
def test_what_is_no_call_stays_text(name: str, cuts: int) -> None:
    style, text = TEXTS[name]
    assert read(style, text, cuts=cuts) == (text, [])


PIECES = st.sampled_from(
    ["<tool_call>", "</tool_call>", "[TOOL_CALLS]", "[ARGS]", "<|python_tag|>", "send", "look_up", '{"name": "send", ',
     '"arguments": {}', '"parameters": {"a": "}"}', "}", "{", "[", "]", ",", ";", '"', "\\", "\n", " ", "é", "<to"]
)  # fmt: skip


@given(st.sampled_from([TAGGED, LISTED, NAMED, BARE, OWN]), st.lists(PIECES, max_size=14), st.randoms())
@settings(deadline=None, max_examples=100)
def test_whatever_a_model_writes_is_read_the_same_however_it_comes(
    style: Style, pieces: list[str], rng: random.Random
) -> None:
    text = "".join(pieces)
    whole = read(style, text, cuts=max(1, len(text)))
    assert read(style, text) == whole
    assert read(style, text, cuts=rng.randrange(1, 9)) == whole
    assert all(name in ("send", "look_up") and isinstance(json.loads(said), dict) for name, said in whole[1])
    if not whole[1]:
        assert whole[0] == text  # nothing is lost


def test_one_call_alone_and_not_too_many() -> None:
    text = f'<tool_call>{{"name": "send", "arguments": {B}}}</tool_call>' * 40
    assert read(TAGGED, text + "x", Offer(OFFER.tools, several=False)) == ("", [("send", B)])
    shown, calls = read(TAGGED, text)
    assert len(calls) == MAX_CALLS
    assert shown.count("send") == 40 - MAX_CALLS


@pytest.mark.parametrize(
    ("template", "style"),
    [
        (HERMES, TAGGED),
        ("{{ '[AVAILABLE_TOOLS]' }}[TOOL_CALLS]", LISTED),
        ("[TOOL_CALLS]{{ name }}[ARGS]", NAMED),
        ("[TOOL_CALLS]{{ name }}[CALL_ID]1[ARGS]", None),
        ("""'in the format {"name": function name, "parameters": dictionary of argument name and its value}.'""", BARE),
        ("<tool_call>\n<function=a>\n<parameter=b>\n</tool_call>", None),
        ("<tool_call>{{ name }}\n<arg_key></tool_call>", None),
        ("<|im_start|>{{ message }}", None),
        ("", None),
    ],
)  # fmt: skip
def test_the_template_says_how_calls_are_written(template: str, style: Style | None) -> None:
    assert style_of(template) is style


def test_a_conversation_that_tells_of_tools_itself() -> None:
    turns = [
        Message("system", "Be brief."),
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("1", "send", '{"a":1}'),)),
        Message("tool", "done", call_id="1"),
    ]
    told = told_plainly(turns, OFFER)
    assert [turn.role for turn in told] == ["system", "user", "assistant", "user"]
    assert told[0].content.startswith("Be brief.\n")
    assert '"name":"look_up"' in told[0].content
    assert told[2].content == '[{"id":"1","name":"send","arguments":{"a":1}}]'
    assert "done" in told[3].content
    assert told_plainly(turns[1:2], OFFER)[0].role == "system"


def test_a_template_gets_calls_and_results_as_it_expects_them() -> None:
    tokenizer = fast(byte_level())
    tokenizer.chat_template = (
        "{% for t in tools %}{{ t.function.name }}:{{ t.function.parameters.type }} {% endfor %}"
        "{% for m in messages %}{{ m.role }}{{ m.name }}{% for c in m.tool_calls %}"
        "{{ c.function.name }}({{ c.function.arguments.a.b }}){% endfor %}{{ m.content }};{% endfor %}"
    )
    turns = [
        Message("user", "hi"),
        Message("assistant", "", (ToolCall("1", "send", '{"a":{"b":7}}'),)),
        Message("tool", "done", call_id="1"),
    ]
    prompts = Prompts(tokenizer, 512, by_text=False)
    told = prompts.render(turns, OFFER.tools)
    assert told == "look_up:object send:object userhi;assistantsend(7);toolsenddone;"
    with pytest.raises(RequestRefused):
        prompts.render([Message("assistant", "", (ToolCall("1", "send", "[" * 100_000),))])
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(RequestRefused) as refusal:
        prompts.render(turns, OFFER.tools)
    assert refusal.value.field == "tools"


WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
SAID = 'I see. <tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
MESSAGES: list[Any] = [{"role": "user", "content": "hi"}]


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(template=HERMES, says=SAID)


@pytest.fixture(scope="module")
def client(engine: FakeEngine) -> Iterator[openai.OpenAI]:
    with serving(api_app(Serving(engine))) as url:
        with openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0) as client:
            yield client


def test_a_call_and_its_result(client: openai.OpenAI, engine: FakeEngine) -> None:
    tools: Any = [WEATHER]
    choice = client.chat.completions.create(model="echo", messages=MESSAGES, tools=tools).choices[0]
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "I see. ")
    assert choice.message.tool_calls is not None
    (call,) = choice.message.tool_calls
    assert call.type == "function"
    assert (call.function.name, call.function.arguments) == ("weather", '{"city": "Ulm"}')
    assert "weather" in engine.prompts[-1]
    assert "<tool_call>" in engine.asked[-1].markers
    result = {"role": "tool", "tool_call_id": call.id, "content": "rain"}
    again: Any = [*MESSAGES, choice.message, result]
    assert client.chat.completions.create(model="echo", messages=again, tools=tools).choices[0].message.tool_calls
    assert "tool: rain" in engine.prompts[-1]


def test_a_call_as_a_stream(client: openai.OpenAI) -> None:
    tools: Any = [WEATHER]
    with client.chat.completions.stream(model="echo", messages=MESSAGES, tools=tools) as stream:
        events = list(stream)
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls"
    assert final.message.content == "I see. "
    assert final.message.tool_calls is not None
    assert [call.function.arguments for call in final.message.tool_calls] == ['{"city": "Ulm"}']
    assert any(event.type == "tool_calls.function.arguments.done" for event in events)


def test_without_an_offer_what_looks_like_a_call_is_text(client: openai.OpenAI) -> None:
    for more in ({}, {"tools": [WEATHER], "tool_choice": "none"}, {"tools": []}):
        options: Any = more
        choice = client.chat.completions.create(model="echo", messages=MESSAGES, **options).choices[0]
        assert (choice.message.content, choice.finish_reason, choice.message.tool_calls) == (SAID, "stop", None)


class City(BaseModel):
    """Of a city."""

    city: str


def test_the_sdks_own_helpers(client: openai.OpenAI, engine: FakeEngine) -> None:
    tool = openai.pydantic_function_tool(City, name="weather")
    parsed = client.chat.completions.parse(model="echo", messages=MESSAGES, tools=[tool]).choices[0].message
    assert parsed.tool_calls is not None
    assert parsed.tool_calls[0].function.parsed_arguments == City(city="Ulm")
    form = engine.asked[-1].form  # it is strict
    assert form is not None
    assert "<tool_call>" in form.grammar


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "weather"}}])
@pytest.mark.parametrize("template", ["", HERMES])
def test_a_call_that_must_be_made(choice: Any, template: str) -> None:
    engine = FakeEngine(template=template, says='[{"name":"weather","arguments":{"city":"Ulm"}}]')
    client = TestClient(api_app(Serving(engine)))
    other = {"type": "function", "function": {"name": "other"}}
    asked = {"model": "echo", "messages": MESSAGES, "tools": [WEATHER, other], "tool_choice": choice}
    made = client.post(CHAT, json=asked).json()["choices"][0]
    assert made["message"]["content"] is None
    assert made["message"]["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city":"Ulm"}'}
    form = engine.asked[-1].form
    assert form is not None
    assert '"required":["city"]' in form.grammar
    assert ("other" in form.grammar) == (choice == "required")
    assert "weather" in engine.prompts[-1]


@pytest.mark.parametrize(
    ("engine", "change", "param"),
    [
        (FakeEngine(), {"tools": [WEATHER]}, "tools"),
        (FakeEngine(template="[TOOL_CALLS]"), {"tools": [WEATHER]}, "tools"),  # which tells it of none
        (FakeEngine(cannot=frozenset({"response_format"})), {"tools": [WEATHER], "tool_choice": "required"},
         "tool_choice"),
        (FakeEngine(), {"tool_choice": "required"}, "tool_choice"),
        (FakeEngine(), {"tools": [WEATHER, WEATHER]}, "tools"),
        (FakeEngine(), {"tools": [WEATHER], "tool_choice": {"type": "function", "function": {"name": "b"}}},
         "tool_choice"),
        (FakeEngine(template=HERMES), {"tools": [WEATHER], "response_format": {"type": "json_object"}}, "tools"),
        (FakeEngine(), {"tools": [WEATHER], "tool_choice": "required", "stop": "a"}, "stop"),
        (FakeEngine(), {"tools": [{"type": "web_search"}]}, "tools[0].type"),
        (FakeEngine(), {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        (FakeEngine(), {"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
         "tools[0].function"),
        (FakeEngine(), {"messages": [{"role": "tool", "content": "a"}]}, "messages[0]"),
        (FakeEngine(), {"messages": [{"role": "user", "content": "a", "tool_call_id": "a"}]}, "messages[0]"),
        (FakeEngine(), {"messages": [{"role": "assistant", "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "a", "arguments": "[]"}}]}]},
         "messages[0].tool_calls[0].function"),
        (FakeEngine(template="[TOOL_CALLS] tools", cannot=frozenset({"response_format"})),
         {"tools": [{"type": "function", "function": {"name": "a", "strict": True}}]}, "tools"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_by_name(engine: FakeEngine, change: dict[str, Any], param: str) -> None:
    client = TestClient(api_app(Serving(engine)), raise_server_exceptions=False)
    refused = client.post(CHAT, json={"model": "echo", "messages": MESSAGES} | change)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, param)
    assert not engine.asked
