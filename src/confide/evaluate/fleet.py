"""A fleet of layer servers and its users, simulated: when each token comes, for requests that come when a trace says.

Discrete events. Servers batch as `hybrid.server.batch` does and work ahead as `hybrid.server.ahead` does, with its
limits; clients wait for each layer group's answer before they ask for the next. How long anything takes is given, and
chance is drawn from a seed, so that the same question has the same answer.
"""

import random
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final, Protocol

import simpy

from confide.evaluate.trace import Arrival
from confide.hybrid.client.pads.pool import BLOCK_TOKENS
from confide.hybrid.client.product import PART_TOKENS
from confide.hybrid.server import ahead, batch
from confide.hybrid.server.limits import Limits

NICE: Final = 110 / 1024
"""How much a thread of niceness 10 weighs beside one of niceness 0 where they share a core: the kernel's, sched(7)."""
READING: Final = 2 / 3
"""Of what a request takes beside its product, before it is in a queue; the rest sends its answer. By a profiler."""
_INSTANT: Final = 1e-9
"""Seconds by which two sums of times may differ and mean the same moment."""


class Balancing(StrEnum):
    """How a request finds its machine."""

    RANDOM = "random"
    LEAST_LOADED = "least-loaded"


class Times(Protocol):
    """How long everything takes, in seconds. A model runs in `stages`, one after the other: see `fleet_times`.

    ahead_bytes: of each stage, what a token's work ahead takes of a server's memory.
    """

    stages: int
    ahead_bytes: Sequence[int]

    def request(self, stage: int) -> float:
        """Of a server's event loop for each request, beside its product."""

    def product(self, stage: int, requests: int, tokens: int, unmade: int) -> tuple[float, float]:
        """Of a server: on its event loop, and in its worker. unmade: tokens whose work ahead is part of it."""

    def ahead(self, stage: int, tokens: int) -> float:
        """Of a server's work ahead of so many tokens."""

    def own(self, stage: int, tokens: int) -> float:
        """Of a client, before it asks for a stage."""

    def trip(self, stage: int, tokens: int) -> float:
        """Of the network, both ways."""

    def pads(self) -> float:
        """Of what a client makes ahead for one token."""


@dataclass(frozen=True)
class Batching:
    """How requests of several clients meet in one product; see `hybrid.server.batch`."""

    window: float = batch.MAX_WINDOW
    least_window: float = batch.MIN_WINDOW
    active: float = batch.ACTIVE_SECONDS
    most: int = batch.MAX_BATCH


@dataclass(frozen=True)
class Machine:
    """A layer server's machine. cores: that its event loop, long products and work ahead share."""

    cores: int = 1
    batching: Batching = field(default_factory=Batching)
    limits: Limits = field(default_factory=Limits)


@dataclass
class Served:
    """What became of one request. at: when it came. first: seconds to its first token. gaps: to each of the others."""

    at: float
    first: float = 0.0
    gaps: list[float] = field(default_factory=list)


@dataclass(frozen=True)
class Simulated:
    """What happened. seconds: until the last token. busy: of that, for how much of it a server's event loop or worker
    was at work, in the mean. trips: seconds from each message to its answer, in no order."""

    requests: list[Served]
    seconds: float
    busy: float
    trips: list[float]

    def settled(self) -> list[Served]:
        """Those that came neither while the fleet was filling up nor last: without a tenth at either end."""
        tenth = len(self.requests) // 10
        return self.requests[tenth : len(self.requests) - tenth]


def simulate(
    times: Times,
    arrivals: Sequence[Arrival],
    *,
    machines: int = 1,
    machine: Machine | None = None,
    balancing: Balancing = Balancing.LEAST_LOADED,
    seed: int = 0,
    warm: bool = True,
    one_thread: bool = False,
) -> Simulated:
    """Send requests to so many equal machines, and see when their tokens come.

    Each comes from a user of its own, whose connection stays. warm: it was made some time before, so that its first
    block's pads are there, and the work ahead of it as far as there is room; without, it begins with the request, for
    which it sends p0 of all its tokens and no more. one_thread: what clients do themselves is done by one thread, as in
    a load generator; without, by a machine of each one's own.
    """
    env, chance = simpy.Environment(), random.Random(seed)  # noqa: S311 - the same from each seed
    servers = [_Server(env, times, machine or Machine()) for _ in range(machines)]
    served = [Served(one.at) for one in arrivals]
    trips: list[float] = []
    shared = _Thread() if one_thread else None

    def choose() -> _Server:
        if balancing is Balancing.RANDOM:
            return chance.choice(servers)
        least = min(server.clients for server in servers)
        return chance.choice([server for server in servers if server.clients == least])

    def begin(arrival: Arrival, result: Served) -> None:
        _Client(env, times, choose(), shared or _Thread(), arrival, result, trips, warm=warm).begin()

    for arrival, result in zip(arrivals, served, strict=True):
        after(env, arrival.at, lambda a=arrival, r=result: begin(a, r))  # type: ignore[misc]
    env.run()
    seconds = max(one.at + one.first + sum(one.gaps) for one in served)
    return Simulated(served, seconds, sum(server.busy for server in servers) / (seconds * machines), trips)


def after(env: simpy.Environment, delay: float, act: Callable[[], object]) -> None:
    """Do something so many seconds from now."""

    def run(_: simpy.Event) -> None:
        act()

    env.timeout(delay).callbacks.append(run)


@dataclass
class _Thread:
    """Does one thing after the other."""

    free_at: float = 0.0

    def take(self, now: float, seconds: float) -> float:
        """When it begins what is given to it now."""
        start = max(now, self.free_at)
        self.free_at = start + seconds
        return start


@dataclass(eq=False)
class _Task:
    """What a thread of a server does now. left: seconds, with a core for itself. rate: how much of one it has."""

    left: float
    weight: float
    done: Callable[[], None]
    rate: float = 0.0


class _Cores:
    """Cores of a machine, which threads that are at work share by their weights, as under the kernel's scheduler."""

    def __init__(self, env: simpy.Environment, count: int) -> None:
        self._env, self._count = env, count
        self._tasks: list[_Task] = []
        self._at = 0.0
        self._course = 0

    def run(self, seconds: float, weight: float, done: Callable[[], None]) -> None:
        """Have a thread work for so long, were it alone. done: called at its end."""
        self._catch_up()
        self._tasks.append(_Task(seconds, weight, done))
        self._share_out()

    def _catch_up(self) -> None:
        now = self._env.now
        for task in self._tasks:
            task.left -= (now - self._at) * task.rate
        self._at = now

    def _share_out(self) -> None:
        """Nobody has more than a core; what a heavy one can't use is the others'."""
        cores, weights = float(self._count), sum(task.weight for task in self._tasks)
        for task in sorted(self._tasks, key=lambda task: -task.weight):
            task.rate = min(1.0, cores * task.weight / weights)
            cores -= task.rate
            weights -= task.weight
        self._course += 1
        if not self._tasks:
            return
        course, first = self._course, min(self._tasks, key=lambda task: task.left / task.rate)

        def end() -> None:
            if course == self._course:
                self._catch_up()
                self._tasks.remove(first)
                self._share_out()
                first.done()

        after(self._env, max(0.0, first.left / first.rate), end)


@dataclass(eq=False)
class _Message:
    """One part of a client's tokens for a stage."""

    client: "_Client"
    stage: int
    first: int
    tokens: int
    sent: float


class _Client:
    """A request: its prompt, then a token after the other, stage by stage."""

    def __init__(
        self,
        env: simpy.Environment,
        times: Times,
        server: "_Server",
        thread: _Thread,
        arrival: Arrival,
        result: Served,
        trips: list[float],
        *,
        warm: bool,
    ) -> None:
        self._env, self._times, self._server, self._thread = env, times, server, thread
        self._left, self._prompt = arrival.generated, arrival.context
        self._result, self._trips = result, trips
        self._used = self._stage = self._tokens = self._owed = 0
        self._due = arrival.at
        self._pads, self._pads_at = float(BLOCK_TOKENS if warm else 0), arrival.at
        self._warm = warm
        self.block = _Block(server)
        self.block.announce(BLOCK_TOKENS if warm else self._prompt + self._left - 1)
        if warm:
            self._server.ahead.make_at_once(self.block)

    def begin(self) -> None:
        self._server.clients += 1
        self._pass(self._prompt)

    def _pass(self, tokens: int) -> None:
        """So many tokens through every stage, once there are pads for them."""
        self._tokens = tokens
        if self._warm and self.block.announced - self._used - tokens < BLOCK_TOKENS // 2:
            self.block.announce(BLOCK_TOKENS)
        self._server.ahead.go_on()
        after(self._env, self._wait_for_pads(tokens), self._ask)

    def _wait_for_pads(self, tokens: int) -> float:
        each, now = self._times.pads(), self._env.now
        if not each:
            return 0.0
        self._pads = min(BLOCK_TOKENS, self._pads + (now - self._pads_at) / each) - tokens
        self._pads_at = now
        return max(0.0, -self._pads) * each

    def _ask(self) -> None:
        """For the next stage, in parts, each sent when it is made."""
        parts = list(_parts(self._tokens))
        own = self._times.own(self._stage, self._tokens) / len(parts)
        self._owed = len(parts)
        first, now = self._used, self._env.now
        start = self._thread.take(now, len(parts) * own)
        for number, tokens in enumerate(parts, start=1):
            sent, trip = start + number * own, self._times.trip(self._stage, tokens)
            message = _Message(self, self._stage, first, tokens, sent)
            first += tokens
            after(self._env, sent - now + trip, lambda m=message: self._server.receive(m))  # type: ignore[misc]

    def answered(self, message: _Message) -> None:
        """One part has come back."""
        self._trips.append(self._env.now - message.sent)
        self._owed -= 1
        if self._owed:
            return
        self._stage += 1
        if self._stage < self._times.stages:
            self._ask()
        else:
            self._stage = 0
            self._used += self._tokens
            self._token()

    def _token(self) -> None:
        now = self._env.now
        if self._result.first:
            self._result.gaps.append(now - self._due)
        else:
            self._result.first = now - self._due
        self._due = now
        self._left -= 1
        if self._left:
            self._pass(1)
        else:
            self._server.clients -= 1
            self.block.ended = True
            self._server.ahead.add(self.block)


def _parts(tokens: int) -> Iterator[int]:
    """In messages of at most PART_TOKENS, as a client sends them."""
    for start in range(0, tokens, PART_TOKENS):
        yield min(PART_TOKENS, tokens - start)


class _Server:
    """A layer server: its event loop reads what has come, answers a queue if its time has come, and reads again.

    Long products are its worker's, one after the other. Whoever is answered hears that in turn.
    """

    def __init__(self, env: simpy.Environment, times: Times, machine: Machine) -> None:
        self._env, self._times = env, times
        self._batching = machine.batching
        self._window = machine.batching.window
        self._cores = _Cores(env, machine.cores)
        self._inbox: deque[_Message] = deque()
        self._reading: deque[_Message] = deque()
        self._sending: deque[_Message] = deque()
        self._queues: dict[int, list[_Message]] = {}
        self._since: dict[int, float] = {}
        self._active: OrderedDict[_Client, float] = OrderedDict()
        self._work: deque[tuple[float, list[_Message]]] = deque()
        self._waiting = 0
        self._looping = self._working = False
        self._look_again = self._engaged_at = 0.0
        self.clients = 0
        self.busy = 0.0
        self.room = ahead.Room(machine.limits.all_ahead_bytes)
        self.limits = machine.limits
        self.stages, self.ahead_bytes = times.stages, times.ahead_bytes
        self.ahead = _Ahead(env, times, self, self._cores)

    @property
    def waited_for(self) -> bool:
        """Whether any request waits for its answer."""
        return bool(self._looping or self._working or self._queues or self._inbox)

    def receive(self, message: _Message) -> None:
        """A frame is there, and will be read."""
        self._inbox.append(message)
        self._turn()

    def _turn(self) -> None:
        """What the event loop does whenever it is free."""
        while not self._looping:
            if self._sending:
                message = self._sending.popleft()
                self._loop(
                    (1 - READING) * self._times.request(message.stage),
                    lambda m=message: m.client.answered(m),  # type: ignore[misc]
                )
            elif self._reading:
                message = self._reading.popleft()
                self._loop(
                    READING * self._times.request(message.stage),
                    lambda m=message: self._add(m),  # type: ignore[misc]
                )
            elif not self._answer_in_time():
                if not self._inbox:
                    break
                self._reading, self._inbox = self._inbox, deque()
        if not self.waited_for:
            self.ahead.go_on()

    def _loop(self, seconds: float, then: Callable[[], None]) -> None:
        """The event loop does nothing else for so long."""
        if not seconds:
            then()
            return
        self._engage(loop=True)

        def done() -> None:
            self._engage(loop=False)
            then()
            self._turn()

        self._cores.run(seconds, 1.0, done)

    def _engage(self, *, loop: bool | None = None, worker: bool | None = None) -> None:
        """One of the two begins to work, or ends."""
        if self._looping or self._working:
            self.busy += self._env.now - self._engaged_at
        self._engaged_at = self._env.now
        self._looping = self._looping if loop is None else loop
        self._working = self._working if worker is None else worker

    def _add(self, message: _Message) -> None:
        now = self._env.now
        self._note_active(message.client, now)
        queue = self._queues.setdefault(message.stage, [])
        queue.append(message)
        self._waiting += 1
        if len(self._active) == 1 or len(queue) >= self._batching.most:
            self._flush(message.stage)
        else:
            self._since.setdefault(message.stage, now)

    def _answer_in_time(self) -> bool:
        """Answer a queue if its time has come: whether it has."""
        if not self._queues:
            return False
        oldest = min(self._since, key=self._since.__getitem__)
        due = self._since[oldest] + self._window
        if self._waiting >= len(self._active):
            self._flush(min(self._queues))
        elif due - self._env.now <= _INSTANT:
            self._adapt(len(self._queues[oldest]))
            self._flush(oldest)
        else:
            self._wake_at(due)
            return False
        return True

    def _wake_at(self, due: float) -> None:
        if due == self._look_again:
            return
        self._look_again = due
        after(self._env, due - self._env.now, self._turn)

    def _note_active(self, client: _Client, now: float) -> None:
        self._active[client] = now
        self._active.move_to_end(client)
        while next(iter(self._active.values())) < now - self._batching.active:
            self._active.popitem(last=False)

    def _adapt(self, gathered: int) -> None:
        if gathered > 1:
            self._window = min(2 * self._window, self._batching.window)
        else:
            self._window = max(self._window / 2, self._batching.least_window)

    def _flush(self, stage: int) -> None:
        """Answer a queue, for which the event loop is not free for a while."""
        messages = self._queues.pop(stage)
        self._since.pop(stage, None)
        self._waiting -= len(messages)
        unmade = sum(message.client.block.spend(stage, message.first, message.tokens) for message in messages)
        tokens = sum(message.tokens for message in messages)
        looping, working = self._times.product(stage, len(messages), tokens, unmade)
        self.ahead.go_on()  # there may be room again
        if working:
            self._loop(looping, lambda: self._give_away(working, messages))
        else:
            self._loop(looping, lambda: self._sending.extend(messages))

    def _give_away(self, seconds: float, messages: list[_Message]) -> None:
        """To the worker, when it is free."""
        self._work.append((seconds, messages))
        if not self._working:
            self._go_on_working()

    def _go_on_working(self) -> None:
        seconds, messages = self._work.popleft()
        self._engage(worker=True)

        def done() -> None:
            self._engage(worker=False)
            self._sending.extend(messages)
            if self._work:
                self._go_on_working()
            self._turn()

        self._cores.run(seconds, 1.0, done)


class _Block:
    """What a server has of one client's tokens: their p0 up to `announced`, and the work ahead that was made."""

    def __init__(self, server: _Server) -> None:
        self._server = server
        self.ended = False
        self.room = ahead.Room(server.limits.ahead_bytes, server.room)
        self.steps: deque[tuple[int, int]] = deque()
        """(part, stage) that nobody has worked for."""
        self.made: dict[tuple[int, int], int] = {}
        """And those that somebody has, with the bytes that are kept of them."""
        self.spent: set[tuple[int, int]] = set()
        self.announced = 0

    def announce(self, tokens: int) -> None:
        """The server gets p0 of so many tokens more."""
        parts = range(self.announced // ahead.PART_TOKENS, -(-(self.announced + tokens) // ahead.PART_TOKENS))
        self.steps.extend((part, stage) for part in parts for stage in range(self._server.stages))
        self.announced += tokens
        self._server.ahead.add(self)

    def tokens_of(self, part: int) -> int:
        """Of a part that was announced; the last one may be shorter than the others."""
        return min(ahead.PART_TOKENS, self.announced - part * ahead.PART_TOKENS)

    def spend(self, stage: int, first: int, tokens: int) -> int:
        """They are asked for. How many of them were not worked for."""
        unmade = 0
        for part in range(first // ahead.PART_TOKENS, (first + tokens - 1) // ahead.PART_TOKENS + 1):
            start = part * ahead.PART_TOKENS
            end = start + (self.tokens_of(part) if start < self.announced else ahead.PART_TOKENS)
            key = (part, stage)
            if key not in self.made:
                unmade += min(end, first + tokens) - max(start, first)
            if end <= first + tokens:
                self.spent.add(key)
                if size := self.made.pop(key, 0):
                    self.room.give_back(size)
                    self._server.ahead.add(self)
        return unmade

    def next_step(self) -> tuple[int, int] | None:
        """What is to be worked for next, of which the room is taken; None where nothing is, or where it has no room."""
        while self.steps:
            key = self.steps[0]
            if key in self.spent:
                self.steps.popleft()
            elif self.room.take(self._bytes(key)):
                return self.steps.popleft()
            else:
                break
        return None

    def keep(self, key: tuple[int, int]) -> None:
        """It has been worked for; nothing is kept of what was asked for meanwhile."""
        size = self._bytes(key)
        if key in self.spent:
            self.room.give_back(size)
        else:
            self.made[key] = size

    def _bytes(self, key: tuple[int, int]) -> int:
        part, stage = key
        return self.tokens_of(part) * self._server.ahead_bytes[stage]

    def forget(self) -> None:
        """Nothing of it is kept any more."""
        for size in self.made.values():
            self.room.give_back(size)
        self.made.clear()


class _Ahead:
    """What makes blocks ready, a stage of a part at a time, while nobody waits for an answer or has waited for long.

    It has niceness 10, and gets on where others leave a core free, or by its share of one.
    """

    def __init__(self, env: simpy.Environment, times: Times, server: _Server, cores: _Cores) -> None:
        self._env, self._times, self._server, self._cores = env, times, server, cores
        self._blocks: OrderedDict[_Block, None] = OrderedDict()
        self._working = self._patient = False

    def add(self, block: _Block) -> None:
        """There is something to do for a block, or there is room again."""
        self._blocks[block] = None

    def make_at_once(self, block: _Block) -> None:
        """As far as there is room, in no time."""
        while (key := block.next_step()) is not None:
            block.keep(key)

    def go_on(self) -> None:
        """Begin a step, unless one is under way or requests go first for a while."""
        if not self._working and self._blocks and not self._patient:
            if self._server.waited_for:
                self._patient = True
                after(self._env, ahead.MOST_PATIENCE, self._lose_patience)
            else:
                self._begin()

    def _lose_patience(self) -> None:
        self._patient = False
        if not self._working:
            self._begin()

    def _begin(self) -> None:
        while self._blocks:
            block = next(iter(self._blocks))
            if (key := block.next_step()) is not None:
                self._make(block, key)
                return
            del self._blocks[block]  # until it has room again
            if block.ended:
                block.forget()

    def _make(self, block: _Block, key: tuple[int, int]) -> None:
        self._working = True

        def end() -> None:
            self._working = False
            block.keep(key)
            self.go_on()

        part, stage = key
        self._cores.run(self._times.ahead(stage, block.tokens_of(part)), NICE, end)
