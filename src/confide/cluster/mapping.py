"""A `Mapped` by Ray tasks: the same work for many things, on as many machines as the cluster has.

What tasks are given is an owner's: weights, keys of hints, documents in the clear. So it leaves this machine only over
connections that Ray encrypts.
"""

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
from numpy.typing import NDArray

from confide.errors import ClusterUnavailable, ConfideError
from confide.extras import named_extras

with named_extras():
    import ray

T = TypeVar("T")
R = TypeVar("R")
_RETRIES: Final = 2
"""Of a task whose machine was lost."""


def on_ray(work: Callable[[T], R], items: Iterable[T], /) -> Iterator[R]:
    """As `Mapped`, with this process in a Ray cluster: a task for each item, as many at once as there are cores.

    ClusterUnavailable where a task fails for another reason than that the work does not go.
    """
    apply = ray.remote(_apply).options(num_cpus=1, max_retries=_RETRIES)
    given = ray.put(work)
    at_once = 1 + int(ray.cluster_resources().get("CPU", 1))
    running: deque[Any] = deque()
    try:
        for item in items:
            if len(running) >= at_once:
                yield _result(running.popleft())
            running.append(apply.remote(given, item))
        while running:
            yield _result(running.popleft())
    finally:
        for task in running:
            ray.cancel(task, force=True)


def require_private() -> None:
    """ClusterUnavailable unless what tasks are given stays on this machine, or travels encrypted (RAY_USE_TLS)."""
    machines = [node for node in ray.nodes() if node["Alive"]]
    if len(machines) > 1 and os.environ.get("RAY_USE_TLS") != "1":
        raise ClusterUnavailable(
            f"The cluster has {len(machines)} machines, and Ray would send weights, keys and documents between them in "
            "the clear; set it up with TLS (RAY_USE_TLS=1, with certificates, on all of them and here), or leave --ray "
            "out."
        )


class EmbeddingBatches:
    """Gives vectors of batches of texts by tasks, which load the model of a folder at the same path everywhere."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder.resolve()

    def __call__(self, batches: Iterable[list[str]]) -> Iterator[NDArray[np.float32]]:
        """See `Embedder.of_documents`."""
        return on_ray(self._of_batch, batches)

    def _of_batch(self, texts: list[str]) -> NDArray[np.float32]:
        vectors: NDArray[np.float32] = _embedder(self._folder).of_batch(texts)
        return vectors


@cache
def _embedder(folder: Path) -> Any:
    """One for each process of the cluster."""
    from confide.models.encoders import Embedder

    return Embedder.load(folder)


def _apply(work: Callable[[T], R], item: T) -> R:
    return work(item)


def _result(task: Any) -> Any:
    try:
        return ray.get(task)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, ConfideError):
            raise error.cause from None
        raise _failed(type(error.cause).__name__) from error
    except ray.exceptions.RayError as error:
        raise _failed(type(error).__name__) from error


def _failed(reason: str) -> ClusterUnavailable:
    return ClusterUnavailable(
        f"A task of the cluster failed ({reason}). See that Confide is the same version on every machine and that the "
        "files it needs lie at the same paths, and run the command again: what it keeps is gone on with."
    )
