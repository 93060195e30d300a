"""The workload's side against a broker in another process: retries, TLS, and what survives a kill."""

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import httpx
import msgspec
import pytest
from tests import hostile
from tests.enclave.key_release.scene import KEY, MODEL, NOW, PASSPHRASE, Scene, simulated

from confide.attest.simulated import SimulatedTee
from confide.broker.log import LOG_NAME, LogReader, verify
from confide.broker.store import SCRYPT_COST, KeyStore
from confide.channel.key_release import NonceAnswer, Refusal, RefusalAnswer, ReleaseAnswer, wrapping_info
from confide.enclave import fetch_key as remote
from confide.enclave.fetch_key import fetch_key
from confide.enclave.workload import Workload
from confide.errors import (
    BROKER_CODES,
    ChannelRefused,
    ConfideError,
    ConnectionLost,
    InsecureConnection,
    KeyRefused,
    NonceRefused,
    ProtocolError,
    ServerBusy,
)
from confide.net.tls import client_context, make_certificates


@contextmanager
def serving(folder: Path, *options: object) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """`confide keys serve` in a process of its own, and its address."""
    command = [sys.executable, "-m", "confide", "keys", "serve", "--json", "--port", "0", "--offline"]
    command += ["--folder", str(folder), *map(str, options)]
    environment = dict(os.environ) | {"CONFIDE_KEYS_PASSPHRASE": PASSPHRASE}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout
        yield process, json.loads(process.stdout.readline())["url"]
        process.kill()


def fetch_until_lost(url: str, workload: Workload) -> int:
    """How often a key came before the broker was gone."""
    count = 0
    with contextlib.suppress(ConnectionLost):
        while count < 10_000:
            assert fetch_key(url, KEY.id, workload, attempts=1) == KEY
            count += 1
    return count


def test_over_loopback_and_after_a_kill(
    tmp_path: Path, tee: SimulatedTee, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("confide.broker.store.SCRYPT_COST", SCRYPT_COST)  # as the process has it
    folder = tmp_path / "keys"
    KeyStore.create(folder, PASSPHRASE).add(KEY, simulated(tee), NOW)
    workload = Workload(tee, tee.collateral, model_digest=MODEL)
    with serving(folder) as (broker, url):
        assert fetch_key(url, KEY.id, workload) == KEY
        workload.model_digest = "cd" * 32
        with pytest.raises(KeyRefused) as caught:
            fetch_key(url, KEY.id, workload)
        assert caught.value.checks == ("model",)
        workload.model_digest = MODEL
        nonce = httpx.post(f"{url}/nonce").json()["nonce"]
        killer = threading.Timer(0.3, broker.kill)  # as kill -9 does, in the middle of things
        killer.start()
        released = 1 + fetch_until_lost(url, workload)
    events = [line.entry.event for line in LogReader(folder / LOG_NAME)]
    assert released <= events.count("released") <= released + 1  # the last answer may have been lost
    head = verify(folder / LOG_NAME).head
    with (folder / LOG_NAME).open("ab") as file:
        file.write(b'{"entry":{"at":"2026')  # a crash in the middle of a line

    certificates = make_certificates([])
    ca, chain, key = certificates.write(tmp_path / "tls")
    with serving(folder, "--tls-cert", chain, "--tls-key", key) as (broker, url):
        assert url.startswith("https://")
        with pytest.raises(ConnectionLost):
            fetch_key(url, KEY.id, workload, attempts=1)  # an authority that nobody trusts
        tls = client_context(ca)
        forgotten = {"key": KEY.id, "attested": msgspec.to_builtins(workload.attest(nonce))}
        with httpx.Client(verify=tls) as client:
            assert client.post(f"{url}/release", json=forgotten).status_code == 409
        assert fetch_key(url, KEY.id, workload, tls=tls) == KEY
        broker.terminate()
        assert broker.wait(60) == 0
    after = [line.entry.event for line in LogReader(folder / LOG_NAME)]
    assert after == [*events, "recovered", "released"]
    verify(folder / LOG_NAME, head)
    printed = capfd.readouterr()
    assert KEY.raw.hex() not in printed.out + printed.err
    assert "POST" not in printed.out + printed.err  # no access log


@pytest.mark.slow  # test_log.py has two processes that write one log, without brokers around them
def test_two_brokers_for_one_log_of_which_one_is_killed(
    tmp_path: Path, tee: SimulatedTee, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.broker.store.SCRYPT_COST", SCRYPT_COST)  # as the processes have it
    folder = tmp_path / "keys"
    KeyStore.create(folder, PASSPHRASE).add(KEY, simulated(tee), NOW)
    workloads = [Workload(tee, tee.collateral, model_digest=MODEL) for _ in range(2)]
    with serving(folder) as (broker, first), serving(folder) as (_, second), ThreadPoolExecutor() as pool:
        until_killed = pool.submit(fetch_until_lost, first, workloads[0])
        for count in range(60):
            assert fetch_key(second, KEY.id, workloads[1], attempts=1) == KEY
            if count == 30:
                broker.kill()
        released = 60 + until_killed.result(60)
    entries = [line.entry for line in LogReader(folder / LOG_NAME)]
    assert len({entry.nonce for entry in entries if entry.event == "released"}) in (released, released + 1)
    assert {entry.event for entry in entries} <= {"released", "recovered"}
    assert released > 60
    verify(folder / LOG_NAME)


# -- retries, with a broker that says what it is told ------------------------------------------------------------

Handler = Callable[[httpx.Request], httpx.Response]


@pytest.fixture
def answers(monkeypatch: pytest.MonkeyPatch) -> Callable[[Handler], None]:
    """Puts something else in the place of the network."""
    client = httpx.Client

    def put(handler: Handler) -> None:
        transport = httpx.MockTransport(handler)
        monkeypatch.setattr(
            remote.httpx, "Client", lambda **options: client(transport=transport, base_url=options["base_url"])
        )

    return put


def _refusal(status: int, code: str, checks: tuple[str, ...] = ()) -> httpx.Response:
    return httpx.Response(status, content=msgspec.json.encode(RefusalAnswer(Refusal(code, "No.", checks))))


def _fetch(scene: Scene, pauses: list[float] | None = None) -> object:
    sleep = (lambda seconds: None) if pauses is None else pauses.append
    return fetch_key("https://broker.example", KEY.id, scene.workload, attempts=3, sleep=sleep)


class Broker:
    """A scene's broker, after some answers of another kind."""

    def __init__(self, scene: Scene, *before: httpx.Response | Exception) -> None:
        self.scene, self.before = scene, list(before)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if self.before:
            first = self.before.pop(0)
            if isinstance(first, Exception):
                raise first
            return first
        if request.url.path == "/nonce":
            return httpx.Response(200, content=msgspec.json.encode(self.scene.broker.nonce(self.scene.now)))
        asked = msgspec.json.decode(request.content, type=remote.ReleaseRequest)
        return httpx.Response(200, content=msgspec.json.encode(self.scene.release(asked)))


PASSING = (
    httpx.ConnectError("refused"),
    httpx.ReadTimeout("slow"),
    httpx.Response(503, text="Service Unavailable"),
    _refusal(429, "server-busy"),
    _refusal(500, "server-fault"),
    _refusal(409, "nonce-refused"),
    _refusal(403, "key-refused", ("collateral-unavailable",)),
)


@pytest.mark.parametrize("problem", PASSING)
def test_what_passes_is_tried_again(
    scene: Scene, answers: Callable[[Handler], None], problem: httpx.Response | Exception
) -> None:
    answers(Broker(scene, problem, problem))
    pauses: list[float] = []
    assert _fetch(scene, pauses) == KEY
    assert len(pauses) == 2
    assert 0.25 <= pauses[0] <= pauses[1] * 2 <= 8


LASTING: tuple[tuple[httpx.Response | Exception, type[ConfideError]], ...] = (
    (_refusal(403, "key-refused", ("debug",)), KeyRefused),
    (_refusal(403, "key-refused", ("collateral-unavailable", "debug")), KeyRefused),
    (httpx.Response(404, text="Not Found"), ProtocolError),
    (httpx.Response(200, text="<html>"), ProtocolError),
    (httpx.Response(200, content=msgspec.json.encode(NonceAnswer("no digits", 1))), ProtocolError),
    (httpx.Response(200, content=bytes(1 << 20)), ProtocolError),
    (_refusal(400, "a-code-of-the-future"), ProtocolError),
)


@pytest.mark.parametrize(("problem", "kind"), LASTING)
def test_what_lasts_is_not(
    scene: Scene, answers: Callable[[Handler], None], problem: httpx.Response, kind: type[ConfideError]
) -> None:
    answers(Broker(scene, problem))
    pauses: list[float] = []
    with pytest.raises(kind):
        _fetch(scene, pauses)
    assert pauses == []


def test_a_broker_chooses_no_error_but_its_own(scene: Scene, answers: Callable[[Handler], None]) -> None:
    for kind in hostile.kinds():
        refusal = RefusalAnswer(Refusal(kind.code, hostile.ALL.replace("\ud800", ""), (hostile.WORDS[0],)))
        answers(Broker(scene, *[httpx.Response(400, content=msgspec.json.encode(refusal))] * 3))
        with pytest.raises(ConfideError, match='The key broker says: "') as caught:
            _fetch(scene)
        assert type(caught.value) is (kind if kind.code in BROKER_CODES else ProtocolError)
        assert all(check.isprintable() for check in getattr(caught.value, "checks", ()))


def test_deep_json_is_no_answer(scene: Scene, answers: Callable[[Handler], None]) -> None:
    for status in (200, 400):
        answers(Broker(scene, httpx.Response(status, content=b'{"x":' + b"[" * 50_000)))
        with pytest.raises(ProtocolError, match="no key broker"):
            _fetch(scene)


@pytest.mark.parametrize(
    ("problem", "kind"),
    [(PASSING[0], ConnectionLost), (_refusal(429, "server-busy"), ServerBusy), (PASSING[5], NonceRefused)],
)
def test_patience_ends(
    scene: Scene, answers: Callable[[Handler], None], problem: httpx.Response | Exception, kind: type[ConfideError]
) -> None:
    answers(Broker(scene, *[problem] * 3))
    with pytest.raises(kind):
        _fetch(scene)


def test_another_key_is_not_taken(scene: Scene, answers: Callable[[Handler], None]) -> None:
    nonce = "12" * 32

    def wrong(wrapped: bytes) -> Handler:
        released = msgspec.json.encode(ReleaseAnswer(KEY.id, wrapped))
        return Broker(
            scene, httpx.Response(200, json={"nonce": nonce, "seconds": 9}), httpx.Response(200, content=released)
        )

    public, info = scene.workload.key.public, wrapping_info(KEY.id, nonce)
    for other in (bytes(32), KEY.raw[1:]):
        answers(wrong(public.encrypt(other, info)))
        with pytest.raises(ProtocolError, match="another key"):
            _fetch(scene)
    answers(wrong(public.encrypt(KEY.raw, b"something else")))
    with pytest.raises(ChannelRefused):
        _fetch(scene)


@pytest.mark.parametrize("url", ["http://broker.example", "ftp://localhost", "broker.example:8471", ""])
def test_plain_connections_stay_on_this_machine(scene: Scene, url: str) -> None:
    with pytest.raises(InsecureConnection, match="https"):
        fetch_key(url, KEY.id, scene.workload)
