"""The proxy before a model in a trusted environment: what is sent when, what is refused, and what stands in between."""

import asyncio
import itertools
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anthropic
import httpx
import openai
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from tests.client.workload import MODEL, Balanced, FakeWorkload, another, serving, simulated
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving as serving_app
from tests.proxy.local import all_ready, proxied, settled

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Model
from confide.attest.simulated import SimulatedTee
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload
from confide.errors import InsecureConnection, InvalidPolicy
from confide.proxy.receipts import ReceiptShelf
from confide.proxy.workload import WorkloadAddress, WorkloadBackend
from confide.receipts.receipt import Receipt, ReceiptKey

DIGEST = "ab" * 32
HELLO: list[Any] = [{"role": "user", "content": "hello"}]
EVER = 3600.0
SALT = "confide-cache-salt"


@dataclass(frozen=True)
class Place:
    fake: FakeWorkload
    root: Path

    def backend(self, name: str = "", again: float = EVER, **options: Any) -> WorkloadBackend:
        address = WorkloadAddress(self.fake.url, **{"simulated_root": self.root, **options})
        return WorkloadBackend(name, address, again)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with serving(simulated(tmp_path / "tee", model_digest=DIGEST)) as fake:
        yield Place(fake, tmp_path / "tee" / "root.pem")


def sdk(url: str, **options: Any) -> openai.OpenAI:
    http = httpx.Client(trust_env=False)
    return openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=http, **options)  # type: ignore[arg-type]


def test_an_unmodified_client_is_answered_and_nothing_goes_in_the_clear(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url) as client:
        settled(url, "ready")
        answer = client.chat.completions.create(model=MODEL, messages=HELLO)
        assert answer.choices[0].message.content == "olleh"
        chunks = client.chat.completions.create(model=MODEL, messages=HELLO, stream=True)
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "olleh"
        assert [model.id for model in client.models.list()] == [MODEL]
        assert client.models.retrieve(MODEL).id == MODEL
        assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"
    assert place.fake.seen[0] == "/attestation"  # before anything else
    outer = {entry for entry in place.fake.seen if isinstance(entry, str)}
    assert outer == {"/attestation", "/encrypted"}


def test_machines_that_share_a_proxy_share_no_salt(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url:
        settled(url, "ready")
        given = "ab" * 32
        for host, own in (("192.0.2.7", {}), ("192.0.2.7", {}), ("192.0.2.8", {}), ("", {}), ("", {SALT: given})):
            headers = own | ({"x-forwarded-for": host} if host else {})
            body = {"model": MODEL, "prompt": "abc"}
            assert httpx.post(f"{url}/v1/completions", json=body, headers=headers, trust_env=False).is_success
    one, again, *others = [
        [value for name, value in head.headers if name == SALT]
        for head in place.fake.heads
        if head.path.endswith("/completions")
    ]
    assert one == again
    assert len({*one, *itertools.chain(*others)}) == 4
    assert [given] not in others


def test_a_name_of_ones_own_stands_for_the_workloads_model(place: Place) -> None:
    with proxied(lambda: [place.backend("gpt-4o")]) as url, sdk(url) as client:
        assert client.completions.create(model="gpt-4o", prompt="abc").choices[0].text == "cba"
        with pytest.raises(openai.NotFoundError, match="/v1/models says which are"):
            client.completions.create(model=MODEL, prompt="abc")
    path, body = place.fake.prompts[-1]
    assert (path, json.loads(body)["model"]) == ("/v1/completions", MODEL)


def status_of(url: str) -> Any:
    (status,) = httpx.get(f"{url}/confide/status", trust_env=False).json()["backends"]
    return status


def test_a_receipt_is_checked_and_handed_on_as_the_workload_signed_it(place: Place) -> None:
    tee = SimulatedTee.open(place.root.parent)
    workload = Workload(tee, tee.collateral)
    app = public_app(workload, Serving(FakeEngine()))  # type: ignore[arg-type]
    with serving_app(app) as served:
        address = WorkloadAddress(served, simulated_root=place.root)
        with proxied(lambda: [WorkloadBackend("", address, EVER)]) as url, sdk(url) as client:
            settled(url, "ready")
            for stream in (False, True):
                asked = client.completions.with_raw_response.create(model="echo", prompt="abc", stream=stream)
                receipt_id = asked.headers["confide-receipt"]
                if stream:
                    assert b"[DONE]" in b"".join(asked.http_response.iter_bytes())
                shown = httpx.get(f"{url}/v1/aci/receipts/{receipt_id}", trust_env=False)
                receipt = Receipt.read(shown.content)
                key = workload.keyset.signing_key(receipt.fields.key_id)
                assert key is not None
                assert receipt.signed_by(key)
                assert receipt.fields.receipt_id == receipt_id
            receipts = status_of(url)["receipts"]
            assert (receipts["promised"], receipts["held"], receipts["missing"], receipts["wrong"]) == (True, 2, 0, 0)
            assert receipts["last"]["id"] == receipt_id
            unknown = httpx.get(f"{url}/v1/aci/receipts/{'0' * 48}", trust_env=False)
            assert (unknown.status_code, unknown.json()["error"]["code"]) == (404, "unknown-receipt")


def test_an_answer_without_the_receipt_that_was_promised_is_kept_back(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        place.fake.names_receipts = False
        for stream in (False, True):
            with pytest.raises(openai.PermissionDeniedError, match="promises one") as caught:
                client.completions.create(model=MODEL, prompt="abc", stream=stream)
            assert caught.value.code == "receipt-missing"
        place.fake.names_receipts, place.fake.receipt = True, lambda signed: None
        with pytest.raises(openai.PermissionDeniedError, match="signed no receipt"):
            client.completions.create(model=MODEL, prompt="abc")
        assert status_of(url)["state"] == "ready"  # an accident so far, and seen by everybody
        health = httpx.get(f"{url}/health", trust_env=False).json()["backends"][0]
        assert health["receipts"] == {"held": 0, "missing": 3, "wrong": 0}
        place.fake.receipt = lambda signed: signed
        assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"


def test_whoever_signs_a_wrong_receipt_is_asked_nothing_more(place: Place) -> None:
    with proxied(lambda: [place.backend("named")]) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        place.fake.receipt = lambda signed: place.fake.receipts[f"{0:048x}"]  # that of the first answer, for all
        assert client.completions.create(model="named", prompt="abc").choices[0].text == "cba"
        said: list[str] = []
        with pytest.raises(openai.APIError, match="does not hold"):
            said += [
                chunk.choices[0].delta.content or ""
                for chunk in client.chat.completions.create(model="named", messages=HELLO, stream=True)
            ]
        settled(url, "refused")
        asked = len(place.fake.prompts)
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.completions.create(model="named", prompt="secret")
        assert caught.value.code == "receipt-refused"
        assert place.fake.prompts[asked:] == []
        assert status_of(url)["receipts"]["wrong"] == 1
        # It is verified again, and refused again, as long as it has the same keys; another start is another matter.
        place.fake.receipt = lambda signed: signed
        place.fake.workload.receipt_key = ReceiptKey()
        settled(url, "ready")
        assert client.completions.create(model="named", prompt="abc").choices[0].text == "cba"


def test_where_no_receipts_are_promised_none_is_named(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.enclave.workload.KEYSET_PURPOSE", "another purpose")
    with proxied(lambda: [place.backend()]) as url, sdk(url) as client:
        settled(url, "ready")
        answer = client.completions.with_raw_response.create(model=MODEL, prompt="abc")
        assert "confide-receipt" not in answer.headers
        assert not status_of(url)["receipts"]["promised"]


def test_receipts_take_no_more_room_than_they_may() -> None:
    shelf = ReceiptShelf(most_bytes=100)
    for number in range(10):
        shelf.put(f"{number}", bytes(30), "holds")
    assert [number for number in range(10) if shelf.get(f"{number}")] == [7, 8, 9]
    shelf.put("9", bytes(10), "holds")
    shelf.put("10", bytes(30), "holds")
    assert [number for number in range(11) if shelf.get(f"{number}")] == [7, 8, 9, 10]
    shelf.put("large", bytes(200), "holds")
    assert shelf.get("large") is None
    assert shelf.held == 13


def test_the_newer_endpoints_are_passed_on_too(place: Place) -> None:
    tee = SimulatedTee.open(place.root.parent)
    app = public_app(Workload(tee, tee.collateral), Serving(FakeEngine()))  # type: ignore[arg-type]
    asked: Any = {"model": "mine", "max_tokens": 9, "messages": HELLO}
    with serving_app(app) as workload:
        address = WorkloadAddress(workload, simulated_root=place.root)
        with proxied(lambda: [WorkloadBackend("mine", address, EVER)]) as url, sdk(url) as client:
            settled(url, "ready")
            made = client.responses.with_raw_response.create(model="mine", input="hello")
            assert made.parse().output_text == "You said: user: hello"
            assert len(bytes.fromhex(made.headers["confide-receipt"])) >= 16
            *_, last = client.responses.create(model="mine", input="hello", stream=True)
            assert last.type == "response.completed"
            other = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
            assert other.messages.create(**asked).content[0].text == "You said: user: hello"  # type: ignore[union-attr]
            with other.messages.stream(**asked) as stream:
                assert "".join(stream.text_stream) == "You said: user: hello"
            assert other.messages.count_tokens(model="mine", messages=HELLO).input_tokens == 2
            with pytest.raises(anthropic.BadRequestError, match=r"tools\[0\]"):
                other.messages.create(**asked, extra_body={"tools": [{"name": "x"}]})


def test_an_answer_that_is_cut_off_says_so_in_its_apis_form(place: Place) -> None:
    tee = SimulatedTee.open(place.root.parent)
    engine = FakeEngine(broken=ValueError("a secret"))
    app = public_app(Workload(tee, tee.collateral), Serving(engine))  # type: ignore[arg-type]
    with serving_app(app) as workload:
        address = WorkloadAddress(workload, simulated_root=place.root)
        with proxied(lambda: [WorkloadBackend("mine", address, EVER)]) as url, sdk(url) as client:
            settled(url, "ready")
            with pytest.raises(openai.APIError):
                list(client.responses.create(model="mine", input="hello", stream=True))
            other = anthropic.Anthropic(base_url=url, api_key="any", max_retries=0)
            with pytest.raises(anthropic.APIStatusError) as caught:
                list(other.messages.create(model="mine", max_tokens=9, messages=HELLO, stream=True))
    assert caught.value.body["type"] == "error"  # type: ignore[index]
    assert "secret" not in str(caught.value)


def test_headers_of_the_program_stay_here(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url) as client:
        client.completions.create(model=MODEL, prompt="abc", extra_headers={"x-private": "1"})
    names = {name.lower() for name, _ in place.fake.heads[-1].headers}
    assert not names & {"authorization", "x-private", "user-agent-original", "cookie", "origin"}


@pytest.mark.parametrize("configured", ["", "confide-configured"], ids=["none", "configured"])
def test_a_licence_of_the_programs_or_the_settings_goes_through_the_channel(place: Place, configured: str) -> None:
    with proxied(lambda: [place.backend(licence=configured)], keys=("confide-of-the-proxy",)) as url:
        assert configured not in repr(place.backend(licence=configured).address) or not configured
        for shown in (
            {"authorization": "Bearer confide-of-the-proxy"},
            {"x-api-key": "confide-of-the-proxy"},
        ):
            answer = httpx.post(
                f"{url}/v1/completions", json={"model": MODEL, "prompt": "abc"}, headers=shown, trust_env=False
            )
            assert answer.is_success
    with proxied(lambda: [place.backend(licence=configured)]) as url:
        for shown in (
            {"authorization": "Bearer confide-of-the-program"},
            {"x-api-key": "confide-of-the-program"},
            {"authorization": "Bearer sk-of-another-service"},
        ):
            answer = httpx.post(
                f"{url}/v1/completions", json={"model": MODEL, "prompt": "abc"}, headers=shown, trust_env=False
            )
            assert answer.is_success
    asked = [dict(head.headers) for head in place.fake.heads if head.path.endswith("/completions")]
    otherwise = f"Bearer {configured}" if configured else None
    program = "Bearer confide-of-the-program"
    assert [head.get("authorization") for head in asked] == [otherwise, otherwise, program, program, otherwise]
    assert not any("x-api-key" in head for head in asked)


def test_what_the_policy_does_not_accept_is_told_nothing(place: Place, tmp_path: Path) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(to_toml(SimulatedPolicy.all_of(Model("cd" * 32))))
    with proxied(lambda: [place.backend("named", policy=policy)]) as url, sdk(url) as client:
        settled(url, "refused")
        with pytest.raises(openai.PermissionDeniedError) as caught:
            client.chat.completions.create(model="named", messages=HELLO)
        health = httpx.get(f"{url}/health", trust_env=False)
    assert caught.value.code == "attestation-refused"
    assert (health.status_code, health.json()["status"]) == (503, "refused")
    assert "model" in health.json()["backends"][0]["reason"]
    assert place.fake.prompts == []


def test_a_workload_that_is_away_is_said_to_be_and_found_again(tmp_path: Path) -> None:
    with serving(simulated(tmp_path / "tee")) as fake:
        root, address = tmp_path / "tee" / "root.pem", fake.url
    with proxied(lambda: [Place(fake, root).backend("away")]) as url, sdk(url, max_retries=0) as client:
        settled(url, "unreachable")
        with pytest.raises(openai.APIStatusError, match="cannot be reached") as caught:
            client.completions.create(model="away", prompt="abc")
        assert caught.value.status_code == 502
    assert fake.url == address


def test_one_that_goes_away_is_noticed_without_a_question(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("confide.proxy.backend.LOOK_SECONDS", 0.02)
    with proxied(lambda: [place.backend()]) as url:
        settled(url, "ready")
        seen = place.fake.seen.count("/attestation")
        while len(place.fake.prompts) < 4:  # looks, through the channel: the evidence is not asked for again
            time.sleep(0.01)
        assert place.fake.seen.count("/attestation") == seen
        place.fake.outer = lambda: PlainTextResponse("gone", 502)
        settled(url, "unreachable")
        assert "502" in httpx.get(f"{url}/health", trust_env=False).json()["backends"][0]["reason"]
        place.fake.outer = lambda: PlainTextResponse("too much to do", 503)
        settled(url, "unreachable")
        place.fake.outer = None
        settled(url, "ready")
        place.fake.outer = lambda: PlainTextResponse("too much to do", 503)
        time.sleep(0.1)
        assert httpx.get(f"{url}/health", trust_env=False).json()["status"] == "ready"  # it is there


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_one_that_goes_away_at_a_question_is_not_called_ready(place: Place, stream: bool) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        client.completions.create(model=MODEL, prompt="abc")
        attested = place.fake.seen.count("/attestation")
        if stream:
            place.fake.alter = lambda frames: frames[:3]
            with pytest.raises(openai.APIError):
                list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))
        else:
            place.fake.outer = lambda: PlainTextResponse("gone", 502)
            with pytest.raises(openai.APIStatusError):
                client.completions.create(model=MODEL, prompt="abc")
            settled(url, "unreachable")
        while place.fake.seen.count("/attestation") == attested:
            time.sleep(0.01)


def test_another_key_is_verified_before_it_is_used_and_the_question_answered(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"
        place.fake.restart()
        place.fake.seen.clear()
        assert client.completions.create(model=MODEL, prompt="xyz").choices[0].text == "zyx"
    assert place.fake.seen[:2] == ["/encrypted", "/attestation"]


def test_another_key_that_is_not_accepted_gets_nothing(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        client.completions.create(model=MODEL, prompt="abc")
        place.fake.restart()
        place.fake.workload.model_digest = ""
        place.fake.tell = lambda attested: place.fake.workload.attest("00" * 32)
        place.fake.seen.clear()
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model=MODEL, prompt="secret")
    assert place.fake.prompts == []


def test_it_is_verified_again_on_a_timer(place: Place) -> None:
    seen = threading.Event()
    with proxied(lambda: [place.backend(again=0.05)]) as url:
        settled(url, "ready")
        place.fake.seen.clear()
        for _ in range(200):
            if place.fake.seen.count("/attestation") >= 2:
                break
            seen.wait(0.05)
    assert place.fake.seen.count("/attestation") >= 2


def test_a_gateway_in_between_answers_nothing(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        client.completions.create(model=MODEL, prompt="abc")
        forged = {"choices": [{"index": 0, "text": "forged", "finish_reason": "stop"}]}
        place.fake.outer = lambda: JSONResponse(forged)
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model=MODEL, prompt="abc")
        assert caught.value.status_code >= 500
        place.fake.outer = lambda: PlainTextResponse("run `rm -rf`", 418)
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model=MODEL, prompt="abc")
        assert "rm -rf" not in str(caught.value)


def test_an_answer_that_is_cut_never_looks_whole(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        client.completions.create(model=MODEL, prompt="abc")
        place.fake.alter = lambda frames: frames[:-1]
        with pytest.raises(openai.InternalServerError, match="cut"):
            client.completions.create(model=MODEL, prompt="abc")
        place.fake.alter = lambda frames: frames[:3]
        with pytest.raises(openai.APIError, match=r"cut|incomplete"):
            list(client.chat.completions.create(model=MODEL, messages=HELLO, stream=True))


def test_whoever_leaves_stops_the_workload(place: Place) -> None:
    long: list[Any] = [{"role": "user", "content": "x" * 5000}]
    with proxied(lambda: [place.backend()]) as url, sdk(url) as client:
        client.completions.create(model=MODEL, prompt="abc")
        place.fake.stopped.clear()
        stream = client.chat.completions.create(model=MODEL, messages=long, stream=True)
        next(iter(stream))
        stream.close()
        assert place.fake.stopped.wait(60)


def test_errors_of_the_model_pass_as_they_are(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url, sdk(url, max_retries=0) as client:
        for said, status in {"too long": 400, "busy": 429, "fault": 500}.items():
            with pytest.raises(openai.APIStatusError, match="It does not work") as caught:
                client.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": said}])
            assert caught.value.status_code == status


def test_a_second_replica_answers_while_the_first_is_away(place: Place, tmp_path: Path) -> None:
    with serving(simulated(tmp_path / "other")) as gone:
        pass
    away = Place(gone, tmp_path / "other" / "root.pem").backend("both")
    with proxied(lambda: [away, place.backend("both")]) as url, sdk(url) as client:
        settled(url, "unreachable")
        assert client.completions.create(model="both", prompt="abc").choices[0].text == "cba"


def test_what_cannot_be_is_said_before_anything_starts(place: Place, tmp_path: Path) -> None:
    (tmp_path / "policy.toml").write_text("confide-policy = 2\n")
    with pytest.raises(InvalidPolicy):
        place.backend(policy=tmp_path / "policy.toml")
    with pytest.raises(InsecureConnection):
        WorkloadBackend("", WorkloadAddress("http://models.example", simulated_root=place.root), EVER)


def test_what_was_verified_can_be_seen(place: Place) -> None:
    with proxied(lambda: [place.backend()]) as url:
        settled(url, "ready")
        (status,) = httpx.get(f"{url}/confide/status", trust_env=False).json()["backends"]
    assert (status["mode"], status["simulated"], status["model_digest"]) == ("enclave", True, DIGEST)
    assert {check["outcome"] for check in status["checks"]} <= {"pass", "skipped"}
    assert "protection" in status["trust"]


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    first = simulated(tmp_path / "tee", model_digest=DIGEST)
    with serving(Balanced(first.workload, replicas=[first, another(tmp_path / "tee", DIGEST)])) as fake:
        assert isinstance(fake, Balanced)
        yield fake


def behind(fake: Balanced, root: Path, **options: Any) -> WorkloadBackend:
    return Place(fake, root / "tee" / "root.pem").backend(replicas=2, **options)


def test_replicas_behind_one_address_take_turns_and_a_conversation_stays(balanced: Balanced, tmp_path: Path) -> None:
    with proxied(lambda: [behind(balanced, tmp_path)]) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        for stream in (False, True) * 4:
            asked = client.chat.completions.create(model=MODEL, messages=HELLO, stream=stream)
            said = "".join(part.choices[0].delta.content or "" for part in asked) if stream else ""  # type: ignore[union-attr]
            assert (said or asked.choices[0].message.content) == "olleh"  # type: ignore[union-attr]
        status = status_of(url)
    asked_of = [sum(path == "/v1/chat/completions" for path, _ in one.prompts) for one in balanced.replicas]
    assert sorted(asked_of) == [0, 8]
    keys = {one.workload.key.public.id.hex() for one in balanced.replicas}
    assert {one["channel_key"] for one in status["replicas"]["verified"]} == keys
    assert (status["replicas"]["at_most"], status["replicas"]["refused"]) == (2, [])
    assert "which of up to 2 replicas answers, which networks and balancers pick; 2 were verified" in status["trust"]
    assert sum(one.seen.count("/attestation") for one in balanced.replicas) <= 4


def test_a_replica_that_the_policy_refuses_is_told_nothing(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas[1] = bad = another(tmp_path / "tee", "cd" * 32)
    policy = tmp_path / "policy.toml"
    policy.write_text(to_toml(SimulatedPolicy.all_of(Model(DIGEST))))
    with proxied(lambda: [behind(balanced, tmp_path, policy=policy)]) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        for _ in range(6):
            assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"
        status = status_of(url)
    assert "/encrypted" in bad.seen
    assert bad.heads == []
    assert len(status["replicas"]["verified"]) == 1
    assert "model: expected" in status["replicas"]["refused"][0]


def test_a_replica_that_signs_a_wrong_receipt_is_asked_nothing_more_and_the_other_goes_on(
    balanced: Balanced, tmp_path: Path
) -> None:
    with proxied(lambda: [behind(balanced, tmp_path)]) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"
        (cheat,) = (one for one in balanced.replicas if one.receipts)
        cheat.receipt = lambda signed: cheat.receipts[f"{0:048x}"]  # that of the first answer, for all
        with pytest.raises(openai.PermissionDeniedError):
            client.completions.create(model=MODEL, prompt="def")
        settled(url, "ready")
        asked = len(cheat.heads)
        for _ in range(3):
            assert client.completions.create(model=MODEL, prompt="abc").choices[0].text == "cba"
        assert len(cheat.heads) == asked
        assert "does not hold" in " ".join(status_of(url)["replicas"]["refused"])


@pytest.fixture
def second(place: Place, tmp_path: Path) -> Iterator[FakeWorkload]:
    """Another replica, at an address of its own."""
    with serving(another(tmp_path / "tee", DIGEST)) as fake:
        yield fake


def both(place: Place, second: FakeWorkload, **options: Any) -> list[WorkloadBackend]:
    return [place.backend("both"), Place(second, place.root).backend("both", **options)]


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_before_an_answer_begins_the_next_address_is_asked(place: Place, second: FakeWorkload, stream: bool) -> None:
    with proxied(lambda: both(place, second)) as url, sdk(url, max_retries=0) as client:
        all_ready(url)
        place.fake.outer = lambda: PlainTextResponse("gone", 502)
        asked = client.chat.completions.create(model="both", messages=HELLO, stream=stream)
        said = "".join(part.choices[0].delta.content or "" for part in asked) if stream else ""  # type: ignore[union-attr]
        assert (said or asked.choices[0].message.content) == "olleh"  # type: ignore[union-attr]
    assert second.seen[0] == "/attestation"
    assert place.fake.seen.count("/encrypted") >= 2


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_once_an_answer_has_begun_no_other_address_is_asked(place: Place, second: FakeWorkload, stream: bool) -> None:
    with proxied(lambda: both(place, second)) as url, sdk(url, max_retries=0) as client:
        all_ready(url)
        place.fake.alter = lambda frames: frames[:2]
        with pytest.raises(openai.APIError):
            list(client.chat.completions.create(model="both", messages=HELLO, stream=stream))
        assert {path for path, _ in second.prompts} == {"/v1/models"}


def test_an_answer_that_stops_at_its_beginning_is_asked_of_nobody_else(
    place: Place, second: FakeWorkload, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def nothing() -> AsyncIterator[bytes]:
        await asyncio.sleep(60)
        yield b""

    monkeypatch.setattr("confide.proxy.workload.READ_SECONDS", 3)  # its head takes less, on any machine
    with proxied(lambda: both(place, second)) as url, sdk(url, max_retries=0) as client:
        all_ready(url)
        place.fake.outer = lambda: StreamingResponse(nothing())
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(model="both", prompt="abc")
        assert caught.value.code == "channel-broken"
        assert {path for path, _ in second.prompts} == {"/v1/models"}


def test_an_address_that_the_policy_refuses_takes_over_for_nobody(
    place: Place, second: FakeWorkload, tmp_path: Path
) -> None:
    policy = tmp_path / "policy.toml"
    policy.write_text(to_toml(SimulatedPolicy.all_of(Model("cd" * 32))))
    with proxied(lambda: both(place, second, policy=policy)) as url, sdk(url, max_retries=0) as client:
        settled(url, "ready")
        place.fake.outer = lambda: PlainTextResponse("gone", 502)
        with pytest.raises(openai.APIStatusError) as caught:
            client.chat.completions.create(model="both", messages=HELLO)
        assert caught.value.status_code == 502
    assert set(second.seen) == {"/attestation"}
