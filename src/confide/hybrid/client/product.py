"""The matrix products of a private model: each is one round trip to the layer server, under one-time pads.

Nothing the server computes is believed. Every answer is checked, and a wrong one is kept from the server: what is sent
from then on is zeros under fresh masks, which are uniform numbers, in the shapes it would have got, until the caller
has gone as far as it might have gone.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import torch
from torch import Tensor

from confide.errors import (
    ConfideError,
    ConnectionLost,
    IntegrityError,
    LicenceError,
    PackExhausted,
    PackUnavailable,
    ServerBusy,
    ServerFault,
)
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.link import Link
from confide.hybrid.client.packs import MaskPack
from confide.hybrid.client.padding import Padding
from confide.hybrid.client.refusals import Breach
from confide.hybrid.client.supply import MaskSupply, Segment
from confide.packages.manifest import Group
from confide.rlwe import masks
from confide.rlwe.freivalds import AnswerCheck
from confide.rlwe.parameters import Parameters

_REPEATABLE = (ConnectionLost, LicenceError, PackExhausted, PackUnavailable, ServerBusy, ServerFault)
"""After these the same requests may well be answered. After others, such as a refused index, they would fail again."""

PART_TOKENS: Final = 32
"""Tokens in one message, at most: the server multiplies one part of a prompt while the client makes the next and reads
the last. Larger products are no faster; their results leave the processor's cache."""


@dataclass
class OnlineTraffic:
    """What went over the wire online: payload bytes, padding included, and products that were waited for."""

    bytes_up: int = 0
    bytes_down: int = 0
    round_trips: int = 0


def part_tokens(parameters: Parameters) -> int:
    """How many tokens of a layer group go in one message, whose answer must be one that the server may owe."""
    fitting = min(wire.MAX_FRAME // parameters.columns, wire.MAX_OWED // parameters.rows) // 4
    return min(PART_TOKENS, fitting)


@dataclass(frozen=True)
class CheckedGroup:
    """A layer group as the client needs it: names, parameters and the check of its answers."""

    group: Group
    parameters: Parameters
    check: AnswerCheck

    @property
    def most_tokens(self) -> int:
        """How many tokens go in one message."""
        return part_tokens(self.parameters)


@dataclass(frozen=True)
class _Part:
    """A message, made once and the same however often it is sent: what is under its masks, and where that belongs."""

    segment: Segment
    inputs: masks.Int32Array = field(repr=False)
    message: wire.Online = field(repr=False)
    place: slice


class RemoteProduct:
    """W x for a layer group, computed by the server on masked activations. Exact, and checked.

    A wrong answer raises nothing at first, because the server would see where a run breaks off: `breach` says what
    happened, and from then on the server gets padding and the caller zeros. `require_intact` ends that.

    width: sequences in the batch that comes next. padding: what lengths the server may see. generating: whether a
    generation is under way, which somebody will bring to its padded length.

    on_breach: called by the first `require_intact` after a wrong answer, before it raises.
    """

    def __init__(
        self,
        link: Link,
        supply: MaskSupply,
        groups: list[CheckedGroup],
        padding: Padding,
        on_breach: Callable[[Breach], None],
    ) -> None:
        self._link = link
        self._supply = supply
        self._groups = groups
        self._on_breach = on_breach
        self._positions = [0] * len(groups)
        self._last_only: int | None = None
        self._idling = False
        self._over: IntegrityError | None = None
        self.padding = padding
        self.width = 1
        self.generating = False
        self.traffic = OnlineTraffic()
        self.breach: Breach | None = None

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows); zeros once an answer was wrong, and while idling."""
        if self._over:
            raise self._over
        parameters = self._groups[group].parameters
        given = x.cpu().numpy()
        tokens = self._visible_tokens(group, len(given))
        # Zeros under fresh masks are uniform numbers, and take exactly the work that activations take: the server
        # has a clock.
        values = np.zeros((tokens, parameters.columns), np.int32)
        if not self._decoy:
            values[: len(given)] = given
        result = np.empty((tokens, parameters.rows), np.int32)
        most = self._groups[group].most_tokens
        segments = self._supply.take(group, values, most, anything=self.breach is not None)
        self._exchange(group, segments, result)
        self._positions[group] += len(given)
        if self._decoy:
            result[:] = 0
        return torch.from_numpy(result[: len(given)]).to(x.device)

    @property
    def _decoy(self) -> bool:
        """Whether the server gets nothing but padding."""
        return self._idling or self.breach is not None

    def _visible_tokens(self, group: int, tokens: int) -> int:
        """A prompt is padded; a step of decoding, one token for each sequence, shows nothing but that."""
        # A prompt may be one token long, and must not look like a step then.
        prompt = self.generating and not self._positions[group] and group != self._last_only
        if tokens == self.width and not prompt:
            return tokens
        # Each of the sequences is padded, so that a batch shows no more than one text does.
        width = self.width if tokens % self.width == 0 else 1
        return width * self.padding.prompt_tokens(tokens // width)

    def _sendable(self, segment: Segment) -> masks.Int32Array:
        """What goes out under a segment's masks."""
        if self.breach is None or segment.repeated:
            # In a repetition even now: the masks are these activations' and no others', and the server must not see
            # from another course that it is not believed any more.
            return segment.inputs
        # From here on the masks carry something else than they were given for, so they must not be given again.
        self._supply.abandon_run()
        return np.zeros_like(segment.inputs)

    def _exchange(self, group: int, segments: list[Segment], result: masks.Int32Array) -> None:
        """Fill `result` with what the server answers for the segments, checked."""
        # Made once: where the connection breaks, the same indexes may be asked again for the same data, and for
        # nothing else, whatever has been found out since.
        parts: list[_Part] = []

        def make_next() -> _Part:
            parts.append(self._part(group, segments[len(parts)], parts[-1].place.stop if parts else 0))
            return parts[-1]

        def exchange(connection: LayerConnection) -> None:
            owed: deque[_Part] = deque()
            for index in range(len(segments)):
                part = parts[index] if index < len(parts) else make_next()
                while owed and self._answer_bytes(group, [*owed, part]) > wire.MAX_OWED:
                    self._receive(connection, group, owed.popleft(), result)
                connection.send(part.message)
                owed.append(part)
            self._supply.look_ahead((group + 1) % len(self._groups), len(result))
            while owed:
                self._receive(connection, group, owed.popleft(), result)

        self._link.run(exchange)
        self.traffic.round_trips += 1

    def _part(self, group: int, segment: Segment, start: int) -> _Part:
        inputs = self._sendable(segment)
        masked = masks.mask(inputs, segment.masks, self._groups[group].parameters)
        message = wire.Online(segment.pack, group, segment.first, len(masked), wire.payload(masked))
        return _Part(segment, inputs, message, slice(start, start + len(masked)))

    def _answer_bytes(self, group: int, parts: list[_Part]) -> int:
        return 4 * self._groups[group].parameters.rows * sum(part.message.count for part in parts)

    def _receive(self, connection: LayerConnection, group: int, part: _Part, result: masks.Int32Array) -> None:
        parameters = self._groups[group].parameters
        answer = connection.receive(wire.Answer)
        # A size cannot depend on the activations, so an error over one tells the server nothing of them.
        wire.require_bytes(answer.values, self._answer_bytes(group, [part]))
        self._supply.answered(part.segment)
        self.traffic.bytes_up += len(part.message.masked)
        self.traffic.bytes_down += len(answer.values)
        answers = np.frombuffer(answer.values, np.int32).reshape(part.message.count, -1)
        result[part.place] = masks.unmask(answers, part.segment.values, parameters)
        self._check(group, result[part.place], part.inputs, part.place.start)

    def _check(self, group: int, products: masks.Int32Array, values: masks.Int32Array, done: int) -> None:
        """Note the first wrong answer of all; padding and decoys are checked like anything else."""
        right = self._groups[group].check(products, values)
        if self.breach is None and not right.all():
            facts = self._groups[group].group
            token = self._positions[group] + done + int(right.argmin())
            self.breach = Breach(facts.name, tuple(layer.name for layer in facts.layers), token)

    @contextmanager
    def generation(self, last_only: str | None = None) -> Iterator[None]:
        """While it lasts, each group's first call counts as a prompt, and tokens are counted from there.

        last_only: a layer that sees the last token of each sequence only, whatever the prompt's length.
        Where it is interrupted, the next one repeats what it sent for as long as that is the same.
        """
        self._positions = [0] * len(self._groups)
        self._last_only = self._alone(last_only)
        self.generating = True
        self._supply.begin_run()
        try:
            yield
        except ConfideError as error:
            if not isinstance(error, _REPEATABLE):
                self._supply.end_run()
            raise
        else:
            self._supply.end_run()
        finally:
            self.generating = False

    def _alone(self, layer: str | None) -> int | None:
        """The group that is this layer and no other."""
        names = ([layer.name for layer in checked.group.layers] for checked in self._groups)
        return next((index for index, layers in enumerate(names) if layers == [layer]), None)

    @contextmanager
    def idling(self) -> Iterator[None]:
        """While it lasts, the server gets padding whatever is asked: what follows the end of an answer."""
        self._idling = True
        try:
            yield
        finally:
            self._idling = False

    def require_intact(self) -> None:
        """IntegrityError if an answer was wrong. Call it where the server expects no more frames."""
        if self._over is None and self.breach is not None:
            breach = self.breach
            self._over = IntegrityError(
                f"The server's answer for layer group {breach.group} ({', '.join(breach.layers)}), token "
                f"{breach.token}, is not what this model gives. It was not used; the masks made with this server "
                "are burned, and it is refused from now on. Find out why, then see `confide distrust`."
            )
            self.close()
            self._on_breach(breach)
        if self._over:
            raise self._over

    def add_packs(self, packs: list[MaskPack]) -> None:
        """Go on with these packs once the present ones are spent."""
        self._supply.add(packs)

    @property
    def tokens_left(self) -> int:
        """Masks that are ready."""
        return self._supply.tokens_left

    def close(self) -> None:
        """Close the connection."""
        self._link.close()
