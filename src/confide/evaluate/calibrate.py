"""How fast this machine is, measured in some seconds: a real layer server, and a client, on made-up layers.

What is timed is the whole path that private models take: ledger, frames, loopback and all, and between two
processes, so that a change to any of it changes the rates. Rates come from four shapes, large and small each way.
"""

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import combinations
from pathlib import Path

import msgspec
import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from confide.errors import ServerFault
from confide.evaluate.cost_model import ClientRates, GroupRate, Rates, ServerRates
from confide.evaluate.load import Player, hello, record, replay
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.client.links import Links
from confide.hybrid.client.padding import NO_PADDING
from confide.hybrid.client.pads.pool import BLOCK_TOKENS, PadPool
from confide.hybrid.client.pads.source import lattice_pads
from confide.hybrid.client.product import CheckedGroup, RemoteProduct
from confide.models.protected import protect_group
from confide.packages.checks import CHECKS_NAME, checks_for, read_checks, write_checks
from confide.packages.entropy import row_entropy
from confide.packages.hint import Hint
from confide.packages.hint_writer import HintWriter, one_thread, place_hint
from confide.packages.manifest import FORMAT, MASK_TENSOR, Group, Layer, Manifest, ModelDigest, PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.server_package import ServerPackage, group_file, row_norms
from confide.packages.signing import open_package, sign_package
from confide.rlwe.online import GroupMatrix, matrix_product
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import PLANES, RING_DEGREE, Parameters, Profile
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets

SMALL, LARGE = 256, 1536
SHAPES = ((SMALL, SMALL), (SMALL, SMALL), (LARGE, SMALL), (SMALL, LARGE), (LARGE, LARGE))
"""(rows, columns) of the layers. The first one warms both processes up."""
TOKENS = 120
"""Lone tokens sent through every layer."""
PROMPTS = 7
PROMPT_TOKENS = 128
CROWD = 16
"""Clients that ask at once."""
CROWD_TOKENS = 8
CROWD_SETTLES = 0.3
"""Seconds in which the server has their work ahead done many times."""
BATCHES = (1, 4, CROWD, 64)
"""Tokens of all requests in one product of the server's."""
PRODUCTS = 5
LEAST_REQUEST = 10e-6
"""Seconds that a request takes beside its product, at least: a smaller difference of measured times is noise."""
LEAST_WAKEUPS = 1e-6
UNCACHED_MATRICES = 28
"""Of LARGE x LARGE int8, together 66 MB: see KEPT_WIDTH."""
KEPT_WIDTH = 4096
"""Inputs and outputs of the float layer: 64 MiB, more than most caches hold."""
KEPT_ROUNDS = 7


def calibrate() -> Rates:
    """Measure this machine. Takes some seconds, with 60 MB in a temporary folder and no network but loopback.

    Not for a thread that runs an event loop.
    Raises ServerFault where the layer server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="confide-calibration-") as folder, torch.inference_mode():
        client, server = _write_packages(Path(folder))
        package = ServerPackage.open(server)
        matrices = [GroupMatrix(stored.weights, stored.u) for stored in package.load()]
        with one_thread():
            pads, contributions = _ahead_seconds(client, package, matrices)
            products = [(tokens, _product_seconds(matrices, tokens)) for tokens in BATCHES]
        threads = _threads_speedup(matrices[-1])
        with _serving(server) as (url, pid), closing(_product(client, url)) as product:
            layers = _layers(package.manifest.groups, product)
            token, own_token, loop = _round_seconds(layers, 1, TOKENS, partial(_loop_seconds, pid))
            prompt, own_prompt, _ = _round_seconds(layers, PROMPT_TOKENS, PROMPTS, partial(_loop_seconds, pid))
            crowd = _crowd_seconds(package.manifest, url, partial(_loop_seconds, pid))
        uncached = _uncached_seconds()
        kept_token, kept_prompt_token = _kept_seconds(1), _kept_seconds(PROMPT_TOKENS)
    beside = np.subtract(np.subtract(token, own_token), products[0][1])
    request = np.maximum(np.subtract(loop, products[0][1]) if any(loop) else beside, LEAST_REQUEST)
    if crowd:  # it costs less where many come at once: there are fewer wake-ups, and caches are warm
        share = statistics.fmean(dict(products)[CROWD]) / CROWD
        request *= min(1.0, max(LEAST_REQUEST, crowd - share) / float(request.mean()))
    return Rates(
        ahead=fit(SHAPES[1:], np.add(pads, contributions)),
        token=fit(SHAPES[1:], token),
        prompt_token=fit(SHAPES[1:], np.divide(prompt, PROMPT_TOKENS)),
        uncached=uncached,
        kept_token=kept_token,
        kept_prompt_token=kept_prompt_token,
        server=ServerRates(
            request=fit(SHAPES[1:], request),
            wakeups=fit(SHAPES[1:], np.maximum(beside - request, LEAST_WAKEUPS)),
            products=tuple((tokens, fit(SHAPES[1:], seconds)) for tokens, seconds in products),
            threads=threads,
        ),
        client=ClientRates(
            token=fit(SHAPES[1:], own_token),
            prompt_token=fit(SHAPES[1:], np.divide(own_prompt, PROMPT_TOKENS)),
            pads=fit(SHAPES[1:], pads),
        ),
    )


def fit(shapes: Sequence[tuple[int, int]], seconds: ArrayLike) -> GroupRate:
    """The rate nearest to what was measured for (rows, columns), in relative terms, with nothing below zero.

    Non-negative least squares, by trying every choice of terms: there are four, and only fifteen choices.
    """
    terms = np.array([[1, rows, columns, rows * columns] for rows, columns in shapes], float)
    relative = terms / np.asarray(seconds, float)[:, None]
    best, least = np.zeros(4), np.inf
    for count in range(1, 5):
        for chosen in map(list, combinations(range(4), count)):
            found = np.linalg.lstsq(relative[:, chosen], np.ones(len(shapes)), rcond=None)[0]
            error = float(np.square(relative[:, chosen] @ found - 1).sum())
            if (found >= 0).all() and error < least:
                best, least = np.zeros(4), error
                best[chosen] = found
    return GroupRate(*best.tolist())


def _write_packages(folder: Path) -> tuple[Path, Path]:
    """Both halves of a model that is nothing but layers of random weights."""
    client, server, owner = folder / "client", folder / "server", OwnerKey.generate()
    client.mkdir()
    server.mkdir()
    digest = ModelDigest()
    groups, matrices = [], []
    for index, (rows, columns) in enumerate(SHAPES):
        weights = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        matrices.append(weights)
        name = f"layer-{index}"
        digest.add(name, rows, columns, weights.numpy().data)
        chosen = Parameters.derive(Profile.PRIVATE_WEIGHTS, row_norms(weights), rows=rows, columns=columns)
        entropy = row_entropy(weights.numpy())
        groups.append(
            Group(name, (Layer(name, rows),), columns, chosen.activation_bits, chosen.plaintext_bits, entropy)
        )
    manifest = Manifest(
        FORMAT, PackageKind.SERVER, Profile.PRIVATE_WEIGHTS, "calibration", digest.hexdigest(), tuple(groups), {}
    )
    writer = HintWriter(manifest, owner)
    for index, weights in enumerate(matrices):
        save_file({f"layer-{index}": weights, MASK_TENSOR: writer.u(index, weights)}, group_file(server, index))
    made, digests = writer.make(matrices.__getitem__, folder)
    place_hint(made, client)
    manifest = msgspec.structs.replace(manifest, hint=digests)
    sign_package(server, manifest, owner)
    sign_package(client, manifest.for_shell(), owner)
    write_checks(client / CHECKS_NAME, checks_for(ServerPackage.open(server)), owner)
    return client, server


def _ahead_seconds(
    client: Path, package: ServerPackage, matrices: Sequence[GroupMatrix]
) -> tuple[list[float], list[float]]:
    """Seconds of the work ahead of one token for each layer but the first: the client's, and the server's."""
    manifest = package.manifest
    hint = Hint.open(client, manifest)
    secrets = TokenSecrets(PublicSeed(bytes.fromhex(manifest.model_digest), manifest.epoch), BLOCK_TOKENS)
    pads, contributions = [], []
    for index, (group, matrix) in enumerate(zip(manifest.groups, matrices, strict=True)):
        parameters = group.parameters(manifest.profile)
        started = time.perf_counter()
        secrets.pads(index, parameters)
        secrets.values(hint.rows(index), parameters)
        made = time.perf_counter()
        matrix.ahead(secrets.p0)
        pads.append((made - started) / BLOCK_TOKENS)
        contributions.append((time.perf_counter() - made) / BLOCK_TOKENS)
    return pads[1:], contributions[1:]


def _product_seconds(matrices: Sequence[GroupMatrix], tokens: int) -> list[float]:
    """Median seconds of the server's product of so many tokens, for each layer but the first."""
    calls = [
        partial(matrix.answer, _digits(PLANES, tokens, columns), matrix.ahead(_digits(tokens, PLANES, RING_DEGREE)))
        for matrix, (_, columns) in zip(matrices, SHAPES, strict=True)
    ]
    times = [[_seconds(call) for call in calls] for _ in range(PRODUCTS)]
    return [statistics.median(column) for column in zip(*times, strict=True)][1:]


def _threads_speedup(matrix: GroupMatrix) -> float:
    """By how much torch's threads together are faster than one with the largest product, and at least 1."""
    planes, keys = _digits(PLANES, BATCHES[-1], LARGE), matrix.ahead(_digits(BATCHES[-1], PLANES, RING_DEGREE))
    together = statistics.median(_seconds(partial(matrix.answer, planes, keys)) for _ in range(PRODUCTS))
    with one_thread():
        alone = statistics.median(_seconds(partial(matrix.answer, planes, keys)) for _ in range(PRODUCTS))
    return max(1.0, alone / together)


def _digits(*shape: int) -> NDArray[np.int8]:
    return np.random.default_rng(0).integers(-128, 128, shape, dtype=np.int8)


def _product(client: Path, url: str) -> RemoteProduct:
    """The products of these layers on a server, as a private model asks for them."""
    signed = open_package(client, PackageKind.SHELL)
    manifest = signed.manifest
    parameters = [group.parameters(manifest.profile) for group in manifest.groups]
    checks = read_checks(client / CHECKS_NAME, manifest, signed.release.owner).answer_checks(manifest.groups)
    pool = PadPool(lattice_pads(manifest, Hint.open(client, manifest).rows, parameters), parameters)
    links = Links([Dial(url)], len(manifest.groups), lambda dial: LayerConnection(dial, signed.release), pool.drop)
    groups = list(map(CheckedGroup, manifest.groups, parameters, checks))
    return RemoteProduct(links, pool, groups, NO_PADDING, lambda *_: None)


@contextmanager
def _serving(package: Path) -> Iterator[tuple[str, int]]:
    """A layer server in a process of its own, as in earnest; yields its address, and the process's number."""
    arguments = ["serve", str(package), "--port", "0", "--insecure-no-licences", "--json"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "confide", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        announcement = process.stdout.readline() if process.stdout else ""
        if not announcement.startswith('{"url"'):
            raise ServerFault("The layer server to measure did not start; run `confide serve` by hand to see why.")
        yield json.loads(announcement)["url"], process.pid
    finally:
        process.terminate()
        process.wait()


def _layers(groups: Sequence[Group], product: RemoteProduct) -> list[nn.Module]:
    """The layers as a private model has them."""
    model = nn.ModuleDict({group.name: nn.Linear(group.columns, group.rows) for group in groups})
    for index, group in enumerate(groups):
        protect_group(model, index, [group], product)
        model[group.name].get_buffer("weight_scale").fill_(1)
    return list(model.values())


def _round_seconds(
    layers: Sequence[nn.Module], tokens: int, rounds: int, loop_seconds: Callable[[], float]
) -> tuple[list[float], list[float], list[float]]:
    """Median seconds for each layer but the first, for so many tokens at once.

    And what of them this thread worked, and the server's event loop. Layer after layer, as in a model, so that each
    finds the caches as others have left them.
    """
    inputs = [torch.randn(tokens, columns) for _, columns in SHAPES]
    calls = [partial(layer, x) for layer, x in zip(layers, inputs, strict=True)]
    times = [[_worked(call, loop_seconds) for call in calls] for _ in range(rounds)]
    whole, own, loop = np.median(np.array(times), axis=0).T[:, 1:].tolist()
    return whole, own, loop


def _crowd_seconds(manifest: Manifest, url: str, loop_seconds: Callable[[], float]) -> float:
    """Mean seconds of the server's event loop for one request of many clients, product and all.

    Each asks for one layer after the other. Zero where the system does not say what a thread worked.
    """
    recording = record(manifest, CROWD_TOKENS)
    players = [(url, Player(recording, hello(manifest, ""))) for _ in range(CROWD)]
    began: list[float] = []
    load = asyncio.run(replay(players, settle=CROWD_SETTLES, on_begin=lambda: began.append(loop_seconds())))
    return (loop_seconds() - began[0]) / len(load.latencies)


def _uncached_seconds() -> float:
    """How much longer a weight takes in the product of one token, in seconds, if many matrices take turns, not two."""
    with one_thread():
        ones = torch.ones(UNCACHED_MATRICES, LARGE, LARGE, dtype=torch.int8)
        matrices = [PackedMatrix.where_faster(matrix) for matrix in ones]
        few, many = (_turns_seconds(matrices[:count], 2 * UNCACHED_MATRICES) for count in (2, UNCACHED_MATRICES))
    return max(0.0, many - few) / LARGE**2


def _turns_seconds(matrices: Sequence[Tensor | PackedMatrix], turns: int) -> float:
    """Median seconds of one token's product, where matrices of LARGE columns take turns."""
    x = torch.ones(1, LARGE, dtype=torch.int32)
    times = [_seconds(partial(matrix_product, matrices[turn % len(matrices)], x)) for turn in range(turns)]
    return statistics.median(times[len(matrices) :])


def _kept_seconds(tokens: int) -> float:
    """Median seconds a weight and token of a float32 layer."""
    weights = torch.randn(KEPT_WIDTH, KEPT_WIDTH)
    x = torch.randn(tokens, KEPT_WIDTH)
    times = [_seconds(partial(nn.functional.linear, x, weights)) for _ in range(KEPT_ROUNDS)]
    return statistics.median(times) / (tokens * weights.numel())


def _seconds(call: Callable[[], object]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started


def _worked(call: Callable[[], object], loop_seconds: Callable[[], float]) -> tuple[float, float, float]:
    """Seconds that a call took, of this thread's own work in it, and of the server's event loop's."""
    loop, began = loop_seconds(), time.thread_time()
    took, own = _seconds(call), time.thread_time() - began
    return took, own, loop_seconds() - loop


def _loop_seconds(pid: int) -> float:
    """What a process's first thread has worked, as Linux says it in proc(5), schedstat; zero on other systems."""
    try:
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) * 1e-9
    except OSError:
        return 0.0
