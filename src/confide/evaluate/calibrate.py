"""How fast this machine is, measured in about five seconds: a real layer server, and a client, on made-up layers.

What is timed is the whole path that private models take: ledger, frames, loopback, disk and all, and between two
processes, so that a change to any of it changes the rates. Rates come from four shapes, large and small each way.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from confide.errors import ServerFault
from confide.evaluate.cost_model import GroupRate, Rates
from confide.hybrid.client.client import HybridClient
from confide.hybrid.client.prepare import Progress
from confide.hybrid.client.product import RemoteProduct
from confide.models.protected import protect_group
from confide.packages.checks import CHECKS_NAME, checks_for, write_checks
from confide.packages.manifest import FORMAT, Group, Layer, Manifest, ModelDigest, PackageKind
from confide.packages.owner import OwnerKey
from confide.packages.server_package import ServerPackage, group_file, row_norms
from confide.packages.signing import seal_package
from confide.rlwe.online import matrix_product
from confide.rlwe.packed import PackedMatrix
from confide.rlwe.parameters import Parameters, Profile

SMALL, LARGE = 256, 1536
SHAPES = ((SMALL, SMALL), (SMALL, SMALL), (LARGE, SMALL), (SMALL, LARGE), (LARGE, LARGE))
"""(rows, columns) of the layers. The first one warms both processes up, and takes the masks for all of them: what it
takes longer than the second one is the price of that."""
TOKENS = 120
"""Lone tokens sent through every layer."""
PROMPTS = 7
PROMPT_TOKENS = 128
UNCACHED_MATRICES = 28
"""Of LARGE x LARGE int8, together 66 MB: see KEPT_WIDTH."""
KEPT_WIDTH = 4096
"""Inputs and outputs of the float layer: 64 MiB, more than most caches hold."""
KEPT_ROUNDS = 7


def calibrate() -> Rates:
    """Measure this machine. Takes about five seconds, with 16 MB in a temporary folder and no network but loopback.

    Raises ServerFault where the layer server does not start.
    """
    with tempfile.TemporaryDirectory(prefix="confide-calibration-") as folder, torch.inference_mode():
        client, server, owner = _write_packages(Path(folder))
        with _serving(server) as url, HybridClient(client, url, owner=owner.public.raw) as opened:
            pack = _pack_seconds(opened)
            with closing(opened.product()) as product:
                layers = _layers(opened.manifest.groups, product)
                _, *token = _round_seconds(layers, 1, TOKENS)
                first, *prompt = _round_seconds(layers, PROMPT_TOKENS, PROMPTS)
        uncached = _uncached_seconds()
        kept_token, kept_prompt_token = _kept_seconds(1), _kept_seconds(PROMPT_TOKENS)
    return Rates(
        pack=fit(SHAPES[1:], pack),
        token=fit(SHAPES[1:], token),
        prompt_token=fit(SHAPES[1:], [seconds / PROMPT_TOKENS for seconds in prompt]),
        uncached=uncached,
        masks=max(0.0, first - prompt[0]),
        kept_token=kept_token,
        kept_prompt_token=kept_prompt_token,
    )


def fit(shapes: Sequence[tuple[int, int]], seconds: Sequence[float]) -> GroupRate:
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


def _write_packages(folder: Path) -> tuple[Path, Path, OwnerKey]:
    """Both halves of a model that is nothing but layers of random weights, and who signed them."""
    client, server, owner = folder / "client", folder / "server", OwnerKey.generate()
    client.mkdir()
    server.mkdir()
    digest = ModelDigest()
    groups = []
    for index, (rows, columns) in enumerate(SHAPES):
        weights = torch.randint(-127, 128, (rows, columns), dtype=torch.int8)
        name = f"layer-{index}"
        digest.add(name, rows, columns, weights.numpy().data)
        save_file({name: weights}, group_file(server, index))
        l1, l2 = row_norms(weights)
        bits = Parameters.derive(
            Profile.PRIVATE_WEIGHTS, rows=rows, columns=columns, row_l1=l1, row_l2=l2
        ).activation_bits
        groups.append(Group(name, (Layer(name, rows),), columns, bits, l1, l2))
    manifest = Manifest(
        FORMAT, PackageKind.SERVER, Profile.PRIVATE_WEIGHTS, "calibration", digest.hexdigest(), tuple(groups), {}
    )
    seal_package(server, manifest, owner)
    seal_package(client, manifest.for_shell(), owner)
    write_checks(client / CHECKS_NAME, checks_for(ServerPackage.open(server)))
    return client, server, owner


@contextmanager
def _serving(package: Path) -> Iterator[str]:
    """A layer server in a process of its own, as in earnest; yields its address."""
    arguments = ["serve", str(package), "--port", "0", "--insecure-no-licences", "--json"]
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "confide", *arguments], stdout=subprocess.PIPE, text=True
    )
    try:
        announcement = process.stdout.readline() if process.stdout else ""
        if not announcement.startswith('{"url"'):
            raise ServerFault("The layer server to measure did not start; run `confide serve` by hand to see why.")
        yield json.loads(announcement)["url"]
    finally:
        process.terminate()
        process.wait()


def _pack_seconds(client: HybridClient) -> list[float]:
    """Seconds of a pack's offline phase for each layer but the first."""
    began: dict[str, float] = {}

    def note(progress: Progress) -> None:
        began.setdefault(progress.group, time.perf_counter())

    client.prepare(1, note)
    starts = [*began.values(), time.perf_counter()][1:]
    return [end - start for start, end in pairwise(starts)]


def _layers(groups: Sequence[Group], product: RemoteProduct) -> list[nn.Module]:
    """The layers as a private model has them."""
    model = nn.ModuleDict({group.name: nn.Linear(group.columns, group.rows) for group in groups})
    for index, group in enumerate(groups):
        protect_group(model, index, group, product)
        model[group.name].get_buffer("weight_scale").fill_(1)
    return list(model.values())


def _round_seconds(layers: Sequence[nn.Module], tokens: int, rounds: int) -> list[float]:
    """Median seconds for each layer, for so many tokens at once.

    Layer after layer, as in a model, so that each finds the caches as others have left them.
    """
    inputs = [torch.randn(tokens, columns) for _, columns in SHAPES]
    times = [[_seconds(partial(layer, x)) for layer, x in zip(layers, inputs, strict=True)] for _ in range(rounds)]
    return [statistics.median(column) for column in zip(*times, strict=True)]


def _uncached_seconds() -> float:
    """How much longer a weight takes in the product of one token, in seconds, if many matrices take turns, not two."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the server does for short answers
    try:
        ones = torch.ones(UNCACHED_MATRICES, LARGE, LARGE, dtype=torch.int8)
        matrices = [PackedMatrix.where_faster(matrix) for matrix in ones]
        few, many = (_turns_seconds(matrices[:count], 2 * UNCACHED_MATRICES) for count in (2, UNCACHED_MATRICES))
    finally:
        torch.set_num_threads(threads)
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


def _seconds(call: Callable[[], Tensor]) -> float:
    started = time.perf_counter()
    call()
    return time.perf_counter() - started
