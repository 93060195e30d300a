"""The two classes that a protocol needs from an encryption scheme, named together.

Protocol code takes a `Scheme`; tests put a cleartext twin of the same shape in its place and run in milliseconds.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from confide.rlwe.encryption import PackSecret
from confide.rlwe.evaluation import OfflineProduct, RequestKey
from confide.rlwe.parameters import Parameters


class ClientHalf(Protocol):
    """What `encryption.PackSecret` does: see there for shapes."""

    def public_seed(self, group: int) -> bytes: ...
    def public_key(self, p1_seed: bytes, parameters: Parameters) -> Tensor: ...
    def encrypt_rows(self, masks: Tensor, parameters: Parameters, group: int, first_row: int) -> Tensor: ...
    def decrypt_rows(self, high: Tensor, low: Tensor) -> Tensor: ...


class ServerHalf(Protocol):
    """What `evaluation.OfflineProduct` does: see there for shapes."""

    def add_rows(self, first_row: int, words: Tensor) -> None: ...
    def answer(
        self, mask_seed: bytes, p1_seed: bytes, p0: Tensor, request: RequestKey
    ) -> Iterator[tuple[int, Tensor, Tensor]]: ...


@dataclass(frozen=True)
class Scheme:
    """A name that both sides compare, and the two halves' constructors."""

    name: str
    client: Callable[[bytes, int], ClientHalf]
    server: Callable[[Tensor, Parameters], ServerHalf]


RLWE = Scheme("rlwe-1", PackSecret, OfflineProduct)
