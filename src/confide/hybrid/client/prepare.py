"""The client's offline phase: encrypt a pack's masks, have the server multiply them, keep what unmasks the answers."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from confide.errors import ServerChanged, UnusablePack, WrongShape
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.link import Link
from confide.hybrid.client.packs import MaskPack, disk_bytes
from confide.packages.manifest import Manifest
from confide.rlwe.parameters import Parameters
from confide.rlwe.scheme import ClientHalf, Scheme

FRAME_ROWS = 128
"""Encrypted inputs in one frame: 12 bytes x 4096 x 128 is 6 MiB."""
CHUNK_BYTES = 128 << 20
"""Encrypted, or received, before the other side has its turn. On one machine, two processes whose threads wait for
each other at every step are several times slower side by side than in turn."""


@dataclass(frozen=True)
class Traffic:
    """What preparing one pack costs: bytes each way on the wire, bytes on the client's disk, tokens it serves."""

    tokens: int
    bytes_up: int
    bytes_down: int
    bytes_on_disk: int


@dataclass(frozen=True)
class Progress:
    """Where a preparation stands: the group being prepared, and bytes over the wire, done and in all."""

    group: str
    bytes_done: int
    bytes_total: int


OnProgress = Callable[[Progress], None]


def group_traffic(parameters: Parameters) -> tuple[int, int]:
    """Bytes up and down for one group of a pack: planes bytes an input, 2 x 5 bytes an output, for each token."""
    up = parameters.planes * parameters.tokens * (parameters.columns + 1)
    down = 2 * parameters.kept_planes * parameters.tokens * parameters.rows
    return up, down


def pack_traffic(groups: Sequence[Parameters]) -> Traffic:
    """What one pack of these layer groups costs; there is at least one."""
    up, down = (sum(direction) for direction in zip(*map(group_traffic, groups), strict=True))
    return Traffic(groups[0].tokens, up, down, disk_bytes(groups))


@torch.inference_mode()
def prepare_pack(
    manifest: Manifest,
    link: Link,
    pack: MaskPack,
    scheme: Scheme,
    on_progress: OnProgress | None = None,
) -> None:
    """Run the offline phase for all groups of a pack that are not done yet; safe to interrupt and call again.

    A group that was interrupted is sent again with identical bytes, because everything hangs on the pack's seed.
    """
    groups = [group.parameters(manifest.profile) for group in manifest.groups]
    traffic = [sum(group_traffic(parameters)) for parameters in groups]
    state = link.run(lambda connection: connection.request(wire.OpenPack(pack.id), wire.PackState))
    if state.mark:
        raise UnusablePack("The server has answered for this pack before it was prepared; another one is needed.")
    secret = scheme.client(pack.seed, groups[0].ring_degree)

    def prepare_group(index: int, connection: LayerConnection) -> None:
        done = sum(traffic[:index])
        for moved in _exchange_group(connection, pack, index, groups[index], secret):
            done += moved
            if on_progress:
                on_progress(Progress(manifest.groups[index].name, done, sum(traffic)))

    for index in range(pack.groups_done, len(groups)):
        link.run(partial(prepare_group, index))
    pack.finish()


def _exchange_group(
    connection: LayerConnection, pack: MaskPack, group: int, parameters: Parameters, secret: ClientHalf
) -> Iterator[int]:
    """One group's offline request and answer; yields the bytes of every payload that crossed the wire."""
    if connection.server_seed.hex() != pack.facts.server_seed:
        # Going on under another p1 would show the server two public keys of one secret.
        raise ServerChanged("This pack was begun with another server; open the client again to make a new one.")
    nonce = bytes.fromhex(pack.facts.client_nonce)
    p0 = secret.public_key(wire.p1_seed(connection.server_seed, nonce, pack.id), parameters)
    begin = wire.OfflineBegin(pack.id, group, nonce, secret.public_seed(group), p0.numpy().tobytes())
    connection.send(begin)
    yield len(begin.public_key)
    yield from _send_masks(connection, pack, group, parameters, secret)
    values = torch.empty(parameters.rows, parameters.tokens, dtype=torch.int32)
    yield from _receive_values(connection, parameters, secret, values)
    pack.write_group(group, values.t().contiguous().numpy())


def _send_masks(
    connection: LayerConnection, pack: MaskPack, group: int, parameters: Parameters, secret: ClientHalf
) -> Iterator[int]:
    masks = torch.from_numpy(pack.group_masks(group)).t().contiguous()
    chunk_rows = max(1, CHUNK_BYTES // (parameters.planes * parameters.tokens * FRAME_ROWS)) * FRAME_ROWS
    for start in range(0, parameters.columns, chunk_rows):
        words = secret.encrypt_rows(masks[start : start + chunk_rows], parameters, group, start)
        for offset in range(0, len(words), FRAME_ROWS):
            payload = wire.payload(words[offset : offset + FRAME_ROWS].numpy())
            connection.send(wire.OfflineRows(start + offset, payload))
            yield len(payload)


def _receive_values(
    connection: LayerConnection, parameters: Parameters, secret: ClientHalf, values: Tensor
) -> Iterator[int]:
    """Fill `values`, int32 (rows, tokens), with what the server's answer decrypts to."""
    received = decrypted = 0
    waiting: list[tuple[Tensor, Tensor]] = []
    while decrypted < parameters.rows:
        block = connection.receive(wire.OfflineBlock)
        waiting.append(_block_arrays(block, received, parameters))
        received += waiting[-1][0].shape[1]
        if received == parameters.rows or sum(high.nbytes for high, _ in waiting) >= CHUNK_BYTES:
            for high, low in waiting:
                values[decrypted : decrypted + high.shape[1]] = secret.decrypt_rows(high, low)
                decrypted += high.shape[1]
            waiting.clear()
        yield len(block.high) + len(block.low)


def _block_arrays(block: wire.OfflineBlock, received: int, parameters: Parameters) -> tuple[Tensor, Tensor]:
    """The kept bits in a block that must continue at row `received`: int32 and uint8 (2, rows, N)."""
    rows, rest = divmod(len(block.low), 2 * parameters.tokens)
    if rest or not rows or block.first_row != received or received + rows > parameters.rows:
        raise WrongShape("The server's offline answer does not have this layer group's shape; use a matching server.")
    wire.require_bytes(block.high, 4 * len(block.low))
    shape = (2, rows, parameters.tokens)
    high = np.frombuffer(block.high, np.int32).reshape(shape)
    low = np.frombuffer(block.low, np.uint8).reshape(shape)
    return torch.from_numpy(high.copy()), torch.from_numpy(low.copy())
