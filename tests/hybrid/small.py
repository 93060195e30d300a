"""A tiny model that is nothing but layer groups, and a running server for it: what protocol tests need."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import torch
import uvicorn
from torch import Tensor

from confide.hybrid import wire
from confide.hybrid.client import HybridClient
from confide.hybrid.connection import LayerConnection
from confide.hybrid.ledger import Ledger
from confide.hybrid.server import create_app, server_config
from confide.hybrid.service import LayerService, Observer
from confide.models.checks import CHECKS_NAME, checks_for, write_checks
from confide.models.package import Group, Layer, Manifest, ModelDigest, PackageKind, write_manifest
from confide.models.server_package import ServerPackage, group_file, row_norms
from confide.rlwe.parameters import Parameters, Profile
from confide.rlwe.scheme import Scheme

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
    return Manifest(1, kind, profile, "small", digest.hexdigest(), tuple(groups))


def write_packages(folder: Path, profile: Profile = Profile.PRIVATE_WEIGHTS) -> tuple[Path, Path]:
    """A client and a server folder; the client has no model in it, only the layer table."""
    from safetensors.torch import save_file

    weights = small_weights()
    client, server = folder / "client", folder / "server"
    for path, kind in ((client, PackageKind.SHELL), (server, PackageKind.SERVER)):
        path.mkdir(parents=True)
        write_manifest(path, manifest_for(weights, kind, profile))
    for index, matrix in enumerate(weights):
        parts = matrix.split([len(matrix) - 2, 2])
        save_file(
            {f"g{index}.{name}": part.clone() for name, part in zip("ab", parts, strict=True)},
            group_file(server, index),
        )
    write_checks(client / CHECKS_NAME, checks_for(ServerPackage.open(server)))
    return client, server


def small_service(
    state: Path,
    scheme: Scheme = TWIN,
    observer: Observer | None = None,
    profile: Profile = Profile.PRIVATE_WEIGHTS,
) -> LayerService:
    weights = small_weights()
    manifest = manifest_for(weights, PackageKind.SERVER, profile)
    return LayerService(manifest, weights, Ledger(state), scheme, observer)


@contextmanager
def running(service: LayerService) -> Iterator[str]:
    """Serve in a thread; yields the address."""
    with closing(socket.socket()) as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        server = uvicorn.Server(server_config(create_app(service), "127.0.0.1", 0))
        thread = threading.Thread(target=lambda: asyncio.run(server.serve([listener])))
        thread.start()
        try:
            yield f"ws://127.0.0.1:{listener.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def connect(url: str, service: LayerService) -> LayerConnection:
    return LayerConnection(
        url, scheme=service.scheme.name, model_digest=service.model_digest, table_digest=service.table_digest
    )


def twin_client(folder: Path, url: str, **options: object) -> HybridClient:
    return HybridClient(folder, url, scheme=TWIN, **options)  # type: ignore[arg-type]


def exact(weights: Tensor, x: Tensor) -> Tensor:
    return (x.double() @ weights.double().t()).to(torch.int32)


def activations(parameters: Parameters, tokens: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    bound = parameters.max_activation
    return torch.randint(-bound, bound + 1, (tokens, parameters.columns), generator=generator, dtype=torch.int32)


def online(pack: bytes, group: int, first: int, count: int, masked: bytes) -> wire.Online:
    return wire.Online(pack, group, first, count, memoryview(masked))
