"""What askers send to be held to, and what models write: JSON schemas, and calls of tools."""

import asyncio
import functools
import json
from collections.abc import Callable
from typing import Any

import torch

from confide.enclave.api.calls import BARE, LISTED, NAMED, OWN, TAGGED, CallReader, form_of, whole_calls
from confide.enclave.api.schemas import ChatRequest, parse
from confide.enclave.engines.forms import Form
from confide.enclave.engines.guides import Guides
from confide.enclave.engines.tools import CallPart, Offer, Tool

STYLES = (TAGGED, LISTED, NAMED, BARE, OWN)
OFFER = Offer((Tool("send"), Tool("look_up")))
STEPS = 8


@functools.cache
def _guides() -> Guides:
    return Guides(lambda token: bytes([token]), 256, (), ())


def _follow(form: Form) -> None:
    guide = asyncio.run(_guides().guide(form))
    for step in range(STEPS):
        guide.add(int(guide(torch.arange(256.0) * (-1) ** step).argmax()))
        if guide.over:
            return


def schema(data: bytes) -> None:
    """A schema of `response_format`, and of a function, and the first letters of an answer."""
    body = (
        b'{"model":"","messages":[{"role":"user","content":""}],"response_format":{"type":"json_schema","json_schema":'
    )
    asked = parse(body + b'{"name":"a","schema":' + data + b"}}}", ChatRequest)
    found: Any = asked.response_format
    if asked.response_format is None or found.json_schema.schema is None:
        return
    _follow(Form.of_schema(found.json_schema.schema, "response_format"))
    tool = Tool("send", parameters=found.json_schema.schema)
    _follow(form_of(Offer((tool,)), OWN, "tools"))


def calls(data: bytes) -> None:
    """An answer in one of the styles, whole and letter by letter."""
    style, text = STYLES[data[0] % len(STYLES)] if data else TAGGED, data[1:].decode(errors="replace")
    readings = []
    for cuts in (len(text) or 1, 1):
        reader, shown = CallReader(style, OFFER), ""
        parts: list[CallPart] = []
        for start in range(0, len(text), cuts):
            more, found = reader.read(text[start : start + cuts])
            shown += more
            parts += found
        readings.append((shown + reader.rest(), [(call.name, call.arguments) for call in whole_calls(parts)]))
    if readings[0] != readings[1]:
        raise AssertionError("an answer is read differently where it is cut")
    for name, arguments in readings[0][1]:
        if name not in ("send", "look_up") or not isinstance(json.loads(arguments), dict):
            raise AssertionError("something was taken for a call")


def _seeds_of_schema() -> list[bytes]:
    return [
        b'{"type":"object","properties":{"a":{"type":"string","pattern":"^(a|b){2,3}[^c]$","maxLength":9},'
        b'"b":{"$ref":"#/$defs/b"}},"required":["a"],"additionalProperties":false,"$defs":{"b":{"enum":[1,null,"x"]}}}',
        b'{"anyOf":[{"type":"array","items":{"type":"integer","minimum":-3,"multipleOf":2},"minItems":1},'
        b'{"allOf":[{"format":"date"},{"type":"string"}]}],"title":"t"}',
        b'{"type":"object","patternProperties":{"^x":{"type":["number","boolean"]}},"maxProperties":2}',
    ]


def _seeds_of_calls() -> list[bytes]:
    call = b'{"name": "send", "arguments": {"a": "\\"}"}}'
    return [
        b"\x00Yes <tool_call>\n" + call + b"\n</tool_call>\n<tool_call>" + call,
        b"\x01[TOOL_CALLS] [" + call + b", " + call + b"]",
        b'\x02[TOOL_CALLS]look_up[ARGS]{"b": [1]}[TOOL_CALLS]send[ARGS]{}',
        b'\x03<|python_tag|>{"name": "send", "parameters": {}}; ' + call,
        b"\x04[" + call + b"]",
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"schema": schema, "calls": calls}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"schema": _seeds_of_schema, "calls": _seeds_of_calls}
