"""Users by their licence keys: whoever has none asks nothing, and whoever has one is charged for what was answered."""

import asyncio
import json
import secrets
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from confide.attest.simulated import SimulatedTee
from confide.channel.encryption import CACHE_SALT, MEDIA_TYPE, EncryptedExchange, RequestHead
from confide.enclave.api.answer import Serving
from confide.enclave.api.limits import Limits
from confide.enclave.api.line import Line
from confide.enclave.api.public import public_app
from confide.enclave.api.users import Users
from confide.enclave.workload import Workload
from confide.errors import EngineUnavailable, LedgerUnavailable
from confide.ledger.address import DatabaseAddress
from confide.ledger.keeper import KeptStore
from confide.ledger.ledger import Ledger
from confide.ledger.licences import licence_book
from confide.ledger.store import Store
from confide.receipts.documents import digest_of
from confide.receipts.receipt import HEADER, RETURNED, Receipt

from ..encrypted_client import attested_key
from ..fake_engine import FakeEngine
from ..serving import eventually, serving
from .test_crowd import get

MODEL = bytes(range(32))
CHAT = "/v1/chat/completions"


class House:
    """A server whose users have licences."""

    def __init__(self, url: str, engine: FakeEngine, state: Path, shown: Serving) -> None:
        self.url, self.engine, self.state, self.shown = url, engine, state, shown

    def licence(self, name: str = "reader", **limits: int | None) -> str:
        with licence_book(self.state) as book:
            return book.create(name, **limits)[1]

    def revoke(self, name: str = "reader") -> None:
        with licence_book(self.state) as book:
            book.change(book.find(name), revoked=1)

    def ask(self, key: str, words: int = 3, path: str = CHAT, **fields: Any) -> httpx.Response:
        content = {"model": "echo", "messages": [{"role": "user", "content": "word " * words}]} | fields
        return httpx.post(self.url + path, json=content, headers={"authorization": f"Bearer {key}"}, timeout=60)

    def sdk(self, key: str) -> openai.OpenAI:
        return openai.OpenAI(api_key=key, base_url=f"{self.url}/v1", max_retries=2)


@contextmanager
def house(state: Path, engine: FakeEngine | None = None, limits: Limits | None = None) -> Iterator[House]:
    engine = engine or FakeEngine()
    shown = Serving(engine, limits=limits or Limits(), users=Users(Ledger(state), MODEL))
    with serving(public_app(Workload(None), shown, tls_ends_here=True)) as url:  # type: ignore[arg-type]
        yield House(url, engine, state, shown)


def used(state: Path) -> dict[str, int]:
    """Tokens by unit, as the ledger has them when the server is gone."""
    with licence_book(state) as book:
        return {usage.unit: usage.tokens for usage in book.usage()}


NOBODYS = (
    {},
    {"authorization": "Bearer confide-nobody"},
    {"authorization": "Bearer"},
    {"authorization": "Basic confide-nobody"},
    {"authorization": f"Bearer {'x' * 129}"},
    {"x-api-key": "confide-nobody"},
)


def test_whoever_has_no_key_asks_nothing(tmp_path: Path) -> None:
    with house(tmp_path) as at, httpx.Client(base_url=at.url) as client:
        at.licence()
        for headers in NOBODYS:
            answer = client.post(CHAT, content=b"no JSON", headers=headers)
            error = answer.json()["error"]
            said = (answer.status_code, error["type"], error["code"])
            assert said == (401, "invalid_request_error", "invalid_api_key"), headers
            answer = client.post("/v1/messages", content=b"no JSON", headers=headers)
            assert (answer.status_code, answer.json()["error"]["type"]) == (401, "authentication_error")
        assert client.get("/v1/models").status_code == client.get("/health").status_code == 200
        both = [("authorization", f"Bearer {at.licence(name)}") for name in ("one", "other")]
        assert client.post(CHAT, content=b"{}", headers=both).status_code == 401
        assert not at.engine.prompts


def test_what_was_read_and_made_is_counted_once(tmp_path: Path) -> None:
    with house(tmp_path) as at:
        key = at.licence()
        found = [at.ask(key, 5).json()["usage"], at.ask(key, 3, n=3).json()["usage"]]
        with at.sdk(key) as client:
            made = client.completions.create(
                model="echo", prompt="a b c", stream=True, stream_options={"include_usage": True}
            )
            last = list(made)[-1].usage
            embedded = client.embeddings.create(model="echo", input=["one two", "three"]).usage
        assert last is not None
        found += [last.model_dump(), {"prompt_tokens": embedded.prompt_tokens, "completion_tokens": 0}]
        assert at.ask(key, path="/v1/messages/count_tokens").status_code == 200  # free
    assert used(tmp_path) == {
        "input": sum(one["prompt_tokens"] for one in found),
        "output": sum(one["completion_tokens"] for one in found),
    }
    assert used(tmp_path)["output"] > 20


def test_a_quota_that_is_used_up_says_so_in_openais_words_before_work_is_spent(tmp_path: Path) -> None:
    with house(tmp_path) as at:
        key = at.licence(tokens=20)
        assert at.ask(key, 30).json()["error"]["code"] == "insufficient_quota"  # the prompt alone is longer
        with pytest.raises(openai.RateLimitError) as refused:
            at.sdk(key).chat.completions.create(model="echo", messages=[{"role": "user", "content": "word " * 19}])
        assert refused.value.type == refused.value.code == "insufficient_quota"
        assert refused.value.response.headers["x-should-retry"] == "false"
        assert not at.engine.asked
        assert len(at.engine.prompts) == 2  # and no third: the SDK does not try again
        answer = at.ask(key, 10)
        assert answer.json()["choices"][0]["finish_reason"] == "length"
        assert answer.json()["usage"]["total_tokens"] == 20
        answer = at.ask(key)
        assert (answer.status_code, len(at.engine.prompts)) == (429, 3)  # not even read
    assert sum(used(tmp_path).values()) == 20


def test_answers_at_the_same_time_share_what_is_left_to_the_token(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(pause=0.01)) as at:
        key = at.licence(tokens=100)

        async def ask(client: httpx.AsyncClient, *, stream: bool) -> None:
            asked = {"model": "echo", "prompt": "word " * 10, "stream": stream, "n": 2}
            answer = await client.post("/v1/completions", json=asked, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code in (200, 429)

        async def crowd() -> None:
            async with httpx.AsyncClient(base_url=at.url, timeout=60) as client:
                await asyncio.gather(*(ask(client, stream=bool(number % 2)) for number in range(20)))

        asyncio.run(crowd())
        assert at.ask(key, 1).status_code == 429
    assert sum(used(tmp_path).values()) == 100


def test_tokens_a_minute_are_told_with_the_time_to_wait(tmp_path: Path) -> None:
    with house(tmp_path) as at:
        key = at.licence(tokens_per_minute=30)
        assert at.ask(key, 20).status_code == 200  # to its end, though it is more than that
        answer = at.ask(key, 1)
        error = answer.json()["error"]
        assert (answer.status_code, error["code"]) == (429, "rate_limit_exceeded")
        assert 20 <= int(answer.headers["retry-after"]) <= 60
        assert len(at.engine.prompts) == 1


def test_a_revoked_key_ends_at_once_also_within_an_answer(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(pause=0.05)) as at:
        key = at.licence()
        asked = {"model": "echo", "prompt": "word " * 900, "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        with httpx.stream("POST", f"{at.url}/v1/completions", json=asked, headers=headers, timeout=60) as answer:
            events = answer.iter_lines()
            next(events)
            at.revoke()
            assert at.ask(key).status_code == 401
            said = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
        assert said[-1]["error"]["code"] == "invalid_api_key"
        assert len(said) < 900
        eventually(lambda: at.engine.running == 0)


def test_a_key_that_was_replaced_ends_within_an_answer(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(pause=0.05)) as at:
        key = at.licence()
        asked = {"model": "echo", "prompt": "word " * 900, "stream": True}
        headers = {"authorization": f"Bearer {key}"}
        with httpx.stream("POST", f"{at.url}/v1/completions", json=asked, headers=headers, timeout=60) as answer:
            events = answer.iter_lines()
            next(events)
            with licence_book(at.state) as book:
                book.rekey(book.find("reader"))
            said = [json.loads(line[6:]) for line in events if line.startswith("data: {")]
        assert said[-1]["error"]["code"] == "invalid_api_key"


def test_who_leaves_pays_for_the_prompt_and_nobody_for_an_engine_that_fails(tmp_path: Path) -> None:
    with house(tmp_path, FakeEngine(pause=30)) as at:
        key = at.licence(tokens=100)
        with pytest.raises(httpx.ReadTimeout):
            httpx.post(
                f"{at.url}/v1/completions",
                json={"model": "echo", "prompt": "word " * 50},
                headers={"authorization": f"Bearer {key}"},
                timeout=0.5,
            )
        eventually(lambda: at.engine.running == 0)
        assert at.ask(key, 60).status_code == 429
    with house(tmp_path, FakeEngine()) as at:
        at.engine.says = "one"
        at.engine.generate = failing  # type: ignore[method-assign, assignment]
        assert at.ask(key).status_code == 503
    assert used(tmp_path) == {"input": 50}


async def failing(*_: object) -> Any:
    raise EngineUnavailable("The model's server is away; start it.")
    yield


def test_one_user_with_many_connections_has_one_share(tmp_path: Path) -> None:
    engine = FakeEngine(pause=0.05, parallel=8)
    with house(tmp_path, engine, Limits(waiting=64)) as at:
        greedy, other = at.licence("greedy"), at.licence("other")
        long, short = json.dumps({"query": "word " * 300}).encode(), json.dumps({"query": "hello"}).encode()

        def asking(key: str, address: int, body: bytes) -> Any:
            headers = f"Authorization: Bearer {key}\r\nX-Forwarded-For: 198.51.100.{address}\r\n"
            return get(at.url, "/generate", headers, body)

        async def crowd() -> None:
            many = [asyncio.create_task(asking(greedy, number, long)) for number in range(40)]
            while engine.running < 6:
                await asyncio.sleep(0.01)
            statuses = [(await asking(other, 1, short))[0] for _ in range(5)]
            assert statuses == [200] * 5
            assert engine.most_running <= 7  # three of four of eight, and the other one
            for task in many:
                task.cancel()

        asyncio.run(crowd())
        eventually(lambda: engine.running == 0)


def test_what_is_kept_of_prompts_is_each_users_own(tmp_path: Path) -> None:
    given = secrets.token_hex(32)
    with house(tmp_path) as at:
        one, other = at.licence("one"), at.licence("other")
        for key, headers in (
            (one, {}),
            (one, {}),
            (other, {}),
            (one, {CACHE_SALT: given}),
            (other, {CACHE_SALT: given}),
        ):
            answer = httpx.post(
                at.url + "/generate", json={"query": "hello"}, headers={"authorization": f"Bearer {key}"} | headers
            )
            assert answer.status_code == 200
        with licence_book(tmp_path) as book:  # the operator gives a user's licence another key
            renewed = book.rekey(book.find("one"))[1]
        assert at.ask(renewed).status_code == 200
        first, again, *others = [sampling.salt for sampling in at.engine.asked]
        assert first == again
        assert None not in (first, *others)
        assert len({first, *others}) == 5
        assert all(len(salt) == 32 and salt.hex() != given for salt in (first, *others) if salt is not None)


def test_whoever_carries_a_request_sees_no_key_and_cannot_ask_it_again(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee")
    engine = FakeEngine()
    shown = Serving(engine, users=Users(Ledger(tmp_path / "state"), MODEL))
    with serving(public_app(Workload(tee, tee.collateral), shown)) as url, httpx.Client(base_url=url) as client:
        with licence_book(tmp_path / "state") as book:
            key = book.create("reader")[1]
        exchange = EncryptedExchange(attested_key(client, tee))
        head = RequestHead("POST", "/generate", (("authorization", f"Bearer {key}"),))
        request = exchange.request(head, b'{"query": "a b c"}')
        assert key.encode() not in request
        headers = {"content-type": MEDIA_TYPE}
        first, again = (client.post("/encrypted", content=request, headers=headers) for _ in range(2))
        assert (first.status_code, again.json()["error"]["code"]) == (200, "channel-refused")
        # a key outside, where others could have put it, is nobody's
        bare = EncryptedExchange(attested_key(client, tee))
        request = bare.request(RequestHead("POST", "/generate"), b'{"query": "a b c"}')
        answer = client.post("/encrypted", content=request, headers=headers | {"authorization": f"Bearer {key}"})
        assert b"You said" not in b"".join(bare.reader.feed(answer.content))
    assert used(tmp_path / "state") == {"input": 3, "output": 5}


def test_a_user_may_have_the_count_with_a_receipt(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee")
    shown = Serving(FakeEngine(), users=Users(Ledger(tmp_path / "state"), MODEL))
    workload = Workload(tee, tee.collateral)
    with serving(public_app(workload, shown, tls_ends_here=True)) as url, httpx.Client(base_url=url) as client:
        with licence_book(tmp_path / "state") as book:
            made, key = book.create("reader", tokens=13)
            other = book.create("other")[1]
        mine, theirs = ({"authorization": f"Bearer {shown}"} for shown in (key, other))
        for headers in (mine, theirs):
            assert client.post("/generate", json={"query": "a b c"}, headers=headers).status_code == 200
        assert client.post("/generate", json={"query": "a b c d e f"}, headers=mine).status_code == 429
        answer = client.post("/v1/usage", json={"model": "echo"}, headers=mine)
        said = answer.json()
        assert (said["licence"], said["counted"]["input_tokens"], said["counted"]["output_tokens"]) == (
            made.id.hex(), 3, 5
        )  # fmt: skip
        assert (said["ledger"]["tokens_used"], said["ledger"]["tokens_left"]) == (8, 5)
        receipt = Receipt.read(client.get(f"/v1/aci/receipts/{answer.headers[HEADER]}").content)
        assert receipt.signed_by(workload.keyset.signing_key(workload.receipt_key.id))  # type: ignore[arg-type]
        [returned] = receipt.events(RETURNED)
        assert returned["body_hash"] == digest_of(answer.content)
        assert client.post("/v1/usage", json={}).status_code == 401
    with serving(public_app(workload, Serving(FakeEngine()), tls_ends_here=True)) as url:
        assert httpx.post(f"{url}/v1/usage", json={}).status_code == 400


def test_without_the_ledger_nobody_is_answered_and_its_place_is_not_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with house(tmp_path) as at:
        key = at.licence()

        def broken(self: Store, table: str, **_: object) -> None:
            raise LedgerUnavailable(f"{self.place} is away.")

        with monkeypatch.context() as patch:
            patch.setattr(Store, "row", broken)
            answer = at.ask(key)
        assert (answer.status_code, answer.json()["error"]["code"]) == (503, "ledger-unavailable")
        assert str(tmp_path) not in answer.text
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "in_touch", property(lambda _: False))
            unwell = httpx.get(f"{at.url}/health")
            assert (unwell.status_code, unwell.json()["reason"]) == (503, "ledger-unavailable")
            assert httpx.get(f"{at.url}/health/live").status_code == 200
        eventually(lambda: at.ask(key).status_code == 200)


def test_neither_keys_nor_salts_are_shown(tmp_path: Path) -> None:
    ledger = Ledger(tmp_path)
    with closing(ledger):
        key = ledger.licences.create("reader")[1]
        users = Users(ledger, MODEL)
        assert key not in repr(users) + repr(vars(users))


# -- batches -----------------------------------------------------------------------------------------------------------


def test_batches_get_what_is_left_and_never_all_of_it() -> None:
    async def run() -> list[str]:
        line, log, free = Line(4, 100), list[str](), asyncio.Event()

        async def stay(who: str, *, batch: bool) -> None:
            async with line.turn(who, batch=batch):
                log.append(who)
                await free.wait()

        batches = [asyncio.create_task(stay(f"batch{number}", batch=True)) for number in range(6)]
        await asyncio.sleep(0)
        assert log == ["batch0", "batch1", "batch2"]
        quick = [asyncio.create_task(stay(f"user{number}", batch=False)) for number in range(3)]
        await asyncio.sleep(0)
        assert log[3:] == ["user0"]
        free.set()
        await asyncio.gather(*batches, *quick)
        return log

    log = asyncio.run(run())
    assert log[4:6] == ["user1", "user2"]
    assert log[6:] == ["batch3", "batch4", "batch5"]


def test_batches_that_wait_keep_nobody_out() -> None:
    async def run() -> None:
        line, gone = Line(1, 4, longest=10), asyncio.Event()

        async def stay(who: str, *, batch: bool) -> None:
            async with line.turn(who, batch=batch):
                await gone.wait()

        tasks = [asyncio.create_task(stay(f"batch{number}", batch=True)) for number in range(20)]
        await asyncio.sleep(0)
        assert line.waiting == 4
        assert (line.estimate(batch=True), line.estimate()) == (5, 1)
        quick = [asyncio.create_task(stay(f"user{number}", batch=False)) for number in range(4)]
        await asyncio.sleep(0)
        assert line.waiting == 8
        gone.set()
        await asyncio.gather(*quick)
        await asyncio.gather(*tasks, return_exceptions=True)

    asyncio.run(run())


def test_a_batch_that_leaves_the_line_leaves_no_gap() -> None:
    async def run() -> None:
        line = Line(2, 10)

        async def stay(*, batch: bool) -> None:
            async with line.turn("somebody", batch=batch):
                await asyncio.sleep(0.01)

        for _ in range(3):
            tasks = [asyncio.create_task(stay(batch=True)) for _ in range(6)]
            await asyncio.sleep(0.005)
            for task in tasks[::2]:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        async with asyncio.timeout(60), line.turn("somebody", batch=True):
            pass
        assert (line.waiting, line.estimate(batch=True) > 0) == (0, True)

    asyncio.run(run())


def test_a_request_says_that_it_may_wait(tmp_path: Path) -> None:
    """Interactive before batch, at the API: a batch that came first is answered last."""
    engine = FakeEngine(pause=0.03, parallel=1)
    with house(tmp_path, engine) as at:
        keys = [at.licence(name) for name in ("first", "batch", "user")]
        order: list[str] = []

        async def ask(client: httpx.AsyncClient, key: str, prompt: str, **fields: str) -> None:
            asked = {"model": "echo", "prompt": prompt} | fields
            answer = await client.post("/v1/completions", json=asked, headers={"authorization": f"Bearer {key}"})
            assert answer.status_code == 200
            order.append(prompt)

        async def crowd() -> None:
            async with httpx.AsyncClient(base_url=at.url, timeout=60) as client:
                tasks = [asyncio.create_task(ask(client, keys[0], "a first prompt of many words that takes a while"))]
                while not engine.running:
                    await asyncio.sleep(0.001)
                tasks.append(asyncio.create_task(ask(client, keys[1], "batch", service_tier="flex")))
                metrics = "confide_requests_waiting"
                while not waiting(metrics):
                    await asyncio.sleep(0.01)
                tasks.append(asyncio.create_task(ask(client, keys[2], "user", service_tier="auto")))
                while waiting(metrics) < 2:
                    await asyncio.sleep(0.01)
                await asyncio.gather(*tasks)

        def waiting(name: str) -> float:
            return at.shown.metrics.registry.get_sample_value(name) or 0

        asyncio.run(crowd())
        assert order == ["a first prompt of many words that takes a while", "user", "batch"]


def test_a_service_whose_ledger_nobody_keeps_any_more_asks_to_be_restarted(database: DatabaseAddress) -> None:
    store = KeptStore(database)
    shown = Serving(FakeEngine(), users=Users(Ledger(store), MODEL))
    with serving(public_app(Workload(None), shown, tls_ends_here=True)) as url:  # type: ignore[arg-type]

        def answers() -> tuple[int, int]:
            return httpx.get(f"{url}/health").status_code, httpx.get(f"{url}/health/live").status_code

        assert answers() == (200, 200)
        vars(store)["_process"].kill()
        eventually(lambda: answers()[1] == 503)
        assert httpx.get(f"{url}/health/live").json()["reason"] == "ledger-unavailable"
        eventually(lambda: answers() == (503, 503))
