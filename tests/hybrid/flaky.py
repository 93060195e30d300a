"""A road to a server that breaks: a proxy which cuts each connection after a number of bytes, up or down."""

import math
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

Allowance = Callable[[], tuple[float, float]]
"""Called for every connection: how many bytes it may carry, up and down."""


def no_limit() -> tuple[float, float]:
    return math.inf, math.inf


class Road:
    """The newest connection's bytes, up and down, and the address."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.carried = [0, 0]


@contextmanager
def flaky_road(server: str, allowance: Allowance = no_limit) -> Iterator[Road]:
    """A second address of a server; connections through it are cut once they have carried what they may."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        road = Road(f"ws://127.0.0.1:{listener.getsockname()[1]}")
        port = int(server.rpartition(":")[2])
        threading.Thread(target=_accept, args=(listener, port, road, allowance), daemon=True).start()
        yield road
        listener.shutdown(socket.SHUT_RDWR)


def _accept(listener: socket.socket, port: int, road: Road, allowance: Allowance) -> None:
    with suppress(OSError):
        while True:
            client, _ = listener.accept()
            server = socket.create_connection(("127.0.0.1", port))
            road.carried = carried = [0, 0]
            for way, limit in enumerate(allowance()):
                ends = (client, server) if way == 0 else (server, client)
                threading.Thread(target=_carry, args=(*ends, carried, way, limit), daemon=True).start()


def _carry(source: socket.socket, target: socket.socket, carried: list[int], way: int, limit: float) -> None:
    with suppress(OSError):
        while (data := source.recv(1 << 16)) and carried[way] + len(data) <= limit:
            carried[way] += len(data)
            target.sendall(data)
        target.sendall(data[: int(min(limit - carried[way], len(data)))])
    for end in (source, target):
        with suppress(OSError):
            end.shutdown(socket.SHUT_RDWR)
