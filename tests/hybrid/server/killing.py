"""A server process that may be killed at any moment, and a witness of every answer that was about to leave it."""

import multiprocessing
import os
import random
import socket
import struct
import threading
import time
from collections import Counter
from contextlib import suppress
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Final

import torch
from websockets.exceptions import WebSocketException

from confide.disk.secrets import LEDGER_PASSWORD, variable
from confide.errors import LedgerUnavailable, ServerBusy
from confide.hybrid import wire
from confide.hybrid.server.server import serve
from confide.hybrid.server.service import Admitted, LayerService
from confide.ledger.address import Place, parse_place

from .world import SHAPES, Client, Tokens, service

PASSWORD: Final = variable(LEDGER_PASSWORD)
_RECORD: Final = struct.Struct("<HH")


def processes() -> ForkServerContext:
    """Makes processes that have imported everything already, so that a restart takes milliseconds."""
    tests = str(Path(__file__).resolve().parents[2])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", __name__])
    try:
        context.Process(target=_nothing).start()
    finally:
        os.environ["PYTHONPATH"] = path or ""
    return context


def _nothing() -> None:
    pass


class WitnessedService(LayerService):
    """Notes every answer after it was charged and before it leaves: what left is noted, what is noted was charged."""

    witness: int

    def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        found = super().answers(group, admitted)
        _dawdle()
        record = _RECORD.pack(group, sum(request.count for request in admitted))
        assert os.write(self.witness, record) == len(record)
        _dawdle()
        return found


def _dawdle() -> None:
    """So that kills between charging, noting and sending are no rarity."""
    time.sleep(random.uniform(0, 0.002))


def answered(witness: Path) -> Counter[int]:
    """How many tokens of each layer group were answered, by all processes together."""
    totals: Counter[int] = Counter()
    for group, tokens in _RECORD.iter_unpack(witness.read_bytes()):
        totals[group] += tokens
    return totals


def serve_until_killed(place: str, witness: Path, port: int, password: str) -> None:
    torch.set_num_threads(1)
    os.environ[PASSWORD] = password  # of a test that began after the process that makes processes
    while True:  # until its database is there
        with suppress(LedgerUnavailable):
            made = service(parse_place(place), insecure_no_licences=False)
            break
    made.__class__ = WitnessedService
    made.witness = os.open(witness, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)  # type: ignore[attr-defined]
    serve({"small": made}, "127.0.0.1", port)


class Traffic:
    """Clients that go on whatever happens to the server: a connection, some exact products, another connection.

    exact: products that were checked. retried: requests that were sent again with p0, the same bytes.
    """

    def __init__(self, url: str, licence: str, clients: int) -> None:
        self.exact = self.retried = 0
        self.trouble: list[BaseException] = []
        self._url, self._licence = url, licence
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(number,)) for number in range(clients)]
        for thread in self._threads:
            thread.start()

    def _run(self, number: int) -> None:
        randomly = random.Random(number)
        try:
            while not self._stop.is_set():
                tokens = Tokens(randomly.choice((1, 1, 2, 9)), seed=randomly.getrandbits(32))
                requests = [tokens.request(group, with_p0=False) for group in range(len(SHAPES))]
                client: Client | None = None
                while requests and not self._stop.is_set():
                    with suppress(OSError, WebSocketException, ServerBusy, LedgerUnavailable, EOFError):
                        if client is None:
                            client = Client(self._url, self._licence, open_timeout=5)
                            if randomly.random() < 0.5:
                                client.send(tokens.ahead(0))
                        if self._exchange(client, tokens, requests[0]):
                            requests.pop(0)
                        continue
                    client = None
                    time.sleep(0.01)
                if client is not None:
                    client.socket.close()
        except BaseException as error:
            self.trouble.append(error)
            raise

    def _exchange(self, client: Client, tokens: Tokens, request: wire.Online) -> bool:
        answer = client.ask(request)
        if isinstance(answer, wire.Failure) and answer.code == "unknown-block":
            self.retried += 1
            group, block, first, count = request.group, request.block, request.first, request.count
            answer = client.ask(wire.Online(group, block, first, count, request.planes, memoryview(tokens.p0)))
        if isinstance(answer, wire.Failure) and answer.code in (LedgerUnavailable.code, ServerBusy.code):
            return False  # the database is away
        tokens.require_exact(request.group, answer)
        self.exact += 1
        return True

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(30)
        assert not self.trouble, self.trouble


class Servers:
    """One server after the other on the same port and ledger, which other servers may share."""

    def __init__(self, context: ForkServerContext, place: Place, witness: Path) -> None:
        self._context = context
        self._place, self._witness = place, witness
        self.port = _free_port()
        self.process = self._start()

    def _start(self) -> ForkServerProcess:
        password = os.environ.get(PASSWORD, "")
        process = self._context.Process(
            target=serve_until_killed, args=(str(self._place), self._witness, self.port, password), daemon=True
        )
        process.start()
        return process

    def kill(self) -> None:
        assert self.process.exitcode is None, "the server ended before it was killed"
        self.process.kill()
        self.process.join()

    def replace(self) -> None:
        self.kill()
        self.process = self._start()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
