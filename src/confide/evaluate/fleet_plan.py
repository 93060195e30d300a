"""How many machines so many users of a protected model need: a machine's rates, a trace of requests, and a simulation.

Users and machines are all like the machine that was measured. Every machine holds the whole model.
"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import astuple, dataclass
from itertools import pairwise
from typing import Final, Protocol

import numpy as np

from confide.evaluate.cost_model import P0_BYTES, Cut, GroupShape, Network, Rates, SkeletonTimes, from_memory
from confide.evaluate.fleet import Balancing, Batching, Machine, Simulated, simulate
from confide.evaluate.trace import Arrival
from confide.hybrid.client.padding import Padding
from confide.hybrid.server import batch
from confide.hybrid.server.limits import Limits
from confide.hybrid.server.service import AHEAD_BYTES
from confide.rlwe.parameters import RING_DEGREE

STAGES: Final = 8
"""Into which a model's layer groups are gathered at most, so that a fleet is simulated in minutes."""
CELL: Final = 4
"""Machines of a large fleet that are simulated, with their share of its requests."""
_PRECISION: Final = 100
"""A number of machines is searched to one part in so many."""


class FleetTimes:
    """The `fleet.Times` of a cut model, from rates: layer groups one after the other, gathered into stages.

    Within a stage nobody else's request comes between two groups, and its windows are as many times as long. cores: of
    a server's machine.
    """

    def __init__(
        self, cut: Cut, rates: Rates, skeleton: SkeletonTimes, network: Network, *, cores: int, stages: int = STAGES
    ) -> None:
        groups = cut.protected
        self.cores = cores
        self._inline_work = batch.inline_work(cores)
        self._threads = rates.server.threads if cores > 1 else 1.0
        self.stages = min(stages, len(groups))
        ends = [len(groups) * stage // self.stages for stage in range(self.stages + 1)]
        self._stages = [groups[start:end] for start, end in pairwise(ends)]
        self._cut, self._rates, self._skeleton, self._network = cut, rates, skeleton, network
        self.ahead_bytes: Sequence[int] = [AHEAD_BYTES * sum(group.rows for group in stage) for stage in self._stages]
        self._requests = [sum(rates.server.request.seconds(group) for group in stage) for stage in self._stages]
        self._wakeups = [sum(rates.server.wakeups.seconds(group) for group in stage) for stage in self._stages]
        self._bytes = [sum(group.online_bytes for group in stage) for stage in self._stages]
        self._own: dict[tuple[int, int], float] = {}
        self._pads = sum(rates.client.pads.seconds(group) for group in groups)
        self._known: dict[tuple[int, int, int, int], tuple[float, float]] = {}

    @property
    def batching(self) -> Batching:
        """The server's, for stages."""
        gathered = len(self._cut.protected) / self.stages
        return Batching(batch.MAX_WINDOW * gathered, batch.MIN_WINDOW * gathered, batch.ACTIVE_SECONDS * gathered)

    def request(self, stage: int) -> float:
        """See `fleet.Times`."""
        return self._requests[stage]

    def product(self, stage: int, requests: int, tokens: int, unmade: int) -> tuple[float, float]:
        """See `fleet.Times`. Of a prompt's parts, each counts as one token of the head."""
        key = (stage, requests, tokens, unmade)
        if key not in self._known:
            looping = working = 0.0
            for group in self._stages[stage]:
                asked = requests if group.head else tokens
                seconds = self._product(group, asked) + self._product(_masks(group), unmade)
                if (asked * group.columns + unmade * RING_DEGREE) * group.rows <= self._inline_work:
                    looping += seconds
                else:
                    working += seconds / self._threads
            self._known[key] = looping, working
        return self._known[key]

    def _product(self, group: GroupShape, tokens: int) -> float:
        """By one thread; of no tokens, nothing."""
        if not tokens:
            return 0.0
        return self._rates.server.product(group, tokens) + from_memory(self._cut, self._rates, group)

    def ahead(self, stage: int, tokens: int) -> float:
        """See `fleet.Times`."""
        together = sum(self._product(_masks(group), tokens) for group in self._stages[stage])
        return together / self._threads

    def own(self, stage: int, tokens: int) -> float:
        """See `fleet.Times`. What no stage has is shared out over all of them."""
        key = (stage, tokens)
        if key not in self._own:
            rate = self._rates.client.token if tokens == 1 else self._rates.client.prompt_token
            masking = sum(group.prompt_tokens(tokens) * rate.seconds(group) for group in self._stages[stage])
            self._own[key] = masking + self._beside(tokens) / self.stages
        return self._own[key]

    def _beside(self, tokens: int) -> float:
        skeleton, rates = self._skeleton, self._rates
        if tokens == 1:
            return skeleton.token + rates.kept_token * sum(group.weights for group in self._cut.kept)
        kept = 0.0
        for group in self._cut.kept:
            asked = group.prompt_tokens(tokens)
            kept += asked * group.weights * (rates.kept_token if asked == 1 else rates.kept_prompt_token)
        return skeleton.prompt * tokens / skeleton.tokens + kept

    def trip(self, stage: int, tokens: int) -> float:
        """See `fleet.Times`."""
        return self._wakeups[stage] + self._network.seconds(len(self._stages[stage]), tokens * self._bytes[stage])

    def pads(self) -> float:
        """See `fleet.Times`."""
        return self._pads


def _masks(group: GroupShape) -> GroupShape:
    """What p0 is multiplied by: as many rows."""
    return GroupShape(group.rows, RING_DEGREE)


@dataclass(frozen=True)
class Demand:
    """What all users ask for. rate: requests a second of all of them. trace: how these come, and how long they are."""

    users: int
    rate: float
    trace: Sequence[Arrival]


@dataclass(frozen=True)
class Percentiles:
    """Seconds."""

    p50: float
    p99: float

    @classmethod
    def of(cls, seconds: Sequence[float]) -> "Percentiles":
        """Zeros of none."""
        return cls(*np.percentile(seconds, (50, 99)).tolist()) if seconds else cls(0.0, 0.0)


@dataclass(frozen=True)
class FleetOutlook:
    """What a fleet of so many machines is like.

    first, token: from a request to its first token, and from each token to the next. busy: share of the time that a
    machine answers. memory: bytes of a machine for the model and for connections of its users that have all of their
    work ahead. traffic: bytes a second of a machine, both ways, in the mean. tokens: a second, of all machines.
    """

    machines: int
    first: Percentiles
    token: Percentiles
    busy: float
    memory: int
    traffic: float
    tokens: float


def share_of(trace: Sequence[Arrival], rate: float, share: float, count: int, seed: int) -> list[Arrival]:
    """So many requests: those that a share of a fleet gets, which is asked so often a second, as in the trace.

    The trace's times are multiplied so that they fit `rate`, and it begins anew where it ends. Each of its requests
    goes to the share by chance.
    """
    chance = random.Random(seed)  # noqa: S311 - the same from each seed
    period = trace[-1].at * len(trace) / max(1, len(trace) - 1) or 1.0
    stretch = len(trace) / (rate * period)
    found: list[Arrival] = []
    place = -1
    while len(found) < count:
        # How many others come before the next one of the share has a geometric distribution.
        place += 1 if share >= 1 else 1 + int(math.log(1 - chance.random()) / math.log1p(-share))
        turn, index = divmod(place, len(trace))
        one = trace[index]
        found.append(Arrival((turn * period + one.at) * stretch, one.context, one.generated))
    start = found[0].at
    return [Arrival(one.at - start, one.context, one.generated) for one in found]


class Machines(Protocol):
    """Machines of one kind that serve one model, each the whole of it."""

    def prompt(self, tokens: int) -> int:
        """Tokens that a prompt of so many takes."""

    def simulate(self, arrivals: Sequence[Arrival], *, machines: int, balancing: Balancing, seed: int) -> Simulated:
        """What becomes of requests to so many of them."""

    def memory(self, users: int, longest: int) -> int:
        """Bytes that a machine needs for so many users, of whose requests none has more than `longest` tokens."""

    def request_bytes(self, asked: float, answered: float) -> float:
        """Bytes both ways of a prompt of so many tokens and its answer."""

    def least_seconds(self, asked: float, answered: float) -> float:
        """Of a machine for such a request, where as many as can share all that can be shared."""


@dataclass(frozen=True)
class LayerMachines:
    """Machines of layer servers."""

    cut: Cut
    times: FleetTimes

    def prompt(self, tokens: int) -> int:
        """Padded as by default."""
        return Padding().prompt_tokens(tokens)

    def simulate(self, arrivals: Sequence[Arrival], *, machines: int, balancing: Balancing, seed: int) -> Simulated:
        """See `fleet.simulate`."""
        machine = Machine(self.times.cores, self.times.batching)
        return simulate(self.times, arrivals, machines=machines, machine=machine, balancing=balancing, seed=seed)

    def memory(self, users: int, longest: int) -> int:
        """For the model, and for connections that have all of their work ahead."""
        limits = Limits()
        ahead = min(limits.all_ahead_bytes, users * (limits.p0_bytes + limits.ahead_bytes))
        return self.cut.server_bytes + ahead

    def request_bytes(self, asked: float, answered: float) -> float:
        """With p0, which is sent ahead."""
        return (asked + answered - 1) * (self.cut.online_bytes(1) + P0_BYTES)

    def least_seconds(self, asked: float, answered: float) -> float:
        """Of the event loop or the worker, whichever takes longer."""
        many = batch.MAX_BATCH
        products = [self.times.product(stage, 1, many, 0) for stage in range(self.times.stages)]
        return float((asked + answered - 1) * np.sum(products, axis=0).max() / many)


class FleetPlan:
    """Fleets for one demand on one kind of machine. requests: simulated for each fleet."""

    def __init__(self, machines: Machines, demand: Demand, *, balancing: Balancing, seed: int, requests: int) -> None:
        self._machines, self._demand = machines, demand
        self._balancing, self._seed, self._requests = balancing, seed, requests
        self._trace = [Arrival(one.at, machines.prompt(one.context), one.generated) for one in demand.trace]

    def alone(self) -> tuple[Percentiles, Percentiles]:
        """First and later tokens where each user has a machine: no fleet is faster."""
        arrivals = share_of(self._trace, self._demand.rate, 1.0, self._requests, self._seed)
        apart = [Arrival(0.0, one.context, one.generated) for one in arrivals]
        return _percentiles(self._simulate(apart, len(apart), Balancing.LEAST_LOADED))

    def outlook(self, machines: int) -> FleetOutlook:
        """What so many machines are like."""
        cell, demand = min(machines, CELL), self._demand
        arrivals = share_of(self._trace, demand.rate, cell / machines, self._requests, self._seed)
        found = self._simulate(arrivals, cell, self._balancing)
        first, token = _percentiles(found)
        asked, answered = self._means()
        return FleetOutlook(
            machines,
            first,
            token,
            found.busy,
            self._machines.memory(
                math.ceil(demand.users / machines), max(one.context + one.generated for one in self._trace)
            ),
            demand.rate / machines * self._machines.request_bytes(asked, answered),
            demand.rate * answered,
        )

    def _simulate(self, arrivals: Sequence[Arrival], machines: int, balancing: Balancing) -> Simulated:
        return self._machines.simulate(arrivals, machines=machines, balancing=balancing, seed=self._seed)

    def _means(self) -> tuple[float, float]:
        """Tokens of prompts and of answers."""
        asked, answered = (sum(column) for column in list(zip(*map(astuple, self._trace), strict=True))[1:])
        return asked / len(self._trace), answered / len(self._trace)

    def least(self, first: float, token: float, on_try: Callable[[int], None] = lambda _: None) -> FleetOutlook:
        """The fewest machines, to one part in a hundred, with p99 of at most these seconds. on_try: of each number."""
        known: dict[int, FleetOutlook] = {}

        def meets(machines: int) -> bool:
            on_try(machines)
            known[machines] = found = self.outlook(machines)
            return found.first.p99 <= first and found.token.p99 <= token

        return known[fewest(meets, self._fewest_possible())]

    def _fewest_possible(self) -> int:
        """Below this the products alone take longer than there is time, however many tokens share one."""
        return max(1, int(self._demand.rate * self._machines.least_seconds(*self._means())))


def fewest(meets: Callable[[int], bool], start: int) -> int:
    """The smallest number that meets what is asked, from `start`, to one part in a hundred.

    Where a number does, all larger ones are taken to. OverflowError where none up to a million times `start` does.
    """
    most, step = start, 1
    least = start - 1
    while not meets(most):
        if most > start * 10**6:
            raise OverflowError(most)
        least = most
        most, step = most + step, 2 * step
    while most - least > max(1, most // _PRECISION):
        middle = (least + most) // 2
        if meets(middle):
            most = middle
        else:
            least = middle
    return most


def _percentiles(found: Simulated) -> tuple[Percentiles, Percentiles]:
    settled = found.settled()
    gaps = [gap for one in settled for gap in one.gaps]
    return Percentiles.of([one.first for one in settled]), Percentiles.of(gaps)
