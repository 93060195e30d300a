"""The proxy's gate: who may ask by which name, and what questions there are."""

import asyncio
import json
import logging
import traceback
from collections.abc import Iterator, Sequence
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope
from tests import hostile
from tests.proxy.local import PAGE, STOP, all_ready, proxied, settled

from confide.enclave.api.problems import problem_response
from confide.errors import (
    PASSING,
    REFUSING,
    ApiKeyRefused,
    AttestationRefused,
    BudgetExhausted,
    ChannelBroken,
    ConfideError,
    EvidenceUnavailable,
    IntegrityError,
    KeyChanged,
    PromptTooLong,
    ReceiptMissing,
    ReceiptRefused,
    ServerBusy,
    UnknownModel,
)
from confide.proxy.backend import Backend, Question, State
from confide.proxy.guard import hosts_of


class Echo(Backend):
    """Answers with what it was asked."""

    @property
    def models(self) -> Sequence[str]:
        return [self.name]

    def describe(self) -> dict[str, Any]:
        return {"mode": "echo", "url": "nowhere"}

    async def verify(self) -> None:
        pass

    async def look(self) -> None:
        pass

    async def begin(self, question: Question, scope: Scope, receive: Receive) -> ASGIApp:
        fields = dict(question.fields)
        if fields.get("prompt") == "fail":
            raise ValueError(f"the {fields['secret']} prompt")
        assert json.loads(question.body) == fields
        return JSONResponse({"path": question.path, "question": fields})

    async def close(self) -> None:
        pass


def code_of(kind: type[ConfideError]) -> str:
    return kind.code


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with proxied(lambda: [Echo("echo", 3600)]) as url:
        settled(url, "ready")
        yield url


def ask(url: str, path: str = "/v1/completions", body: bytes | None = None, **headers: str) -> httpx.Response:
    content = json.dumps({"model": "echo", "prompt": "hi"}).encode() if body is None else body
    names = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.post(url + path, content=content, headers=names, trust_env=False)


def test_questions_come_through(url: str) -> None:
    answer = ask(url, "/v1/anything/at/all")
    assert answer.json() == {"path": "/anything/at/all", "question": {"model": "echo", "prompt": "hi"}}
    assert httpx.get(f"{url}/v1/models/echo", trust_env=False).json()["id"] == "echo"
    assert httpx.get(f"{url}/v1/models/other", trust_env=False).status_code == 404


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/confide/status", "/nothing"])
@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:{port}", "127.0.0.1.evil.example:{port}", "127.0.0.1:1", ""]
)
def test_names_of_others_are_refused(url: str, path: str, host: str) -> None:
    said = host.format(port=url.rpartition(":")[2])
    answer = httpx.get(url + path, headers={"host": said}, trust_env=False)
    assert answer.status_code in (400, 403)
    assert "echo" not in answer.text


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1", "LOCALHOST"])
def test_all_names_of_this_machine_will_do(url: str, name: str) -> None:
    assert ask(url, host=f"{name}:{url.rpartition(':')[2]}").status_code == 200


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost:1", "http://127.0.0.1", "file://"]
)
def test_pages_of_others_are_refused(url: str, origin: str) -> None:
    assert ask(url, origin=origin).status_code == 403
    assert ask(url, sec_fetch_site="cross-site").status_code == 403
    asked = httpx.options(f"{url}/v1/completions", headers={"origin": origin}, trust_env=False)
    assert asked.status_code == 403
    assert not [name for name in asked.headers if name.startswith("access-control")]


def test_ones_own_page_is_not(url: str) -> None:
    page = {"origin": url, "sec_fetch_site": "same-origin", "authorization": f"Bearer {PAGE}"}
    assert ask(url, **page).status_code == 200
    assert ask(url, **page | {"origin": "https://evil.example"}).status_code == 403
    assert ask(url, **page | {"sec_fetch_site": "same-site"}).status_code == 403


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/confide/status", "/nothing"])
@pytest.mark.parametrize("shown", ["", "Bearer any", f"Bearer {STOP}", f"Basic {PAGE}"])
def test_a_browser_without_the_page_s_token_gets_nothing(url: str, path: str, shown: str) -> None:
    for kind in ({"origin": url}, {"sec-fetch-site": "same-origin"}, {"sec-fetch-mode": "navigate"}):
        answer = httpx.get(url + path, headers={"authorization": shown, **kind}, trust_env=False)
        assert answer.status_code == 401
        assert "echo" not in answer.text


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"\xff", b"null", b"{}", b'{"model": 1}', b'{"model":"echo"', b"[" * 100_000, b'{"a":' * 5000]
)
def test_what_is_no_question_is_refused_by_form(url: str, body: bytes) -> None:
    answer = ask(url, body=body)
    assert answer.status_code == 400
    assert answer.json()["error"]["type"] == "invalid_request_error"


@settings(deadline=None, max_examples=40)
@given(st.binary(max_size=200))
def test_any_bytes_are_answered_in_form(url: str, body: bytes) -> None:
    answer = ask(url, body=body)
    assert answer.status_code in (400, 404)  # the latter for a question to another model
    assert answer.json()["error"]["type"] == "invalid_request_error"


def test_too_much_is_not_read(url: str) -> None:
    assert ask(url, body=b" " * ((8 << 20) + 1)).status_code == 413


def test_a_get_is_no_question(url: str) -> None:
    assert httpx.get(f"{url}/v1/completions", trust_env=False).status_code == 400


def test_failures_quote_no_question(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        answer = ask(url, body=b'{"model": "echo", "prompt": "fail", "secret": "hushed"}')
    assert answer.status_code == 500
    assert "hushed" not in answer.text
    assert "ValueError" in caplog.text
    assert "hushed" not in caplog.text


def test_a_key_is_asked_for() -> None:
    with proxied(lambda: [Echo("echo", 3600)], keys=("right",)) as url:
        settled(url, "ready")
        assert ask(url).status_code == 401
        assert ask(url, authorization="Bearer wrong").status_code == 401
        assert ask(url, authorization="Bearer right").status_code == 200
        assert ask(url, x_api_key="right").status_code == 200
        assert httpx.get(f"{url}/v1/models", trust_env=False).status_code == 401


def test_anthropics_programs_get_errors_in_their_form() -> None:
    with proxied(lambda: [Echo("echo", 3600)], keys=("right",)) as url:
        settled(url, "ready")
        for headers, body, status, kind in (
            ({}, {"model": "echo"}, 401, "authentication_error"),
            ({"x_api_key": "wrong"}, {"model": "echo"}, 401, "authentication_error"),
            ({"x_api_key": "right", "origin": "https://evil.example"}, {"model": "echo"}, 403, "permission_error"),
            ({"x_api_key": "right"}, {"model": "other"}, 404, "not_found_error"),
            ({"x_api_key": "right"}, {}, 400, "invalid_request_error"),
            ({"x_api_key": "right"}, {"model": "echo", "prompt": "fail", "secret": "x"}, 500, "api_error"),
        ):
            for path in ("/v1/messages", "/v1/messages/count_tokens"):
                answer = ask(url, path, json.dumps(body).encode(), **headers)
                assert (answer.status_code, answer.json()["type"]) == (status, "error")
                assert answer.json()["error"]["type"] == kind
        assert ask(url, "/v1/messages", x_api_key="right").json()["path"] == "/messages"


def test_only_who_has_the_token_stops_it() -> None:
    with proxied(lambda: [Echo("echo", 3600)]) as url:
        settled(url, "ready")
        for token in ("", "Bearer x", f"Basic {STOP}"):
            assert (
                httpx.post(f"{url}/confide/stop", headers={"authorization": token}, trust_env=False).status_code == 400
            )
        assert httpx.get(f"{url}/health", trust_env=False).status_code == 200
        stopped = httpx.post(f"{url}/confide/stop", headers={"authorization": f"Bearer {STOP}"}, trust_env=False)
        assert stopped.json() == {"status": "stopping"}


def test_what_host_may_say() -> None:
    assert hosts_of("127.0.0.1", 8790) == {"127.0.0.1:8790", "localhost:8790", "[::1]:8790"}
    assert hosts_of("::1", 80) >= {"[::1]:80", "[::1]", "localhost"}
    assert hosts_of("box.example", 443) == {"box.example:443", "box.example"}
    everywhere = {f"{name}:1" for name in ("127.0.0.1", "localhost", "[::1]", "box.example", "[fd00::1]")}
    assert hosts_of("0.0.0.0", 1, ["Box.example", "fd00::1"]) == everywhere | {"0.0.0.0:1"}  # noqa: S104
    assert hosts_of("192.0.2.1", 1) == {"192.0.2.1:1"}


@pytest.mark.parametrize("kind", [kind for kind in hostile.kinds() if issubclass(kind, PASSING)], ids=code_of)
def test_what_may_pass_is_unreachable_and_asked_again(kind: type[ConfideError]) -> None:
    assert problem_response(kind("x")).status_code in (429, 502, 503)
    assert after(kind("x")) in (State.VERIFYING, State.READY)


@pytest.mark.parametrize(
    "kind",
    [kind for kind in hostile.kinds() if issubclass(kind, REFUSING) and not issubclass(kind, PASSING)],
    ids=code_of,
)
def test_what_lasts_is_refused_and_no_program_asks_again(kind: type[ConfideError]) -> None:
    assert problem_response(kind("x")).status_code == {EvidenceUnavailable: 503, ApiKeyRefused: 401}.get(kind, 403)
    assert after(kind("x")) is State.REFUSED


def test_what_says_nothing_of_the_server_changes_nothing() -> None:
    for kind in (PromptTooLong, ServerBusy, UnknownModel, BudgetExhausted):
        assert after(kind("x")) is State.READY


def after(error: ConfideError) -> State:
    """The state of a backend that was ready, after an answer came to this."""
    backend = Echo("echo", 3600)
    backend.state = State.READY
    backend.failed(error)
    return backend.state


def test_a_problem_that_lasts_keeps_no_question() -> None:
    """An error that is raised again adds to its traceback, which holds what every frame on the way knew."""
    backend, problem = Echo("echo", 3600), AttestationRefused("It does not work.")

    async def ask() -> int:
        with pytest.raises(AttestationRefused):
            await backend.ready()
        return sum(1 for _ in traceback.walk_tb(problem.__traceback__))

    backend.refuse(problem)
    assert len({asyncio.run(ask()) for _ in range(3)}) == 1


class Failing(Echo):
    """Has nothing begun to answer, for a reason."""

    reason: ConfideError

    async def begin(self, question: Question, scope: Scope, receive: Receive) -> ASGIApp:
        raise self.reason


NOT_BEGUN = (*PASSING, AttestationRefused, KeyChanged)
"""What says that nothing was answered."""
OTHERS = (BudgetExhausted, ChannelBroken, ReceiptMissing, ReceiptRefused, IntegrityError)


@pytest.mark.parametrize("kind", [*NOT_BEGUN, *OTHERS], ids=code_of)
def test_another_model_of_the_name_is_asked_only_where_nothing_was_answered(kind: type[ConfideError]) -> None:
    failing = Failing("both", 3600)
    failing.reason = kind("It does not work.")
    with proxied(lambda: [failing, Failing("another", 3600), Echo("both", 3600)]) as url:
        all_ready(url)
        asked = httpx.post(f"{url}/v1/completions", json={"model": "both", "prompt": "x"}, trust_env=False)
    assert asked.is_success is (kind in NOT_BEGUN)
