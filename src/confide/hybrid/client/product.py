"""The matrix products of a private model: each is one round trip to a layer server, under pads that serve once.

Nothing the server computes is believed. Every answer is checked, and a wrong one is kept from the server: it gets
frames of the same shapes, made by the same steps, until the caller has gone as far as it might have gone.
"""

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from confide.errors import (
    BudgetExhausted,
    ConfideError,
    DisclosureLimit,
    IntegrityError,
    ModelClosed,
    UnknownBlock,
    WrongMode,
)
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.links import Links
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.pads.pool import PadPool, Taken
from confide.hybrid.client.refusals import Breach
from confide.hybrid.closing import Closing
from confide.packages.manifest import Group
from confide.rlwe.freivalds import AnswerCheck
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import Parameters

Int32Array = NDArray[np.int32]

PART_TOKENS: Final = 32
"""Tokens in one message, at most: the server multiplies one part of a prompt while the client makes the next and reads
the last. Larger products are no faster; their results leave the processor's cache."""
MOST_OWED: Final = 2 << 20
"""Payload bytes in flight, at most, whatever the server allows."""
WARN_DAYS: Final = 7.0
"""Before a licence ends, in which its holder hears of it."""
_DAY: Final = 86_400
_TOKEN_BYTES: Final = 6 * 2048
_LAST_BYTES: Final = 32

_log = logging.getLogger(__name__)


@dataclass
class OnlineTraffic:
    """What went over the wire: payload bytes, padding and retries included, and products that were waited for.

    bytes_ahead: of bytes_up, what was sent before it was needed, for tokens_ahead tokens. answers_right: of one layer
    group for one token, each checked. last_sent: how the last masked activations that went out begin.
    """

    bytes_up: int = 0
    bytes_down: int = 0
    bytes_ahead: int = 0
    tokens_ahead: int = 0
    round_trips: int = 0
    answers_right: int = 0
    last_sent: bytes = b""

    def since(self, before: "OnlineTraffic") -> "OnlineTraffic":
        """What has come to what there was before."""
        numbers = [one.name for one in fields(self) if one.name != "last_sent"]
        grown = {name: getattr(self, name) - getattr(before, name) for name in numbers}
        return OnlineTraffic(**grown, last_sent=self.last_sent)


@dataclass(frozen=True)
class CheckedGroup:
    """A layer group as the client needs it: names, parameters and the check of its answers."""

    group: Group
    parameters: Parameters
    check: AnswerCheck

    @property
    def most_tokens(self) -> int:
        """How many tokens go in one message; its answer must be one that a server may owe."""
        request = self.parameters.planes * self.parameters.columns + _TOKEN_BYTES
        return max(1, min(PART_TOKENS, wire.MAX_FRAME // request, MOST_OWED // (4 * self.parameters.rows)))


@dataclass(frozen=True, eq=False)
class _Part:
    """A message, made once and the same however often it is sent: what is in it, and where its answer belongs."""

    taken: Taken
    inputs: Int32Array = field(repr=False)
    planes: memoryview = field(repr=False)
    place: slice
    answer_bytes: int

    @property
    def bytes_in_flight(self) -> int:
        """Payload bytes of this and its answer."""
        return len(self.planes) + self.answer_bytes

    def message(self, group: int, *, whole: bool) -> wire.Online:
        """whole: with p0, for a server that does not have it."""
        p0 = wire.payload(self.taken.p0) if whole and self.taken.p0 is not None else wire.NOTHING
        return wire.Online(group, self.taken.block, self.taken.first, self.taken.count, self.planes, p0)


class RemoteProduct(Closing):
    """W x for a layer group, computed by the server on encrypted activations. Exact, and checked.

    A wrong answer raises nothing at first, because the server would see where a run breaks off: `breach` says what
    happened, and from then on the caller gets zeros, and the server encryptions of what becomes of those.
    `require_intact` ends that.

    links: to the servers that have the groups. groups: in the layer table's order. padding: what lengths the servers
    may see. on_breach: called by the first `require_intact` after a wrong answer, before it raises, with the address of
    the server that gave it.

    Threads take turns: one generation, or one forward pass, at a time.
    """

    def __init__(
        self,
        links: Links,
        pool: PadPool,
        groups: list[CheckedGroup],
        padding: Padding,
        on_breach: Callable[[str, Breach], None],
    ) -> None:
        self._links = links
        self._pool = pool
        self.groups = groups
        self._on_breach = on_breach
        self._positions = [0] * len(groups)
        self._last_only: frozenset[int] = frozenset()
        self._over: IntegrityError | None = None
        self._width = 1
        self._turn = threading.RLock()
        self._pid = os.getpid()
        self.padding = padding
        self._warned_of_tokens = self._warned_of_end = False
        self.generating = False
        self.traffic = OnlineTraffic()
        self.breach: Breach | None = None
        self._wrong = ""

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows); zeros once an answer was wrong."""
        self._require_usable()
        with self._turn:
            self._require_usable()
            parameters = self.groups[group].parameters
            given = x.cpu().numpy()
            tokens = self._visible_tokens(group, len(given))
            values = np.zeros((tokens, parameters.columns), np.int32)
            values[: len(given)] = given
            result = np.empty((tokens, parameters.rows), np.int32)
            self._exchange(group, values, result)
            self._positions[group] += len(given)
            # By a product either way: the server has a clock.
            result *= np.int32(self.breach is None)
            return torch.from_numpy(result[: len(given)]).to(x.device)

    def _require_usable(self) -> None:
        """Before anything is waited for: whoever holds the lock may not be in this process.

        A wrong answer closes the product, and is the reason to tell then.
        """
        if self._pid != os.getpid():
            raise ModelClosed(
                "This model was opened by the process that this one was forked from, and one secret must not serve "
                "two; open it again with from_shell in each process."
            )
        if self._over:
            raise self._over.with_traceback(None)
        self._links.require_open()

    def _visible_tokens(self, group: int, tokens: int) -> int:
        """A prompt is padded; a step of decoding, one token for each sequence, shows nothing but that."""
        # A prompt may be one token long, and must not look like a step then.
        prompt = self.generating and not self._positions[group] and group not in self._last_only
        if tokens == self._width and not prompt:
            return tokens
        # Each of the sequences is padded, so that a batch shows no more than one text does.
        width = self._width if tokens % self._width == 0 else 1
        return width * self.padding.prompt_tokens(tokens // width)

    def _exchange(self, group: int, values: Int32Array, result: Int32Array) -> None:
        """Fill `result` with what the server answers for the values, checked."""
        # Parts that were made and not answered, oldest first. Each is made once: where the connection breaks, the same
        # bytes are sent again, now with p0. Parts that were not made yet come out of a fresh pool.
        shard, link = self._links.of(group)
        unanswered: deque[_Part] = deque()
        made = 0

        def make() -> _Part:
            nonlocal made
            part = self._part(group, values, made)
            made = part.place.stop
            unanswered.append(part)
            return part

        def exchange(connection: LayerConnection) -> None:
            limit = min(MOST_OWED, connection.welcome.bytes_in_flight)
            again = deque(unanswered)
            owed: deque[tuple[_Part, bool]] = deque()

            def send(part: _Part, *, whole: bool) -> None:
                message = part.message(group, whole=whole)
                connection.send(message)
                connection.asked[group] += part.taken.count
                owed.append((part, whole))
                self.traffic.bytes_up += len(message.planes) + len(message.p0)
                self.traffic.last_sent = bytes(message.planes[:_LAST_BYTES])

            def receive() -> None:
                part, whole = owed.popleft()
                try:
                    answer = connection.receive(wire.Answer)
                except UnknownBlock:
                    if whole:
                        raise
                    connection.asked[group] -= part.taken.count  # not billed
                    send(part, whole=True)
                    return
                self._use(group, part, answer, result, connection.url)
                unanswered.remove(part)

            def receive_all() -> None:
                while owed:
                    receive()

            while again or made < len(values):
                # Before each part: a prompt may reach into a block whose p0 would else come with every group's request.
                self._announce(shard, connection, receive_all)
                part, whole = (again.popleft(), True) if again else (make(), False)
                while owed and sum(waiting.bytes_in_flight for waiting, _ in owed) + part.bytes_in_flight > limit:
                    receive()
                send(part, whole=whole or shard not in part.taken.announced)
            receive_all()

        link.run(exchange)
        self.traffic.round_trips += 1

    def _part(self, group: int, values: Int32Array, start: int) -> _Part:
        checked = self.groups[group]
        taken = self._pool.take(group, min(checked.most_tokens, len(values) - start))
        place = slice(start, start + taken.count)
        inputs = values[place]
        planes = wire.payload(mask(inputs, taken.pads.pads, checked.parameters))
        return _Part(taken, inputs, planes, place, 4 * checked.parameters.rows * taken.count)

    def _use(self, group: int, part: _Part, answer: wire.Answer, result: Int32Array, server: str) -> None:
        # A size cannot depend on the activations, so an error over one tells the server nothing of them.
        wire.require_bytes(answer.values, part.answer_bytes)
        self.traffic.bytes_down += len(answer.values)
        answers = np.frombuffer(answer.values, np.int32).reshape(part.taken.count, -1)
        products = unmask(answers, part.taken.pads.values, self.groups[group].parameters)
        result[part.place] = products
        self._check(group, products, part, server)

    def _check(self, group: int, products: Int32Array, part: _Part, server: str) -> None:
        """Note the first wrong answer of all; padding is checked like anything else."""
        right = self.groups[group].check(products, part.inputs)
        self.traffic.answers_right += int(right.sum())
        if self.breach is None and not right.all():
            facts = self.groups[group].group
            token = self._positions[group] + part.place.start + int(right.argmin())
            self._wrong = server  # another replica may have taken its place before anybody hears of it
            self.breach = Breach(facts.name, tuple(layer.name for layer in facts.layers), token)

    def _announce(
        self, shard: int, connection: LayerConnection, receive_all: Callable[[], object] = lambda: None
    ) -> None:
        """Send what a shard's server can work on ahead. receive_all: so that neither waits for the other."""
        for block in self._pool.announcements(shard, connection.welcome.ahead_tokens):
            if block.p0 is not None:
                receive_all()
                p0 = wire.payload(block.p0)
                connection.send(wire.Ahead(block.number, p0))
                self.traffic.bytes_up += len(p0)
                self.traffic.bytes_ahead += len(p0)
                self.traffic.tokens_ahead += block.tokens

    def announce_idle(self) -> None:
        """The same from another thread, if nothing is under way."""
        if self._pid == os.getpid() and self._turn.acquire(blocking=False):
            try:
                for shard, connection in [] if self.generating else self._links.connected:
                    try:
                        self._announce(shard, connection)
                    except ConfideError:
                        self._links.drop(shard)  # the next exchange finds out what is the matter
            finally:
                self._turn.release()

    def require_server(self) -> None:
        """ConnectionLost, or what they say, unless the servers are there. Nothing is asked while an exchange waits."""
        self._require_usable()
        if not self._turn.acquire(blocking=False):
            if (away := self._links.away) is not None:
                raise away
            return
        try:
            self._links.require_server()
        finally:
            self._turn.release()

    @contextmanager
    def forward(self, width: int) -> Iterator[None]:
        """Around each forward pass, of `width` sequences: the next tokens get pads of their own in every layer.

        Outside of a generation IntegrityError when it is over, if an answer was wrong.
        """
        self._require_usable()
        with self._turn:
            self._width = width
            self._pool.next_pass()
            if not self.generating:
                self._positions = [0] * len(self.groups)
            yield
            if not self.generating:
                self.require_intact()

    @contextmanager
    def generation(self, last_only: str | None = None) -> Iterator[None]:
        """While it lasts, each group's first call counts as a prompt, and tokens are counted from there.

        last_only: a layer that sees the last token of each sequence only, whatever the prompt's length.
        """
        self._require_usable()
        with self._turn:
            if self.generating:
                raise WrongMode("This model is generating; wait until it is done, or open it a second time.")
            self._positions = [0] * len(self.groups)
            self._last_only = self._alone(last_only)
            self.generating = True
            try:
                yield
            finally:
                self.generating = False

    def _alone(self, layer: str | None) -> frozenset[int]:
        """The group that is this layer and no other, or the groups that are its parts."""
        names = ([layer.name for layer in checked.group.layers] for checked in self.groups)
        return frozenset(index for index, layers in enumerate(names) if layers == [layer])

    def require_allowed(self, tokens: int) -> None:
        """Before a text of so many tokens: BudgetExhausted or DisclosureLimit unless the licence allows all of them.

        By what the servers said at the greeting; nothing is sent. Says so where there is little left, or an end near.
        """
        for _, connection in self._links.connected:  # one that is away says it when it is there again
            self._require_allowed(connection, tokens)

    def _require_allowed(self, connection: LayerConnection, tokens: int) -> None:
        allowance, asked = connection.welcome.allowance, max(connection.asked.values(), default=0)
        for left, refusal in ((allowance.tokens_left, BudgetExhausted), (allowance.answers_left, DisclosureLimit)):
            if left is not None and asked + tokens > left:
                raise refusal(
                    f"The licence has {max(0, left - asked)} tokens left, as the layer server says, and prompt and "
                    f"answer take up to {tokens} with their padding; ask for fewer, or the model's owner for more. "
                    "Nothing was sent."
                )
        self._warn(allowance, asked + tokens, tokens)

    def _warn(self, allowance: wire.Allowance, asked: int, tokens: int) -> None:
        if allowance.tokens is not None and allowance.tokens - asked < tokens and not self._warned_of_tokens:
            self._warned_of_tokens = True
            _log.warning(
                "After this text the licence has about %d tokens left; ask the model's owner for more in time.",
                allowance.tokens - asked,
            )
        if allowance.expires is not None and not self._warned_of_end:
            days = (allowance.expires - time.time()) / _DAY
            if days < WARN_DAYS:
                self._warned_of_end = True
                _log.warning("The licence ends in %.1f days; ask the model's owner for more time.", max(0.0, days))

    def want(self, tokens: int) -> None:
        """Have pads for so many tokens made ahead from now on."""
        self._pool.want(tokens)

    @property
    def tokens_ready(self) -> int:
        """Tokens whose pads are made and not used."""
        return self._pool.tokens_ready

    @property
    def disclosed(self) -> float | None:
        """Of what solves the most disclosed layer group, the share that the licence had seen when the connections were
        made, by the servers' word; None without a connection.
        """
        return max((connection.welcome.allowance.disclosed for _, connection in self._links.connected), default=None)

    @property
    def ms_ahead_per_token(self) -> float:
        """What making pads takes for a token, measured; 0 before there are any."""
        return 1e3 * self._pool.seconds / max(self._pool.tokens_made, 1)

    def require_intact(self) -> None:
        """IntegrityError if an answer was wrong. Call it where the server expects no more frames."""
        if self._over is None and self.breach is not None:
            breach = self.breach
            self._over = IntegrityError(
                f"The server's answer for layer group {breach.group} ({', '.join(breach.layers)}), token "
                f"{breach.token}, is not what this model gives. It was not used, and the server is refused from now "
                "on. Find out why, then see `confide distrust`."
            )
            self.close()
            self._on_breach(self._wrong, breach)
        if self._over:
            raise self._over.with_traceback(None)

    def close(self) -> None:
        """Close the connection and forget all pads. What is under way in another thread ends before its next frame."""
        if self._pid != os.getpid():
            return  # the connection is the parent's
        self._links.shut()
        with self._turn:
            self._links.close()
            self._pool.close()
