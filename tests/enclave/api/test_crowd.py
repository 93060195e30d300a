"""Many at once, and one that asks for much: everybody is verified, everybody is answered, nobody takes it all."""

import asyncio
import json
import random
import secrets
import time
from collections import Counter
from pathlib import Path

import httpx
import pytest

from confide.attest.simulated import SimulatedTee
from confide.attest.wire import Attested
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.limits import Limits
from confide.enclave.api.line import Line
from confide.enclave.api.public import public_app
from confide.enclave.engines.engine import Sampling
from confide.enclave.workload import Workload
from confide.errors import EngineUnavailable, ServerBusy

from ..fake_engine import FakeEngine
from ..serving import eventually, serving


async def verify(url: str, nonce: str) -> bytes:
    """Evidence for a nonce, as clients ask for it: they come back when they are told to."""
    until = time.monotonic() + 600
    while time.monotonic() < until:
        status, content = await get(url, f"/attestation?nonce={nonce}")
        if status == 200:
            return content
        assert status in (429, 0)
        await asyncio.sleep(random.uniform(1, 10))
    raise AssertionError("It was turned away for ten minutes.")


async def get(url: str, path: str, headers: str = "", body: bytes = b"") -> tuple[int, bytes]:
    """One request on a connection of its own, without a client's weight. Status 0: it was closed without an answer."""
    reader, writer = await asyncio.open_connection("127.0.0.1", int(url.rsplit(":", 1)[1]))
    method = "POST" if body else "GET"
    length = f"Content-Length: {len(body)}\r\n" if body else ""
    writer.write(f"{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{headers}{length}\r\n".encode() + body)
    answer = await reader.read()
    writer.close()
    head, _, content = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]) if head else 0, content


def test_a_thousand_verify_at_once(tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path)
    limits = Limits(attestations_per_second=1000)

    async def crowd(url: str) -> None:
        nonces = [secrets.token_hex(32) for _ in range(1000)]
        shown = await asyncio.gather(*(verify(url, nonce) for nonce in nonces))
        assert [Attested.decode(content).statement.nonce for content in shown] == nonces

    with serving(public_app(Workload(tee, tee.collateral), Serving(FakeEngine(), limits=limits))) as url:
        asyncio.run(crowd(url))


def test_a_hundred_users_with_sixteen_places_are_all_answered() -> None:
    engine = FakeEngine(pause=0.01, parallel=16)

    async def crowd(url: str) -> list[bytes]:
        asked = [json.dumps({"query": f"this is {number}"}).encode() for number in range(100)]
        answers = await asyncio.gather(*(get(url, "/generate", body=body) for body in asked))
        return [content for _, content in answers]

    with serving(api_app(Serving(engine))) as url:
        found = asyncio.run(crowd(url))
    assert [json.loads(content)["response"] for content in found] == [f"You said: this is {n}" for n in range(100)]
    assert 12 <= engine.most_running <= 16


def test_one_client_behind_a_gateway_leaves_places_to_others() -> None:
    engine = FakeEngine(pause=0.05, parallel=8)
    long, short = json.dumps({"query": "word " * 400}).encode(), json.dumps({"query": "hello"}).encode()

    async def crowd(url: str) -> float:
        greedy = [asyncio.create_task(get(url, "/generate", "X-Forwarded-For: 192.0.2.1\r\n", long)) for _ in range(60)]
        while engine.running < 6:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.3)
        assert engine.running == 6  # three of four
        started = time.monotonic()
        others = (get(url, "/generate", f"X-Forwarded-For: 198.51.100.{n}\r\n", short) for n in range(20))
        assert Counter(status for status, _ in await asyncio.gather(*others)) == {200: 20}
        took = time.monotonic() - started
        for task in greedy:
            task.cancel()
        return took

    with serving(api_app(Serving(engine, limits=Limits(waiting=64)))) as url:
        assert asyncio.run(crowd(url)) < 10
        eventually(lambda: engine.running == 0)


# -- the line itself ---------------------------------------------------------------------------------------------------


async def stay(line: Line, who: str, log: list[str], seconds: float = 0.01) -> None:
    async with line.turn(who):
        log.append(who)
        await asyncio.sleep(seconds)


def test_first_come_first_served() -> None:
    async def run() -> list[str]:
        line, log = Line(2, 100), list[str]()
        await asyncio.gather(*(stay(line, f"{number:02}", log) for number in range(40)))
        assert line.waiting == 0
        return log

    log = asyncio.run(run())
    assert log == sorted(log)


def test_who_has_fewest_turns_is_next_and_nobody_takes_the_line() -> None:
    async def run() -> None:
        line, log = Line(4, 20), list[str]()
        tasks, refused = [], 0
        for _ in range(40):
            tasks.append(asyncio.create_task(stay(line, "greedy", log, 0.05)))
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert line.waiting == 10  # half of the line, beside three turns
        quiet = asyncio.create_task(stay(line, "quiet", log))
        await asyncio.sleep(0.02)
        assert "quiet" in log
        refused = sum(isinstance(error, ServerBusy) for error in await asyncio.gather(*tasks, return_exceptions=True))
        assert refused == 27
        assert log.count("greedy") == 13
        await quiet

    asyncio.run(run())


def test_who_leaves_the_line_leaves_no_gap() -> None:
    async def run() -> None:
        line, log = Line(1, 10), list[str]()
        first = asyncio.create_task(stay(line, "a", log, 0.05))
        waiting = [asyncio.create_task(stay(line, who, log)) for who in "bcd"]
        await asyncio.sleep(0.01)
        waiting[0].cancel()
        waiting[2].cancel()
        await asyncio.gather(first, *waiting, return_exceptions=True)
        assert log == ["a", "c"]
        first = asyncio.create_task(stay(line, "e", log, 0.05))
        called = asyncio.create_task(stay(line, "f", log))
        await asyncio.sleep(0.01)
        await first
        called.cancel()  # in the moment in which it is called
        await asyncio.gather(called, return_exceptions=True)
        await asyncio.wait_for(stay(line, "g", log), 1)
        assert log[-1] == "g"

    asyncio.run(run())


def test_nobody_is_let_in_to_wait_too_long() -> None:
    async def run() -> float:
        line, log = Line(1, 100, longest=10), list[str]()
        tasks = [asyncio.create_task(stay(line, f"{number}", log, 0)) for number in range(30)]
        done = await asyncio.gather(*tasks, return_exceptions=True)
        [busy, *_] = [error for error in done if isinstance(error, ServerBusy)]
        assert len(log) == 11  # a second each, as long as nothing is known
        return busy.retry_seconds

    assert asyncio.run(run()) == pytest.approx(11)


def test_engine_faults_are_the_servers_and_show_in_its_health() -> None:
    engine = FakeEngine()
    with serving(public_app(Workload(None), Serving(engine), tls_ends_here=True)) as url:  # type: ignore[arg-type]
        engine.broken = EngineUnavailable("The model's server is away; start it.")
        answer = httpx.post(f"{url}/generate", json={"query": "a b c"})
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "server_error")
        eventually(lambda: httpx.get(f"{url}/health").status_code == 200)
        assert Sampling(1, temperature=0) in engine.asked  # it was looked after at once
