"""Has as many of each server run as there is work for: starts, looks, replaces, brings out changes one by one.

Knows processes only by what a `Replica` says. One step does little and waits for nothing that takes long; whoever has
the controller takes a step every few seconds.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from confide.cluster.configuration import Server
from confide.errors import ConfideError
from confide.printable import printable

STEP_SECONDS: Final = 3.0
_LOOK_SECONDS: Final = 30.0
_FIRST_RETRY_SECONDS: Final = 5.0
_LAST_RETRY_SECONDS: Final = 120.0


class Replica(Protocol):
    """A server that is to run somewhere. What its methods raise means that it does not."""

    async def start(self) -> str:
        """Start it; its address."""
        ...

    async def look(self) -> float:
        """How much it has to do, if it is well."""
        ...

    async def stop(self) -> None:
        """Have it end its answers and itself; if it cannot, that all the same."""
        ...


@dataclass(eq=False)
class _Kept:
    server: Server
    replica: Replica
    url: str
    load: float | None = None


@dataclass
class _Group:
    """The replicas of one server. starting: one more, and of which entry. less_since: when fewer became enough."""

    replicas: list[_Kept] = field(default_factory=list)
    starting: "asyncio.Task[_Kept] | None" = None
    problem: str = ""
    failures: int = 0
    retry_at: float = 0.0
    less_since: float | None = None


class Controller:
    """For one event loop."""

    def __init__(
        self,
        launch: Callable[[Server], Replica],
        clock: Callable[[], float] = time.monotonic,
        look_seconds: float = _LOOK_SECONDS,
    ) -> None:
        """launch: gives a replica that was not started. look_seconds: for one to say how it is."""
        self._launch, self._clock, self._look_seconds = launch, clock, look_seconds
        self._wanted: dict[str, Server] = {}
        self._groups: dict[str, _Group] = {}
        self._ending: set[asyncio.Task[None]] = set()

    def want(self, servers: Iterable[Server]) -> None:
        """These, and no others, from the next step on."""
        self._wanted = {server.name: server for server in servers}
        for name in self._wanted:
            group = self._groups.setdefault(name, _Group())
            group.problem, group.failures, group.retry_at = "", 0, 0.0

    async def step(self) -> None:
        """Look at all that runs, and do what is to be done next."""
        await asyncio.gather(*(self._step(name, group) for name, group in list(self._groups.items())))

    async def stop(self) -> None:
        """End everything, and wait for it."""
        self._wanted = {}
        while self._groups or self._ending:
            await self.step()
            if self._ending:
                await asyncio.wait(self._ending)
            elif self._groups:  # one is still starting
                await asyncio.wait([one.starting for one in self._groups.values() if one.starting])

    def running(self) -> list[dict[str, Any]]:
        """Every replica that was well when it was looked at last: server, url, load."""
        return [
            {"server": name, "url": kept.url, "load": kept.load}
            for name, group in sorted(self._groups.items())
            for kept in group.replicas
            if kept.load is not None
        ]

    def states(self) -> dict[str, str]:
        """Of each server: running, changing, or starting, and what went wrong last if anything did."""
        return {name: self._state(name, group) for name, group in sorted(self._groups.items())}

    def _state(self, name: str, group: _Group) -> str:
        wanted = self._wanted.get(name)
        well = [kept for kept in group.replicas if kept.load is not None and kept.server == wanted]
        if wanted is None:
            return "stopping"
        if group.problem:
            return f"failed: {group.problem}"
        if len(well) < wanted.least:
            return "starting"
        return "running" if len(well) == len(group.replicas) and group.starting is None else "changing"

    async def _step(self, name: str, group: _Group) -> None:
        await asyncio.gather(*(self._look(group, kept) for kept in list(group.replicas)))
        self._take_started(group)
        wanted = self._wanted.get(name)
        if wanted is None:
            for kept in list(group.replicas):
                self._end(group, kept)
            if group.starting is None:
                del self._groups[name]
            return
        current = [kept for kept in group.replicas if kept.server == wanted]
        old = [kept for kept in group.replicas if kept.server != wanted]
        needed = self._needed(group, wanted, current)
        if len(current) < needed and group.starting is None and self._clock() >= group.retry_at:
            group.starting = asyncio.create_task(self._start(wanted))
        # One goes once there are enough without it, the old ones first.
        well = [kept for kept in group.replicas if kept.load is not None]
        if len(well) > needed and (old or len(current) > needed):
            self._end(group, (old or sorted(current, key=lambda kept: kept.load or 0.0))[0])

    async def _look(self, group: _Group, kept: _Kept) -> None:
        try:
            kept.load = await asyncio.wait_for(kept.replica.look(), self._look_seconds)
        except Exception as error:  # noqa: BLE001 - whatever it raises, it is not well
            group.problem = _reason(error)
            self._end(group, kept)

    async def _start(self, server: Server) -> _Kept:
        replica = self._launch(server)
        try:
            url = await asyncio.wait_for(replica.start(), server.start_seconds)
            load = await asyncio.wait_for(replica.look(), self._look_seconds)
        except BaseException:
            await replica.stop()
            raise
        return _Kept(server, replica, url, load)

    def _take_started(self, group: _Group) -> None:
        if group.starting is None or not group.starting.done():
            return
        task, group.starting = group.starting, None
        error = task.exception()
        if error is None:
            group.replicas.append(task.result())
            group.problem, group.failures = "", 0
        else:
            group.problem = _reason(error)
            pause = min(_LAST_RETRY_SECONDS, _FIRST_RETRY_SECONDS * 2**group.failures)
            group.failures, group.retry_at = group.failures + 1, self._clock() + pause

    def _end(self, group: _Group, kept: _Kept) -> None:
        group.replicas.remove(kept)
        task = asyncio.create_task(kept.replica.stop())
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)

    def _needed(self, group: _Group, server: Server, current: list[_Kept]) -> int:
        """How many of it there should be. Fewer than now only after so long of less."""
        load = sum(kept.load or 0.0 for kept in group.replicas)
        needed = min(server.largest, max(server.least, math.ceil(load / server.load)))
        if needed >= len(current):
            group.less_since = None
            return needed
        group.less_since = self._clock() if group.less_since is None else group.less_since
        quiet = self._clock() - group.less_since >= server.quiet_seconds
        return needed if quiet or len(current) > server.largest else len(current)


def _reason(error: BaseException) -> str:
    """Of an error of ours its words; of another its kind alone, whose words are the library's."""
    cause = getattr(error, "cause", None)  # where Ray carries it
    for one in (error, cause):
        if isinstance(one, ConfideError):
            return printable(str(one))[:600]
    return type(error).__name__
