"""`--ray` of commands whose work can be tasks of a Ray cluster."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Annotated

import typer

from confide.cluster.ray_settings import set_before_ray
from confide.mapped import Mapped

OnRay = Annotated[
    str | None,
    typer.Option(
        "--ray",
        help="Work as tasks of this Ray cluster, auto for the one on this machine. Several machines need Ray's TLS: "
        "what tasks are given is in the clear for them.",
        metavar="ADDRESS",
    ),
]


@contextmanager
def on_cluster(ray: str) -> Iterator[None]:
    """This process in a Ray cluster. What Ray prints of its own workers is no result, and goes to standard error."""
    set_before_ray(ray)
    from confide.cluster.ray_cluster import connected

    with connected(ray), redirect_stdout(sys.stderr):
        yield


@contextmanager
def mapped_on(ray: str | None, otherwise: Mapped) -> Iterator[Mapped]:
    """Tasks of a cluster, if there is an address, else `otherwise`. ClusterUnavailable."""
    if ray is None:
        yield otherwise
        return
    with on_cluster(ray):
        from confide.cluster.mapping import on_ray, require_private

        require_private()
        yield on_ray
