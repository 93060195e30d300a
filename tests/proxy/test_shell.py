"""The proxy before a shell: the model runs here, its conversations are remembered, and their ends are not seen."""

import json
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import anthropic
import httpx
import openai
import pytest
from tests.hybrid.client.fake import FakeServer, FromFrame
from tests.hybrid.client.fake import serving as fake_serving
from tests.hybrid.server.world import serving
from tests.owners import OWNER
from tests.proxy.local import proxied, settled

from confide import HybridModel
from confide.attest.check import Outcome
from confide.errors import MalformedReceipt
from confide.hybrid.client.refusals import RefusalList
from confide.hybrid.server.service import LayerService
from confide.ledger.ledger import Ledger
from confide.models.split import SplitSummary
from confide.packages.server_package import ServerPackage
from confide.proxy.shell import ShellAddress, ShellBackend
from confide.receipts.client import ClientReceipt, verify_client_receipt
from confide.receipts.client_key import ClientKey
from confide.receipts.receipt import Receipt

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"
PROMPT = "The old king called his three sons and said to them, I will give you the kingdom, and"


@dataclass(frozen=True)
class Place:
    url: str
    demo: HybridModel

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/confide/status", trust_env=False).json()["backends"][0]
        return found

    def sdk(self) -> openai.OpenAI:
        http: Any = httpx.Client(trust_env=False, timeout=120)
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="any", http_client=http, max_retries=0)

    def expected(self, prompt: str, tokens: int) -> str:
        tokenizer: Any = self.demo.tokenizer
        inputs = tokenizer(prompt, return_tensors="pt")
        made = self.demo.generate(**inputs, max_new_tokens=tokens, do_sample=False, pad_token_id=0)
        return str(tokenizer.decode(made[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True))


class Made(NamedTuple):
    demo: HybridModel
    parts: SplitSummary


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    demo = HybridModel("demo", protect=r"h\.0\.attn\.c_attn", progress=False)
    demo.tokenizer.chat_template = TEMPLATE  # type: ignore[union-attr]
    return Made(demo, demo.split(tmp_path_factory.mktemp("shell") / "out", OWNER))


@pytest.fixture(scope="module")
def place(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    demo, parts = made
    package = ServerPackage.open(parts.server)
    ledger = Ledger(tmp_path_factory.mktemp("state"))
    service = LayerService(package.signed, package.load(), ledger, insecure_no_licences=True)

    def backends() -> list[ShellBackend]:
        return [ShellBackend("mine", ShellAddress(parts.client, served.url, {"owner": OWNER.public.raw}))]

    with serving(service) as served, proxied(backends) as url:
        settled(url, "ready")
        yield Place(url, demo)


def test_an_unmodified_client_gets_the_models_own_answers(place: Place) -> None:
    expected = place.expected(PROMPT, 8)
    with place.sdk() as client:
        options: Any = {"model": "mine", "prompt": PROMPT, "max_tokens": 8, "temperature": 0}
        whole = client.completions.create(**options)
        assert (whole.choices[0].text, whole.choices[0].finish_reason) == (expected, "length")
        assert whole.usage is not None
        assert whole.usage.completion_tokens == 8
        assert "".join(part.choices[0].text for part in client.completions.create(**options, stream=True)) == expected
        said = client.chat.completions.create(
            model="mine", messages=[{"role": "user", "content": PROMPT}], max_tokens=4, temperature=0
        )
        assert said.choices[0].message.content == place.expected(PROMPT + " ", 4)
        assert [model.id for model in client.models.list()] == ["mine"]


def test_the_newer_endpoints_are_here_too(place: Place) -> None:
    expected = place.expected(PROMPT + " ", 4)
    with place.sdk() as client:
        made = client.responses.create(model="mine", input=PROMPT, max_output_tokens=4, temperature=0)
        assert (made.output_text, made.status) == (expected, "incomplete")
    asked: Any = {"model": "mine", "max_tokens": 4, "messages": [{"role": "user", "content": PROMPT}]}
    with anthropic.Anthropic(base_url=place.url, api_key="any", max_retries=0) as client:
        with client.messages.stream(**asked, extra_body={"temperature": 0}) as stream:
            assert "".join(stream.text_stream) == expected
            assert stream.get_final_message().stop_reason == "max_tokens"


@pytest.mark.parametrize(
    ("more", "param"),
    [
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}], "tool_choice": "required"}, "tool_choice"),
    ],
)
def test_a_form_would_be_seen_by_the_server_and_is_refused(place: Place, more: dict[str, Any], param: str) -> None:
    before = place.status()["bytes_up"]
    with place.sdk() as client, pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model="mine", messages=[{"role": "user", "content": PROMPT}], **more)
    assert refused.value.param == param
    assert place.status()["bytes_up"] - before < 1000


def test_what_the_server_saw_can_be_seen(place: Place) -> None:
    with place.sdk() as client:
        options: Any = {"model": "mine", "max_tokens": 3, "temperature": 0}
        client.completions.create(prompt="Once upon a time", **options)
        first = place.status()
        client.completions.create(prompt="There was", **options)
        second = place.status()
    assert len(bytes.fromhex(first["last_sent"])) == 32
    assert first["last_sent"] != second["last_sent"]
    lengths = second["lengths"]
    assert (lengths["answer"], lengths["visible_answer"], lengths["visible_prompt"] % 16) == (3, 16, 0)
    assert second["bytes_up"] > first["bytes_up"]
    assert second["tokens_ready"] >= 0
    assert 0 <= second["disclosed"] < 1
    assert second["bits_per_token"] % 32 == 0
    assert second["layer_groups"] == 1


@pytest.mark.parametrize("stream", [False, True])
def test_every_answer_has_a_receipt_of_ones_own(place: Place, stream: bool) -> None:
    body = {"model": "mine", "prompt": PROMPT, "max_tokens": 3, "temperature": 0, "n": 2, "stream": stream}
    sent = b" " + json.dumps(body).encode()
    answer = httpx.post(f"{place.url}/v1/completions", content=sent, trust_env=False, timeout=120)
    assert answer.status_code == 200
    receipt_id = answer.headers["confide-receipt"]
    shown = httpx.get(f"{place.url}/v1/aci/receipts/{receipt_id}", trust_env=False)
    receipt = ClientReceipt.read(shown.content)
    with pytest.raises(MalformedReceipt):
        Receipt.read(shown.content)  # a workload's it is not
    result = verify_client_receipt(receipt, client_key=ClientKey.open().public, request=sent, response=answer.content)
    assert result.verified, result.verdict()
    assert {one.code for one in result.checks if one.outcome is Outcome.SKIPPED} <= {
        "client-chain", "client-model", "client-server",
    }  # fmt: skip
    fields = receipt.fields
    assert (fields.receipt_id, fields.endpoint, fields.model.name) == (receipt_id, "/v1/completions", "mine")
    assert fields.model.owner == str(OWNER.public)
    assert [one.answer for one in fields.generations] == [3, 3]
    for one in fields.generations:
        assert one.answers == one.visible_prompt + one.visible_answer - 1  # the last is not read
        assert one.bytes_down > 0
    assert fields.disclosed_bits == 8 * sum(one.bytes_down for one in fields.generations)
    held = place.status()["receipts"]
    assert held["last"]["id"] == receipt_id
    assert held["last"]["verdict"].startswith("The client's own statement")


def test_a_turn_sends_what_is_new(place: Place) -> None:
    def asked() -> int:
        """By the bytes of answers, so many for each token. Those of questions tell whether p0 had gone ahead, too."""
        return int(place.status()["bytes_down"])

    with place.sdk() as client:
        start = "Once upon a time there was a miller who had three sons, a mill, a donkey, and a cat, and " * 2
        options: Any = {"model": "mine", "max_tokens": 2, "temperature": 0}
        before = asked()
        first = client.completions.create(prompt=start, **options).choices[0].text
        between = asked()
        longer = start + first + " the cat"
        second = client.completions.create(prompt=longer, **options).choices[0].text
        assert asked() - between < (between - before) / 2
    assert second == place.expected(longer, 2)


def test_a_stop_text_ends_the_text_and_not_the_work(place: Place) -> None:
    text = place.expected(PROMPT, 12)
    stop = text.split()[2]
    body = {"model": "mine", "prompt": PROMPT, "max_tokens": 12, "temperature": 0, "stop": stop, "stream": True}
    before = place.status()["round_trips"]
    with httpx.stream("POST", f"{place.url}/v1/completions", json=body, trust_env=False, timeout=120) as answer:
        lines = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
    parts = [json.loads(line)["choices"][0] for line in lines[:-1]]
    assert "".join(part["text"] for part in parts) == text[: text.index(stop)]
    assert parts[-1]["finish_reason"] == "stop"
    # The stream goes on without text as long as the server is asked: to the next multiple of 16 tokens.
    assert place.status()["round_trips"] - before == 16
    assert len(parts) == 16 + 1
    assert sum(not part["text"] for part in parts) > 5


def test_who_leaves_frees_the_model(place: Place) -> None:
    body = {"model": "mine", "prompt": PROMPT, "max_tokens": 60, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{place.url}/v1/completions", json=body, trust_env=False, timeout=120) as answer:
        next(answer.iter_lines())
    with place.sdk() as client:
        options: Any = {"model": "mine", "max_tokens": 2, "temperature": 0}
        assert client.completions.create(prompt=PROMPT, **options).choices[0].text == place.expected(PROMPT, 2)


def test_several_at_once_are_answered_one_by_one(place: Place) -> None:
    prompts = [PROMPT, "Once upon a time", "The old man"]
    with place.sdk() as client, ThreadPoolExecutor(3) as pool:
        options: Any = {"model": "mine", "max_tokens": 3, "temperature": 0}
        made = list(pool.map(lambda prompt: client.completions.create(prompt=prompt, **options), prompts))
    assert [answer.choices[0].text for answer in made] == [place.expected(prompt, 3) for prompt in prompts]


def test_sampling_follows_its_seed(place: Place) -> None:
    with place.sdk() as client:
        options: Any = {"model": "mine", "prompt": PROMPT, "max_tokens": 6, "temperature": 2.0}
        texts = [client.completions.create(**options, seed=seed).choices[0].text for seed in (1, 1, 2)]
        assert texts[0] == texts[1] != texts[2]
        unseeded = {client.completions.create(**options).choices[0].text for _ in range(3)}
        assert len(unseeded) > 1


def test_tokens_are_told_chosen_and_counted(place: Place) -> None:
    with place.sdk() as client:
        options: Any = {"model": "mine", "prompt": PROMPT, "max_tokens": 4, "temperature": 0}
        expected = place.expected(PROMPT, 4)
        told = client.completions.create(**options, logprobs=2, n=2)
        for choice in told.choices:
            assert choice.text == expected
            assert choice.logprobs is not None
            assert "".join(choice.logprobs.tokens or ()) == expected
            assert all(len(top) == 2 and max(top.values()) <= 0 for top in choice.logprobs.top_logprobs or ())
            assert choice.logprobs.text_offset[0] == 0  # type: ignore[index]
        again = client.completions.create(**options).usage
        assert again is not None
        assert again.prompt_tokens_details is not None
        assert again.prompt_tokens_details.cached_tokens == again.prompt_tokens - 1
        tokenizer: Any = place.demo.tokenizer
        [king] = tokenizer.encode(" king")
        forced = client.completions.create(**options, logit_bias={str(king): 100}).choices[0]
        assert forced.text == " king" * 4
        fewer = client.completions.create(
            **options | {"max_tokens": 16}, logit_bias={str(king): 20}, frequency_penalty=2
        )
        assert 4 <= fewer.choices[0].text.count(" king") < 16
        assert (
            client.completions.create(**options | {"temperature": 1, "seed": 1}, extra_body={"min_p": 1})
            .choices[0]
            .text
            == expected
        )


def test_what_this_mode_has_not_is_refused_by_name(place: Place) -> None:
    with place.sdk() as client, pytest.raises(openai.BadRequestError, match="no embeddings"):
        client.embeddings.create(model="mine", input="x")


def test_a_shell_of_another_owner_is_refused(made: Made) -> None:
    address = ShellAddress(made.parts.client, "ws://127.0.0.1:9", {"owner": bytes(32)})
    with proxied(lambda: [ShellBackend("other", address)]) as url:
        settled(url, "refused")
        answer = httpx.post(f"{url}/v1/completions", json={"model": "other", "prompt": "x"}, trust_env=False)
    assert (answer.status_code, answer.json()["error"]["type"]) == (403, "permission_error")


# -- a server that gives wrong answers ---------------------------------------------------------------------------


class Cheated(NamedTuple):
    url: str
    server: FakeServer

    def ask(self, **more: object) -> httpx.Response:
        body: dict[str, Any] = {"model": "mine", "prompt": PROMPT, "max_tokens": 2, "temperature": 0} | more
        return httpx.post(f"{self.url}/v1/completions", json=body, trust_env=False, timeout=120)

    def backend(self) -> dict[str, Any]:
        found: dict[str, Any] = httpx.get(f"{self.url}/health", trust_env=False).json()["backends"][0]
        return found


@pytest.fixture
def cheated(made: Made, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cheated]:
    monkeypatch.setattr("confide.proxy.backend.LOOK_SECONDS", 0.1)
    with fake_serving(made.parts.server) as server:
        address = ShellAddress(made.parts.client, server.url, {"owner": OWNER.public.raw, "patience": 2})
        with proxied(lambda: [ShellBackend("mine", address)]) as url:
            settled(url, "ready")
            yield Cheated(url, server)
    RefusalList().clear()


def refused_for(answer: httpx.Response, words: str) -> None:
    error = answer.json()["error"]
    assert (answer.status_code, error["type"]) == (403, "permission_error"), error
    assert words in error["message"]


def test_a_wrong_answer_refuses_the_server(cheated: Cheated) -> None:
    assert cheated.ask().status_code == 200
    cheated.server.tamper = FromFrame(0)
    wrong = cheated.ask()
    refused_for(wrong, "is not what this model gives")
    assert wrong.json()["error"]["code"] == "integrity"
    assert cheated.backend()["state"] == "refused"
    frames = len(cheated.server.frames)
    for _ in range(2):
        refused_for(cheated.ask(), "server")
    until = time.monotonic() + 30
    while cheated.backend()["code"] != "server-distrusted":  # as after a restart
        assert time.monotonic() < until
        assert cheated.backend()["state"] == "refused"
        time.sleep(0.05)
    refused_for(cheated.ask(), "gave a wrong answer")
    assert len(cheated.server.frames) == frames
    cheated.server.tamper = None
    RefusalList().clear()
    settled(cheated.url, "ready")
    assert cheated.ask().status_code == 200


def test_a_wrong_answer_counts_after_whoever_asked_has_left(cheated: Cheated) -> None:
    cheated.server.tamper = FromFrame(3)
    body = {"model": "mine", "prompt": PROMPT, "max_tokens": 40, "temperature": 0, "stream": True}
    with httpx.stream("POST", f"{cheated.url}/v1/completions", json=body, trust_env=False, timeout=120) as answer:
        next(answer.iter_lines())
    settled(cheated.url, "refused")
    refused_for(cheated.ask(), "server")


def test_a_wrong_answer_is_the_reason_before_whoever_asked_hears_of_it(
    cheated: Cheated, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed, add = threading.Event(), RefusalList.add

    def late(self: RefusalList, *what: Any) -> None:
        assert listed.wait(60)
        add(self, *what)

    monkeypatch.setattr(RefusalList, "add", late)
    cheated.server.tamper = FromFrame(0)
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(cheated.ask)
        try:
            settled(cheated.url, "refused")  # by looking: the model is closed already, and the question unanswered
            refused_for(cheated.ask(), "is not what this model gives")
            assert not asking.done()
        finally:
            listed.set()
        refused_for(asking.result(), "is not what this model gives")


def test_a_wrong_answer_counts_where_the_list_cannot_be_written(
    cheated: Cheated, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(RefusalList, "add", full)
    cheated.server.tamper = FromFrame(0)
    refused_for(cheated.ask(), "is not what this model gives")
    cheated.server.tamper = None
    until = time.monotonic() + 4  # it is verified anew meanwhile, more than once
    while time.monotonic() < until:
        assert cheated.backend()["state"] == "refused"
        time.sleep(0.05)
    assert cheated.server.greetings > 1
    refused_for(cheated.ask(), "is not what this model gives")


# -- a server that goes away --------------------------------------------------------------------------------------


def test_a_server_that_goes_away_is_noticed_without_a_question(cheated: Cheated) -> None:
    assert cheated.ask().status_code == 200
    cheated.server.stop()
    settled(cheated.url, "unreachable")
    health = httpx.get(f"{cheated.url}/health", trust_env=False)
    assert (health.status_code, health.json()["status"]) == (503, "unreachable")
    assert "No layer server answers at ws://127.0.0.1" in health.json()["backends"][0]["reason"]
    refused = cheated.ask()
    assert (refused.status_code, refused.json()["error"]["code"]) == (502, "connection-lost")
    cheated.server.start()
    settled(cheated.url, "ready")
    assert cheated.backend().get("reason") is None
    again = cheated.ask()
    assert again.status_code == 200
    assert again.json()["usage"]["prompt_tokens_details"]["cached_tokens"]  # the conversation was kept


def test_a_server_that_goes_away_meanwhile_is_not_called_ready(cheated: Cheated) -> None:
    def hang_up(_: object) -> None:
        raise ConnectionAbortedError

    assert cheated.ask().status_code == 200
    cheated.server.before = hang_up
    with ThreadPoolExecutor(1) as pool:
        waiting = pool.submit(cheated.ask)
        settled(cheated.url, "unreachable")
        assert not waiting.done()
        assert waiting.result().status_code == 502
    cheated.server.before = lambda _: None
    settled(cheated.url, "ready")
    assert cheated.ask().status_code == 200
