"""A tiny model that is nothing but layer groups, and a running server for it: what protocol tests need."""

import asyncio
import queue
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from confide.hybrid.client.client import HybridClient
from confide.rlwe.scheme import Scheme
from torch import Tensor

from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.limits import Limits
from confide.hybrid.server.server import LayerServer
from confide.hybrid.server.service import LayerService, Observer
from confide.packages.checks import CHECKS_NAME, checks_for, write_checks
from confide.packages.manifest import FORMAT, Group, Layer, Manifest, ModelDigest, PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.server_package import ServerPackage, group_file, row_norms
from confide.packages.signing import SignedManifest, seal_package, sign_manifest
from confide.rlwe.parameters import Parameters, Profile
from owners import OWNER

from .twin import TWIN

SHAPES = [(12, 8), (5, 12)]
"""(rows, columns) of the groups; the first one has two layers."""


def small_weights() -> list[Tensor]:
    generator = torch.Generator().manual_seed(5)
    return [torch.randint(-127, 128, shape, dtype=torch.int8, generator=generator) for shape in SHAPES]


def manifest_for(weights: list[Tensor], kind: PackageKind, profile: Profile = Profile.PRIVATE_WEIGHTS) -> Manifest:
    digest = ModelDigest()
    groups = []
    for index, matrix in enumerate(weights):
        rows, columns = matrix.shape
        layers = [Layer(f"g{index}.a", rows - 2), Layer(f"g{index}.b", 2)]
        for layer, part in zip(layers, matrix.split([rows - 2, 2]), strict=True):
            digest.add(layer.name, layer.rows, columns, memoryview(part.numpy()))
        l1, l2 = row_norms(matrix)
        parameters = Parameters.derive(profile, rows=rows, columns=columns, row_l1=l1, row_l2=l2)
        group = Group(f"g{index}", tuple(layers), columns, parameters.activation_bits, l1, l2)
        groups.append(group if kind is PackageKind.SERVER else group.without_norms())
    return Manifest(FORMAT, kind, profile, "small", digest.hexdigest(), tuple(groups), {})


def write_packages(
    folder: Path, profile: Profile = Profile.PRIVATE_WEIGHTS, owner: OwnerKey = OWNER
) -> tuple[Path, Path]:
    """A client and a server folder; the client has no model in it, only the layer table."""
    from safetensors.torch import save_file

    weights = small_weights()
    client, server = folder / "client", folder / "server"
    client.mkdir(parents=True)
    server.mkdir()
    for index, matrix in enumerate(weights):
        parts = matrix.split([len(matrix) - 2, 2])
        save_file(
            {f"g{index}.{name}": part.clone() for name, part in zip("ab", parts, strict=True)},
            group_file(server, index),
        )
    for path, kind in ((client, PackageKind.SHELL), (server, PackageKind.SERVER)):
        seal_package(path, manifest_for(weights, kind, profile), owner)
    write_checks(client / CHECKS_NAME, checks_for(ServerPackage.open(server)))
    return client, server


def small_service(
    state: Path,
    scheme: Scheme = TWIN,
    observer: Observer | None = None,
    profile: Profile = Profile.PRIVATE_WEIGHTS,
    *,
    owner: OwnerKey = OWNER,
    insecure_no_licences: bool = True,
) -> LayerService:
    weights = small_weights()
    manifest = manifest_for(weights, PackageKind.SERVER, profile)
    signed = SignedManifest(manifest, sign_manifest(b"in memory", manifest, owner))
    ledger = Ledger(state)
    return LayerService(signed, weights, ledger, scheme, observer, insecure_no_licences=insecure_no_licences)


@dataclass(frozen=True)
class Served:
    """A server that runs in a thread. stop: what SIGTERM does; it goes on draining after that."""

    url: str
    server: LayerServer
    stop: Callable[[], object]


@contextmanager
def serving(
    service: LayerService,
    limits: Limits | None = None,
    port: int = 0,
    tls: ssl.SSLContext | None = None,
    metrics_port: int | None = None,
) -> Iterator[Served]:
    """Serve in a thread."""
    ready: queue.Queue[Served | BaseException] = queue.Queue()
    stopping: list[Callable[[], object]] = []

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        stopping.append(lambda: loop.call_soon_threadsafe(stop.set))
        try:
            server = LayerServer(service, limits)
            async with server.listening("127.0.0.1", port, tls=tls, metrics_port=metrics_port) as url:
                ready.put(Served(url, server, stopping[0]))
                await stop.wait()
        except BaseException as error:
            ready.put(error)
            raise

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    try:
        served = ready.get(timeout=30)
        if isinstance(served, BaseException):
            raise served
        yield served
    finally:
        with suppress(RuntimeError):  # stopped already
            stopping[0]()
        thread.join()


@contextmanager
def running(
    service: LayerService, limits: Limits | None = None, port: int = 0, tls: ssl.SSLContext | None = None
) -> Iterator[str]:
    """The same; yields the address."""
    with serving(service, limits, port, tls) as served:
        yield served.url


def connect(url: str, service: LayerService, **options: Any) -> LayerConnection:
    return LayerConnection(url, scheme=service.scheme.name, release=service.release, **options)


def twin_client(folder: Path, url: str, **options: object) -> HybridClient:
    return HybridClient(folder, url, scheme=TWIN, **{"owner": OWNER.public.raw} | options)  # type: ignore[arg-type]


def exact(weights: Tensor, x: Tensor) -> Tensor:
    return (x.double() @ weights.double().t()).to(torch.int32)


def activations(parameters: Parameters, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bound = parameters.max_activation
    return torch.randint(-bound, bound + 1, (tokens, parameters.columns), generator=generator, dtype=torch.int32)


def online(pack: bytes, group: int, first: int, count: int, masked: bytes) -> wire.Online:
    return wire.Online(pack, group, first, count, memoryview(masked))
