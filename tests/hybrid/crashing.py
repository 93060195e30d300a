"""Server and client processes that may be killed at any moment, and a witness of what the server saw and answered.

The processes are forked from one that has imported everything, so that a restart takes milliseconds.
"""

import hashlib
import multiprocessing
import os
import random
import socket
import struct
import sys
import time
from collections import defaultdict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Final

import numpy as np
import torch

from confide.errors import ConnectionLost, ServerBusy
from confide.hybrid import wire
from confide.hybrid.client.padding import NO_PADDING
from confide.hybrid.client.product import RemoteProduct
from confide.hybrid.server.server import serve
from confide.hybrid.server.service import Admitted, LayerService
from confide.rlwe.parameters import Parameters

from .small import activations, exact, small_service, small_weights, twin_client

SEEN: Final = b"d"
ANSWERED: Final = b"z"
MOST_TOKENS: Final = 20
_RECORD: Final = struct.Struct("<c16sBI16s")

Index = tuple[bytes, int, int]


def processes() -> ForkServerContext:
    """Makes processes that have imported everything already."""
    tests = str(Path(__file__).resolve().parents[1])
    path = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (tests, path)))
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["pytest", __name__])
    try:
        context.Process(target=_nothing).start()
    finally:
        if path is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = path
    return context


def _nothing() -> None:
    pass


# -- the witness -----------------------------------------------------------------------------------------------


class Witness:
    """An append-only file of hashes. What one call notes is in it entirely or not at all, whoever is killed."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)

    def note(self, kind: bytes, pack: bytes, group: int, first: int, rows: Iterable[np.ndarray]) -> None:
        records = [
            _RECORD.pack(kind, pack, group, first + place, hashlib.sha256(row.tobytes()).digest()[:16])
            for place, row in enumerate(rows)
        ]
        content = b"".join(records)
        assert os.write(self._file, content) == len(content)

    def saw(self, message: wire.Online) -> None:
        """Before the request is looked at, let alone billed."""
        rows = np.frombuffer(message.masked, np.int32).reshape(message.count, -1)
        self.note(SEEN, message.pack, message.group, message.first, rows)


class WitnessedService(LayerService):
    """Notes every answer after it was billed and before it leaves: what left is noted, what is noted was billed."""

    witness: Witness

    def answers(self, group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        found = super().answers(group, admitted)
        _dawdle()
        for request, answer in zip(admitted, found, strict=True):
            rows = np.frombuffer(answer.values, np.int32).reshape(len(request.masked), -1)
            self.witness.note(ANSWERED, request.pack, group, request.first, rows)
        _dawdle()
        return found


def _dawdle() -> None:
    """So that kills between billing, noting and sending are no rarity."""
    time.sleep(random.uniform(0, 0.002))


@dataclass
class Evidence:
    """What a witness noted: the hashes of d seen, and of answers given, for every index."""

    seen: dict[Index, set[bytes]] = field(default_factory=lambda: defaultdict(set))
    answered: dict[Index, set[bytes]] = field(default_factory=lambda: defaultdict(set))

    @classmethod
    def read(cls, path: Path) -> "Evidence":
        evidence = cls()
        for kind, pack, group, index, digest in _RECORD.iter_unpack(path.read_bytes()):
            place = evidence.seen if kind == SEEN else evidence.answered
            place[pack, group, index].add(digest)
        return evidence

    def with_two_values(self) -> list[Index]:
        both = (*self.seen.items(), *self.answered.items())
        return [index for index, hashes in both if len(hashes) > 1]


# -- the processes ---------------------------------------------------------------------------------------------


def serve_until_killed(state: Path, witness: Path, port: int) -> None:
    torch.set_num_threads(1)
    made = Witness(witness)
    service = small_service(state, observer=made.saw, insecure_no_licences=False)
    service.__class__ = WitnessedService
    service.witness = made  # type: ignore[attr-defined]
    serve(service, "127.0.0.1", port)


def work_until_stopped(shell: Path, url: str, licence: str, packs: Path, progress: Path) -> None:
    """Products on random activations, each checked; counts them by the length of a file. Ends once `stop` appears."""
    torch.set_num_threads(1)
    sys.stderr = (packs.parent / f"{packs.name}.log").open("a")
    steps = os.open(progress, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    stop = progress.with_name("stop")
    while not stop.exists():
        # The first contact with a server that is away fails at once, by design.
        with suppress(ConnectionLost, ServerBusy), twin_client(shell, url, licence=licence, packs=packs) as client:
            product = client.product(padding=NO_PADDING)
            while not stop.exists():
                _check_products(product, client.parameters)
                os.write(steps, b".")
                time.sleep(random.uniform(0, 0.004))
            product.close()
        time.sleep(0.01)


def _check_products(product: RemoteProduct, parameters: list[Parameters]) -> None:
    for group, matrix in enumerate(small_weights()):
        x = activations(parameters[group], random.choice((1, 1, 1, 2, MOST_TOKENS)), seed=random.getrandbits(60))
        if not torch.equal(product(group, x), exact(matrix, x)):
            raise AssertionError("a product was wrong")


class World:
    """A server and some clients, and what kills them."""

    def __init__(self, context: ForkServerContext, shell: Path, folder: Path, licence: str, clients: int) -> None:
        self.folder = folder
        self.server_kills = self.client_kills = 0
        self._context = context
        self._port = _free_port()
        self._shell = shell
        self._licence = licence
        self.server = self._start_server()
        self.clients = [self._start_client(number) for number in range(clients)]

    def _start(self, target: object, *arguments: object) -> ForkServerProcess:
        process = self._context.Process(target=target, args=arguments, daemon=True)  # type: ignore[arg-type]
        process.start()
        return process

    def _start_server(self) -> ForkServerProcess:
        return self._start(serve_until_killed, self.folder / "state", self.folder / "witness", self._port)

    def _start_client(self, number: int) -> ForkServerProcess:
        url = f"ws://127.0.0.1:{self._port}"
        packs, progress = self.folder / f"packs-{number}", self._progress(number)
        return self._start(work_until_stopped, self._shell, url, self._licence, packs, progress)

    def _progress(self, number: int) -> Path:
        return self.folder / f"progress-{number}"

    def steps(self, number: int) -> int:
        path = self._progress(number)
        return path.stat().st_size if path.exists() else 0

    def wait_for_progress(self, more: int = 3, seconds: float = 60) -> None:
        """Until every client has gone on by itself."""
        goals = [self.steps(number) + more for number in range(len(self.clients))]
        deadline = time.monotonic() + seconds
        while any(self.steps(number) < goal for number, goal in enumerate(goals)):
            assert all(client.is_alive() for client in self.clients), "a client gave up"
            assert self.server.is_alive(), "the server gave up"
            assert time.monotonic() < deadline, "a client is stuck"
            time.sleep(0.01)

    def kill_something(self) -> None:
        """The server or a client, with equal probability; started again at once."""
        if random.random() < 0.5:
            self.server_kills += 1
            _kill(self.server)
            self.server = self._start_server()
        else:
            self.client_kills += 1
            number = random.randrange(len(self.clients))
            _kill(self.clients[number])
            self.clients[number] = self._start_client(number)

    def stop(self) -> None:
        """Let the clients finish, and kill the server once more."""
        (self.folder / "stop").touch()
        for client in self.clients:
            client.join(60)
            assert client.exitcode == 0, "a client failed"
        _kill(self.server)

    def kill_all(self) -> None:
        for process in (self.server, *self.clients):
            if process.is_alive():
                _kill(process)


def _kill(process: ForkServerProcess) -> None:
    assert process.exitcode is None, "a process ended before it was killed"
    process.kill()
    process.join()


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
