"""The matrix products of a private model: each is one round trip to the layer server, under one-time pads."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from confide.errors import ConfideError, ConnectionLost, LicenceError, PackExhausted, ServerBusy, ServerFault
from confide.hybrid import wire
from confide.hybrid.link import Link
from confide.hybrid.packs import MaskPack
from confide.hybrid.supply import MaskSupply, Segment
from confide.rlwe import masks
from confide.rlwe.parameters import Parameters

_REPEATABLE = (ConnectionLost, LicenceError, PackExhausted, ServerBusy, ServerFault)
"""After these the same requests may well be answered. After others, such as a refused index, they would fail again."""


@dataclass
class OnlineTraffic:
    """What went over the wire online: payload bytes and round trips."""

    bytes_up: int = 0
    bytes_down: int = 0
    round_trips: int = 0


class RemoteProduct:
    """W x for a layer group, computed by the server on masked activations. Exact."""

    def __init__(self, link: Link, supply: MaskSupply, parameters: list[Parameters]) -> None:
        self._link = link
        self._supply = supply
        self._parameters = parameters
        self._most = [wire.MAX_FRAME // (4 * max(group.rows, group.columns)) for group in parameters]
        self.traffic = OnlineTraffic()

    def __call__(self, group: int, x: Tensor) -> Tensor:
        """x int32 (tokens, columns) -> W x int32 (tokens, rows)."""
        values = x.cpu().numpy()
        results = []
        done = 0
        for segment in self._supply.take(group, values, self._most[group]):
            count = len(segment.masks)
            results.append(self._segment(group, values[done : done + count], segment))
            done += count
        result = results[0] if len(results) == 1 else np.concatenate(results)
        return torch.from_numpy(result).to(x.device)

    def _segment(self, group: int, values: masks.Int32Array, segment: Segment) -> masks.Int32Array:
        parameters = self._parameters[group]
        masked = masks.mask(values, segment.masks, parameters)
        message = wire.Online(segment.pack, group, segment.first, len(masked), wire.payload(masked))
        answer = self._exchange(message)
        wire.require_bytes(answer.values, len(masked) * parameters.rows * 4)
        self.traffic.bytes_up += len(message.masked)
        self.traffic.bytes_down += len(answer.values)
        self.traffic.round_trips += 1
        return masks.unmask(np.frombuffer(answer.values, np.int32).reshape(len(masked), -1), segment.values, parameters)

    def _exchange(self, message: wire.Online) -> wire.Answer:
        # The same indexes may be asked again for the same data, and for nothing else.
        return self._link.run(lambda connection: connection.request(message, wire.Answer))

    @contextmanager
    def run(self) -> Iterator[None]:
        """One generation. Where it is interrupted, the next one repeats what it sent for as long as it is the same."""
        self._supply.begin_run()
        try:
            yield
        except ConfideError as error:
            if not isinstance(error, _REPEATABLE):
                self._supply.end_run()
            raise
        self._supply.end_run()

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
