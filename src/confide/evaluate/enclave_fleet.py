"""A fleet of enclave servers, simulated: what they answer in which pass, and how long a pass takes on this machine.

Discrete events, as in `fleet`. An engine reads the next tokens of all running answers and a part of the prompts that
wait in one pass, as `enclave.engines.turns` and `rows` do; who has no turn waits in line. What is known of a pass is
measured without a model's weights: its skeleton, and the products of as many weights.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

import simpy
import torch
from torch import Tensor
from transformers import PreTrainedConfig
from transformers.pytorch_utils import Conv1D

from confide.enclave.engines.dtypes import TORCH_DTYPES, fastest_dtype, product_seconds
from confide.enclave.engines.engine import PARALLEL, Dtype
from confide.enclave.engines.rows import Batching, Rows
from confide.enclave.engines.transformers_engine import PREFILL
from confide.enclave.engines.turns import FIRST_STEPS
from confide.evaluate.cost_model import Network, between
from confide.evaluate.fleet import Balancing, Served, Simulated, after
from confide.evaluate.skeleton import timed, without_linear
from confide.evaluate.trace import Arrival
from confide.models.linear import linear_shape, named_linear
from confide.models.sharing import empty_model

PRODUCTS: Final = ((1, 1 << 26), (8, 1 << 26), (32, 1 << 24), (PREFILL, 1 << 20))
"""Tokens in a pass for which products are timed, and weights: for few tokens more than caches hold."""
ROWS: Final = (1, 8)
"""Answers in a pass for which the skeleton is timed."""
STEPS: Final = 7
TOKEN_BYTES: Final = 361
REQUEST_BYTES: Final = 7_600
PROMPT_BYTES: Final = 4
"""Over TCP, of each token that is streamed, of a request beside that with its receipt, and of a prompt's token. Counted
on loopback, with the encrypted channel."""


@dataclass(frozen=True)
class PassTimes:
    """How long a pass takes, in seconds.

    weights, head_weights: that every token goes through, and that only those do whose logits are asked for. products:
    seconds a weight of so many tokens together, ascending by tokens. rows: of everything else for the next tokens of so
    many answers, ascending. part: of everything else for a whole part of a prompt. dtype: what is computed in.
    together: whether the model can read what is due for several requests at once; see `Batching`.
    """

    weights: int
    head_weights: int
    products: Sequence[tuple[int, float]]
    rows: Sequence[tuple[int, float]]
    part: float
    dtype: Dtype
    together: bool = True

    def seconds(self, prompt: int, answers: int, begun: int) -> float:
        """Of so many tokens of prompts and one of each answer; begun: prompts that end in it."""
        if not prompt + answers:
            return 0.0
        beside = self.part * prompt / PREFILL + (between(self.rows, answers) if answers else 0.0)
        if self.together:
            return beside + self._products(prompt + answers, answers + begun)
        alone = self._products(prompt, begun) if prompt else 0.0
        return beside + alone + answers * self._products(1, 1)

    def _products(self, tokens: int, asked: int) -> float:
        """asked: tokens whose logits are."""
        head = self.head_weights * between(self.products, asked) if asked else 0.0
        return self.weights * between(self.products, tokens) + head


def time_passes(config: PreTrainedConfig, context: int) -> PassTimes:
    """Measure this machine for a model of this configuration, in the type that an engine would choose here.

    context: tokens that an answer has behind it. Takes seconds, and the memory of the model's embeddings.
    """
    empty = empty_model(config)
    dtype = fastest_dtype(empty)
    head = empty.get_output_embeddings()
    layers = {layer: linear_shape(layer) for layer in named_linear(empty).values()}
    sizes = {layer: shape[0] * shape[1] for layer, shape in layers.items() if shape is not None}
    head_weights = sizes.pop(head, 0)
    largest = max(sizes, key=sizes.__getitem__)
    columns = (layers[largest] or (0, 1))[1]
    torch_dtype, other_way = TORCH_DTYPES[dtype], isinstance(largest, Conv1D)
    products = [
        (tokens, product_seconds(torch_dtype, columns, tokens, weights, other_way=other_way))
        for tokens, weights in PRODUCTS
    ]
    rows = Rows(without_linear(config))
    answers, part = _time_beside(rows, context)
    together = rows.batching is Batching.TOGETHER
    return PassTimes(sum(sizes.values()), head_weights, products, answers, part, dtype, together)


def _time_beside(rows: Rows, context: int) -> tuple[list[tuple[int, float]], float]:
    """Of a skeleton: for the next tokens of so many answers, and for a part of a prompt."""
    read = [rows.row(context + STEPS) for _ in range(max(ROWS))]
    with torch.inference_mode():
        part = min(timed(lambda: rows.row().read([0] * PREFILL))[0] for _ in range(2))
        for row in read:
            row.read([0] * context)
        found = []
        for count in ROWS:

            def step(count: int = count) -> None:
                for row in read[:count]:
                    row.follow([0])
                for row in read[:count]:
                    _ = row.logits

            found.append((count, sorted(timed(step)[0] for _ in range(STEPS))[STEPS // 2]))
    return found, part


def cache_bytes(config: PreTrainedConfig, dtype: Dtype) -> int:
    """Of keys and values that a model keeps for one token."""
    rows = Rows(without_linear(config))
    row = rows.row()
    row.read([0])
    tensors = (one for layer in row.cache.layers for one in (layer.keys, layer.values) if isinstance(one, Tensor))
    return sum(one.numel() // one.shape[-2] for one in tensors) * TORCH_DTYPES[dtype].itemsize


@dataclass
class _Request:
    """left: tokens of its answer. unread: of its prompt. steps: parts of it that were read."""

    left: int
    unread: int
    result: Served
    steps: int = 0
    due: float = field(default=0.0)


class _Engine:
    """One machine's: the line, and the passes."""

    def __init__(self, env: simpy.Environment, times: PassTimes, parallel: int) -> None:
        self._env, self._times, self._parallel = env, times, parallel
        self._line: deque[_Request] = deque()
        self._arrived: deque[_Request] = deque()
        self._long: deque[_Request] = deque()
        self._running: list[_Request] = []
        self._working = False
        self.clients = 0
        self.busy = 0.0

    def receive(self, request: _Request) -> None:
        """A request is there."""
        self.clients += 1
        self._line.append(request)
        if not self._working:
            self._pass()

    def _pass(self) -> None:
        """Read what is due in one pass, and then the next."""
        while self._line and self.clients - len(self._line) < self._parallel:
            self._arrived.append(self._line.popleft())
        parts = self._parts()
        answered = list(self._running)
        ended = [request for request, _ in parts if not request.unread]
        seconds = self._times.seconds(sum(tokens for _, tokens in parts), len(answered), len(ended))
        self._working = seconds > 0
        if not self._working:
            return
        self.busy += seconds

        def done() -> None:
            for request in (*answered, *ended):
                self._token(request)
            self._running = [request for request in (*answered, *ended) if request.left]
            self.clients -= len(answered) + len(ended) - len(self._running)
            self._pass()

        after(self._env, seconds, done)

    def _parts(self) -> list[tuple[_Request, int]]:
        """What is read of prompts: a whole part of each queue's first, or several short ones until they are one."""
        found: list[tuple[_Request, int]] = []
        for queue in (self._arrived, self._long):
            room = 1.0
            while queue and room > 0 and all(request is not queue[0] for request, _ in found):
                request = queue.popleft()
                tokens = min(PREFILL, request.unread)
                request.unread -= tokens
                request.steps += 1
                room -= tokens / PREFILL
                found.append((request, tokens))
                if not request.unread:
                    continue
                if queue is self._arrived and request.steps < FIRST_STEPS:
                    queue.appendleft(request)
                else:
                    self._long.append(request)
        return found

    def _token(self, request: _Request) -> None:
        now = self._env.now
        if request.result.first:
            request.result.gaps.append(now - request.due)
        else:
            request.result.first = now - request.result.at
        request.due = now
        request.left -= 1


@dataclass(frozen=True)
class EnclaveMachines:
    """Machines that each serve the whole model from a trusted environment; see `fleet_plan.Machines`.

    cache_bytes: of keys and values for one token. parallel: answers at once.
    """

    times: PassTimes
    network: Network
    cache_bytes: int
    parallel: int = PARALLEL

    def prompt(self, tokens: int) -> int:
        """As it is: nothing is padded."""
        return tokens

    def simulate(self, arrivals: Sequence[Arrival], *, machines: int, balancing: Balancing, seed: int) -> Simulated:
        """Send requests to so many."""
        env, chance = simpy.Environment(), random.Random(seed)  # noqa: S311 - the same from each seed
        engines = [_Engine(env, self.times, self.parallel) for _ in range(machines)]
        served = [Served(one.at) for one in arrivals]

        def begin(arrival: Arrival, result: Served) -> None:
            least = min(engine.clients for engine in engines)
            free = [one for one in engines if balancing is Balancing.RANDOM or one.clients == least]
            chance.choice(free).receive(_Request(arrival.generated, arrival.context, result))

        for arrival, result in zip(arrivals, served, strict=True):
            after(env, arrival.at, lambda a=arrival, r=result: begin(a, r))  # type: ignore[misc]
        env.run()
        for arrival, result in zip(arrivals, served, strict=True):  # answers stream: only the first waits
            result.first += self.network.seconds(1, REQUEST_BYTES + PROMPT_BYTES * arrival.context)
        seconds = max(one.at + one.first + sum(one.gaps) for one in served)
        return Simulated(served, seconds, sum(engine.busy for engine in engines) / (seconds * machines), [])

    def memory(self, users: int, longest: int) -> int:
        """Bytes of a machine: the weights, and caches of as many answers as run at once, each of `longest` tokens."""
        weights = (self.times.weights + self.times.head_weights) * TORCH_DTYPES[self.times.dtype].itemsize
        return weights + min(users, self.parallel) * longest * self.cache_bytes

    def request_bytes(self, asked: float, answered: float) -> float:
        """Both ways, of a prompt of so many tokens and its answer."""
        return REQUEST_BYTES + PROMPT_BYTES * asked + TOKEN_BYTES * answered

    def least_seconds(self, asked: float, answered: float) -> float:
        """Of a machine for one request, if as many as can share every pass."""
        full = self.times.seconds(0, self.parallel, 0) / self.parallel
        return asked * self.times.seconds(PREFILL, 0, 0) / PREFILL + answered * full
