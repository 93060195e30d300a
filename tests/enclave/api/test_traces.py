"""Traces say when and how long, and with what outcome; never what, of whom, or how many tokens."""

import json
import re
from pathlib import Path
from typing import Any

import httpx
import pytest

from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.public import public_app
from confide.enclave.api.traces import Traces
from confide.enclave.api.users import Users
from confide.enclave.workload import Workload
from confide.errors import EngineError, InvalidSettings
from confide.ledger.ledger import Ledger
from confide.ledger.licences import licence_book

from ..fake_engine import FakeEngine
from ..serving import serving

SECRET = "xylophone"
NUMBERS = re.compile(r"\d+")


def spans(path: Path) -> list[dict[str, Any]]:
    """All that were written, as OTLP has them."""
    written = [json.loads(line) for line in path.read_text().splitlines()]
    scopes = [scope for one in written for resource in one["resourceSpans"] for scope in resource["scopeSpans"]]
    return [span for scope in scopes for span in scope["spans"]]


def attributes(span: dict[str, Any]) -> dict[str, str]:
    return {one["key"]: one["value"]["stringValue"] for one in span.get("attributes", ())}


def test_a_trace_has_its_steps_and_nothing_of_the_request(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", f"leak={SECRET}")
    path, engine = tmp_path / "traces.jsonl", FakeEngine()
    shown = Serving(engine, users=Users(Ledger(tmp_path / "state"), bytes(32)), traces=Traces(path))
    with serving(public_app(Workload(None), shown, tls_ends_here=True)) as url:  # type: ignore[arg-type]
        with licence_book(tmp_path / "state") as book:
            licence, key = book.create(f"{SECRET} Ltd")
        headers = {
            "authorization": f"Bearer {key}",
            "x-request-id": SECRET,
            "traceparent": f"00-{'ab' * 16}-{'cd' * 8}-01",
            "baggage": f"a={SECRET}",
        }
        asked = {"model": "echo", "prompt": f"{SECRET} " * 537, "stop": [SECRET + "s"]}
        for fields in ({}, {"stream": True, "service_tier": "flex"}, {"model": SECRET}):
            httpx.post(f"{url}/v1/completions?q={SECRET}", json=asked | fields, headers=headers, timeout=60)
        engine.broken = EngineError(f"It failed at {SECRET}; look into the log.")
        httpx.post(f"{url}/v1/completions", json=asked, headers=headers, timeout=60)
        httpx.post(f"{url}/v1/completions", json=asked, headers={"authorization": f"Bearer {SECRET}"}, timeout=60)
    text, found = path.read_text(), spans(path)
    for hidden in (SECRET, key, licence.id.hex(), "abababab", str(tmp_path)):
        assert hidden not in text
    assert not re.search(r"\b53[79]\b", text)  # tokens; within an id the digits may stand
    roots = [span for span in found if not span.get("parentSpanId")]
    assert len({span["traceId"] for span in roots}) == len(roots) == 5
    steps = [[one["name"] for one in found if one.get("parentSpanId") == root["spanId"]] for root in roots]
    whole = ["ledger", "queue", "ledger", "prefill", "decode"]
    assert steps == [whole, whole, ["ledger", "queue"], ["ledger", "queue", "ledger", "prefill", "decode"], ["ledger"]]
    said = [attributes(root) for root in roots]
    assert {one["http.route"] for one in said} == {"/v1/completions"}
    assert [one["http.response.status_code"] for one in said] == ["200", "200", "404", "502", "401"]
    assert [one["confide.tier"] for one in said] == ["interactive", "batch", *["interactive"] * 3]
    failed = [attributes(span)["error.type"] for span in found if "error.type" in attributes(span)]
    assert failed == ["api-key-refused"]
    names = {name for span in found for name in attributes(span)}
    assert names == {"http.route", "http.response.status_code", "confide.tier", "error.type"}
    assert not any(span.get("events") or span.get("links") for span in found)
    for span in found:
        assert 0 < int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        assert set(span) <= {
            "traceId", "spanId", "parentSpanId", "name", "kind", "startTimeUnixNano", "endTimeUnixNano", "attributes",
            "status", "flags", "droppedAttributesCount", "traceState", "droppedEventsCount", "droppedLinksCount",
        }  # fmt: skip
        assert not span.get("status", {}).get("message")


def test_answers_of_every_length_make_the_same_trace(tmp_path: Path) -> None:
    """But for its times: no count of anything, by whatever name."""
    shapes = []
    for words in (1, 700):
        path = tmp_path / f"{words}.jsonl"
        traces = Traces(path)
        with serving(api_app(Serving(FakeEngine(), traces=traces))) as url:
            httpx.post(f"{url}/generate", json={"query": "word " * words}, timeout=60)
        traces.close()
        shapes.append([(span["name"], attributes(span)) for span in spans(path)])
    assert shapes[0] == shapes[1]


def test_a_file_that_others_could_have_made_is_not_written(tmp_path: Path) -> None:
    (tmp_path / "open").touch(0o644)
    for path in (tmp_path / "open", tmp_path / "nowhere" / "file"):
        with pytest.raises(InvalidSettings):
            Traces(path)
