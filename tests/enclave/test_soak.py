"""Ten minutes of users who chat, stream, break off, send nonsense and come back: nothing leaks, nobody is let down."""

import itertools
import json
import os
import random
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import NotDebug
from confide.attest.simulated import SimulatedTee
from confide.broker.store import Conditions, KeyStore
from confide.channel.encryption import MEDIA_TYPE, PATH
from confide.cli.demo.process import serving
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.client.enclave import EnclaveSession
from confide.enclave.boot import examine
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.write import seal_model

from .encrypted_client import attested_key, encrypted
from .serving import eventually

SECONDS = float(os.environ.get("CONFIDE_SOAK_SECONDS", "600"))
ENGINES = ("transformers", "llama.cpp")
GROWTH = 64 << 20
"""Memory that a server may take on top of what it has after its first fifth of the time."""
POLICY = SimulatedPolicy.all_of(NotDebug())
PROMPTS = ("Tell me of the king.", "Who lives in the wood?", "What did the wolf say? " * 20)
TOKENS = 24


@dataclass(frozen=True)
class Served:
    """A server process and what its users need to know. metrics: its private port. log: what it wrote."""

    url: str
    process: int
    metrics: int
    tee: Path
    log: Path

    def memory(self) -> int:
        """Resident bytes."""
        pages = int(Path(f"/proc/{self.process}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")

    def descriptors(self) -> int:
        """How many are open."""
        return len(os.listdir(f"/proc/{self.process}/fd"))

    def threads(self) -> int:
        """How many there are."""
        return len(os.listdir(f"/proc/{self.process}/task"))

    def answers_running(self) -> float:
        """By the server's own count."""
        text = httpx.get(f"http://127.0.0.1:{self.metrics}/metrics", trust_env=False).text
        found = re.search(r"^confide_answers_running (\S+)$", text, re.MULTILINE)
        assert found
        return float(found[1])

    def session(self) -> EnclaveSession:
        """Verifies the workload."""
        return EnclaveSession(self.url, policy=POLICY, simulated_root=self.tee / "root.pem")


@pytest.fixture(params=ENGINES)
def served(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Served]:
    """`confide serve` with the demo model, whose key it has of `confide keys serve`."""
    model = "demo"
    if request.param == "llama.cpp":
        model = str(tmp_path / "demo.gguf")
        write_gguf(open_model("demo"), Path(model), GgufType.Q8_0, lambda _done, _total: None)
    package, keys, tee = tmp_path / "package", tmp_path / "keys", tmp_path / "tee"
    key, passphrase = ModelKey.generate(), secrets.token_hex(16)
    digest = seal_model(contents_of(model), package, key=key, owner=OwnerKey.generate(), examine=examine).model_digest
    SimulatedTee.create(tee)
    root = (tee / "root.pem").read_bytes()
    KeyStore.create(keys, passphrase).add(key, Conditions(digest, POLICY, root), datetime.now(UTC))
    environment = {PASSPHRASE_VARIABLE: passphrase, "CONFIDE_HOME": str(tmp_path / "home")}
    log = tmp_path / "log"
    with serving("keys", "serve", "--folder", str(keys), "--port", "0", "--offline", environment=environment) as broker:
        command = ["serve", str(package), "--tee", "simulated", "--simulated-tee", str(tee), "--keys", broker["url"]]
        with socket.create_server(("127.0.0.1", 0)) as free:
            metrics = free.getsockname()[1]
        command.extend(["--port", "0", "--metrics-port", str(metrics)])
        with running(command, environment, log) as (announced, process):
            assert announced["engine"] == request.param
            yield Served(announced["url"], process, metrics, tee, log)


@contextmanager
def running(command: list[str], environment: dict[str, str], log: Path) -> Iterator[tuple[dict[str, Any], int]]:
    """A command of ours that announces itself, and its process id; it must end well when told to."""
    with log.open("w") as errors:
        process = subprocess.Popen(
            [sys.executable, "-m", "confide", *command, "--json"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            env=os.environ | environment,
        )
    assert process.stdout is not None
    try:
        yield json.loads(process.stdout.readline()), process.pid
        process.send_signal(signal.SIGTERM)
        assert process.wait(40) == 0
    finally:
        process.kill()
        process.wait()


class Users:
    """What the users' threads do until they are told to stop."""

    def __init__(self, served: Served, answers: dict[str, str] | None) -> None:
        """answers: to each prompt, where the engine gives always the same."""
        self.served, self.answers = served, answers
        self.stop = threading.Event()
        self.wrong: list[str] = []
        self.done = dict.fromkeys(("chat", "stream", "cancel", "come back", "talk nonsense"), 0)

    def start(self) -> list[threading.Thread]:
        """Start everybody."""
        habits: list[tuple[str, Callable[[], Iterator[None]]]] = [
            ("chat", self.chat),
            ("stream", self.stream),
            ("stream", self.stream),
            ("cancel", self.cancel),
            ("come back", self.come_back),
            ("talk nonsense", self.talk_nonsense),
        ]
        threads = [threading.Thread(target=self._live, args=habit) for habit in habits]
        for thread in threads:
            thread.start()
        return threads

    def _live(self, name: str, habit: Callable[[], Iterator[None]]) -> None:
        try:
            for _ in habit():
                self.done[name] += 1
                if self.stop.is_set():
                    return
        except Exception as error:  # noqa: BLE001 - whatever it is, the test must hear of it
            self.wrong.append(f"{name}: {error!r}")

    def chat(self) -> Iterator[None]:
        """Whole answers, one after the other."""
        with self.served.session() as session:
            for prompt in itertools.cycle(PROMPTS):
                self._check(prompt, session.chat(prompt, max_tokens=TOKENS, temperature=0))
                yield

    def stream(self) -> Iterator[None]:
        """Answers in pieces."""
        with self.served.session() as session:
            for prompt in itertools.cycle(PROMPTS):
                self._check(prompt, "".join(session.chat(prompt, stream=True, max_tokens=TOKENS, temperature=0)))
                yield

    def cancel(self) -> Iterator[None]:
        """Break off after a piece or two of a long answer."""
        with self.served.session() as session:
            while True:
                pieces = session.chat(random.choice(PROMPTS), stream=True, max_tokens=300)
                for _ in range(random.randint(1, 2)):
                    next(pieces, "")
                pieces.close()
                yield

    def come_back(self) -> Iterator[None]:
        """Verify anew, ask once and leave."""
        while not self.stop.wait(0.3):  # attestations have a rate
            with self.served.session() as session:
                self._check(PROMPTS[0], session.chat(PROMPTS[0], max_tokens=TOKENS, temperature=0))
            yield

    def talk_nonsense(self) -> Iterator[None]:
        """What is no request, is a damaged one, or came before; each is refused. And connections that lead nowhere."""
        headers = {"content-type": MEDIA_TYPE}
        question = {"query": PROMPTS[0], "max_tokens": 1}
        with httpx.Client(base_url=self.served.url, trust_env=False, timeout=60) as client:
            key = attested_key(client, SimulatedTee.open(self.served.tee))
            while not self.stop.wait(0.05):
                _, good = encrypted(key, "/generate", question)
                answered = client.post(PATH, content=good, headers=headers).status_code
                cut, flipped = good[: random.randrange(len(good))], bytearray(good)
                flipped[random.randrange(len(good))] ^= 1
                bad = (good, cut, bytes(flipped), random.randbytes(5000), b"")
                refused = [client.post(PATH, content=body, headers=headers).status_code for body in bad]
                if answered != 200 or not all(400 <= status < 500 for status in refused):
                    self.wrong.append(f"a question got {answered}, nonsense {refused}")
                self._connect_and_leave(good)
                yield

    def _connect_and_leave(self, request: bytes) -> None:
        address = httpx.URL(self.served.url)
        head = f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Type: {MEDIA_TYPE}\r\nContent-Length: {len(request)}\r\n"
        started = head.encode() + b"\r\n" + request[:-1]
        with socket.create_connection((address.host, address.port or 80)) as connection:
            connection.sendall(random.choice((b"", head.encode(), started, random.randbytes(3000))))

    def _check(self, prompt: str, answer: str) -> None:
        if not answer or (self.answers and answer != self.answers[prompt]):
            self.wrong.append(f"a wrong answer of {len(answer)} characters")


def usual_answers(served: Served) -> dict[str, str]:
    with served.session() as session:
        return {prompt: session.chat(prompt, max_tokens=TOKENS, temperature=0) for prompt in PROMPTS}


@pytest.mark.slow
def test_nothing_leaks_and_nobody_is_let_down(served: Served, request: pytest.FixtureRequest) -> None:
    answers = usual_answers(served)
    seconds = SECONDS / len(ENGINES)
    idle = served.descriptors()
    # llama.cpp computes requests together, so that its answers may differ in the closest of choices.
    users = Users(served, answers if "transformers" in request.node.name else None)
    threads = users.start()
    time.sleep(seconds / 5)
    settled = highest = served.memory()
    working = served.threads()
    end = time.monotonic() + seconds * 4 / 5
    while time.monotonic() < end and not users.wrong:
        time.sleep(min(1.0, seconds / 50))
        highest = max(highest, served.memory())
    users.stop.set()
    for thread in threads:
        thread.join(60)
    found = f"{users.done}, memory {settled >> 20} to {highest >> 20} MiB, {idle} descriptors, {working} threads"
    request.node.add_report_section("call", "soak", found)
    assert users.wrong == []
    assert all(count > seconds / 20 for count in users.done.values()), users.done
    assert highest - settled < GROWTH, f"from {settled >> 20} to {highest >> 20} MiB"
    eventually(lambda: served.answers_running() == 0)
    eventually(lambda: served.descriptors() <= idle)
    assert served.threads() <= working + len(threads)
    assert "failed" not in served.log.read_text()
