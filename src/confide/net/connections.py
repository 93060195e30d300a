"""Connections that are open: so many in all, none of them silent for long, and files left for everything else."""

import errno
import os
import resource
from collections.abc import Callable
from typing import Final

from confide.errors import AddressUnavailable
from confide.net.fairness import Shares, origin

RESERVE: Final = 64
"""File descriptors that no connection gets: for the model, the log, the way to other servers."""


def room_for(connections: int) -> int:
    """As many of these as there are file descriptors for. The process's own limit is raised as far as it may be."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or soft < hard):
        wanted = connections + RESERVE + len(os.listdir("/proc/self/fd"))
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        soft = max(soft, most)  # never lowered: this process may have more to do
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if soft == resource.RLIM_INFINITY:
        return connections
    return max(1, min(connections, soft - RESERVE - len(os.listdir("/proc/self/fd"))))


def unavailable(host: str, port: int, error: OSError) -> AddressUnavailable:
    """What to say of an address that cannot be listened on."""
    reason = "another program uses it" if error.errno == errno.EADDRINUSE else (error.strerror or "nobody knows it")
    return AddressUnavailable(f"{host} port {port} cannot be listened on: {reason}. Choose another --port or --host.")


class Connection:
    """One that is open: silent until it has brought a request, and again once that is answered.

    who: `origin` of its address. close: how to be rid of it, at once.
    """

    def __init__(self, among: "Connections", who: str, close: Callable[[], object]) -> None:
        self.who = who
        self.close = close
        self._among = among

    def speak(self) -> None:
        """It has brought a request: it is not closed for want of room until that is answered."""
        silent = self._among.silent.get(self.who, {})
        silent.pop(self, None)
        if not silent:
            self._among.silent.pop(self.who, None)

    def fall_silent(self) -> None:
        """It has nothing to be answered."""
        if self in self._among.open:
            self._among.silent.setdefault(self.who, {})[self] = None

    def leave(self) -> None:
        """It is closed."""
        if self in self._among.open:
            self.speak()
            self._among.open.remove(self)
            self._among.shares.give_back(self.who)


class Connections:
    """All of a server's. When there is no room, whoever has most of them loses the one that has been silent longest.

    One address gets half of what there is room for, and less the more others there are (`Shares`). On this machine
    every connection counts for itself, so a gateway may have all. silent: of each address, longest first.
    """

    def __init__(self, most: int) -> None:
        self.shares = Shares(most)
        self.open: set[Connection] = set()
        self.silent: dict[str, dict[Connection, None]] = {}

    def enter(self, address: str, port: int, close: Callable[[], object]) -> Connection | None:
        """A connection that was accepted, and is silent as yet; None where there is no room, whatever is closed."""
        connection = Connection(self, origin(address, port), close)
        if not self.shares.take(connection.who):
            silent = self.silent.get(connection.who) if self.shares.free else self._silent_of_whoever_has_most()
            if not silent:
                return None
            longest = next(iter(silent))
            longest.close()
            longest.leave()
            if not self.shares.take(connection.who):
                return None
        self.open.add(connection)
        connection.fall_silent()
        return connection

    def _silent_of_whoever_has_most(self) -> dict[Connection, None] | None:
        most = max(self.silent, key=self.shares.held, default=None)
        return None if most is None else self.silent[most]
