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
def mapped_on(ray: str | None, otherwise: Mapped) -> Iterator[Mapped]:
    """Tasks of a cluster, if there is an address, else `otherwise`. ClusterUnavailable."""
    if ray is None:
        yield otherwise
        return
    set_before_ray(ray)
    from confide.cluster.mapping import on_ray, require_private
    from confide.cluster.ray_cluster import connected

    # Ray prints what it has to say of its own workers, which is no result.
    with connected(ray), redirect_stdout(sys.stderr):
        require_private()
        yield on_ray
