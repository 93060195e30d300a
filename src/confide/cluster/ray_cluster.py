"""The controller and its replicas as actors of a Ray cluster, and this process as one that asks them.

Ray's core alone: Ray Serve's replicas listen on every address of their machine, wherever Ray itself does not.
"""

import asyncio
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Final

import msgspec

from confide.cluster.configuration import Server
from confide.cluster.controller import STEP_SECONDS, Controller
from confide.cluster.server_process import ServerProcess
from confide.errors import ClusterUnavailable
from confide.extras import named_extras

with named_extras():
    import ray

NAMESPACE: Final = "confide"
_CONTROLLER: Final = "confide-controller"
_OBJECTS_BYTES: Final = 128 << 20
"""Of memory that Ray sets aside; what it carries here is small."""
_STOP_SECONDS: Final = 120.0
_ASK_SECONDS: Final = 60.0

_log = logging.getLogger(__name__)


class _Place:
    """On the machine that a replica is on. An actor, which has its own process there."""

    def __init__(self, server: dict[str, Any]) -> None:
        self._server = msgspec.convert(server, Server)
        self._process: ServerProcess | None = None

    def start(self) -> str:
        """Its address."""
        server, node = self._server, ray.util.get_node_ip_address()
        self._process = ServerProcess(server.serve, address=node, seconds=server.start_seconds)
        return self._process.url

    def look(self) -> float:
        """Its load. MachineError where it is not well."""
        assert self._process is not None  # noqa: S101 - it was started
        self._process.require_healthy()
        return self._process.load()

    def stop(self) -> None:
        """End it."""
        if self._process is not None:
            self._process.stop()


class _RayReplica:
    """One such place, for the controller."""

    def __init__(self, server: Server) -> None:
        resources: dict[str, Any] = {"num_cpus": server.cpus}
        if server.memory_gib:
            resources["memory"] = int(server.memory_gib * 2**30)
        self._place = ray.remote(_Place).options(max_concurrency=2, **resources).remote(msgspec.to_builtins(server))

    async def start(self) -> str:
        url: str = await self._place.start.remote()
        return url

    async def look(self) -> float:
        load: float = await self._place.look.remote()
        return load

    async def stop(self) -> None:
        try:
            await asyncio.wait_for(self._place.stop.remote(), _STOP_SECONDS)
        except Exception as error:  # noqa: BLE001 - it is gone already, or will be
            _log.info("A server did not end by itself (%s).", type(error).__name__)
        ray.kill(self._place)  # and with it the process


class _Control:
    """The controller as an actor; it goes on when whoever started it has ended."""

    def __init__(self) -> None:
        self._controller = Controller(_RayReplica)
        self._steps = asyncio.get_running_loop().create_task(self._keep_stepping())

    async def _keep_stepping(self) -> None:
        while True:
            try:
                await self._controller.step()
            except Exception as error:  # noqa: BLE001 - the next step tries again
                _log.warning("A step of the cluster's controller failed (%s).", type(error).__name__)
            await asyncio.sleep(STEP_SECONDS)

    async def want(self, servers: list[dict[str, Any]]) -> None:
        """See `Controller`."""
        self._controller.want(msgspec.convert(server, Server) for server in servers)

    async def shown(self) -> dict[str, Any]:
        """What runs, and how each server is."""
        return {"states": self._controller.states(), "running": self._controller.running()}

    async def stop(self) -> list[str]:
        """End all of them; their names."""
        names = list(self._controller.states())
        self._steps.cancel()
        await self._controller.stop()
        return names


@contextmanager
def connected(address: str | None) -> Iterator[str]:
    """This process in a Ray cluster, and its address. address: `auto` for one on this machine; None starts one.

    What is started lasts as long as this process; `ray_settings` say on which addresses it listens. ClusterUnavailable.
    """
    options: dict[str, Any] = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": "ERROR"}
    try:
        if address is None:
            ray.init(include_dashboard=False, object_store_memory=_OBJECTS_BYTES, **options)
        else:
            ray.init(address=address, **options)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterUnavailable(
            "There is no Ray cluster there; start one with `ray start --head`, give its address with --ray, or leave "
            "--ray out of `confide cluster up` for one on this machine."
        ) from error
    try:
        yield ray.get_runtime_context().gcs_address
    finally:
        ray.shutdown()


def want(servers: Sequence[Server]) -> None:
    """Have these run, and no others of ours, from now on. What changed is replaced one by one. ClusterUnavailable."""
    control = ray.remote(_Control).options(
        name=_CONTROLLER, lifetime="detached", get_if_exists=True, num_cpus=0, max_restarts=0
    )
    _asked(control.remote().want.remote([msgspec.to_builtins(server) for server in servers]))


def shown() -> dict[str, Any]:
    """What runs, and how each server is. ClusterUnavailable where nothing is up."""
    said: dict[str, Any] = _asked(_control().shown.remote())
    return said


def take_down() -> list[str]:
    """End all servers, once their answers have ended; their names. ClusterUnavailable where nothing is up."""
    control = _control()
    names: list[str] = _asked(control.stop.remote(), 2 * _STOP_SECONDS)
    ray.kill(control)
    return names


def _control() -> Any:
    try:
        return ray.get_actor(_CONTROLLER, namespace=NAMESPACE)
    except ValueError:
        raise ClusterUnavailable("No servers of Confide are up in this cluster; run `confide cluster up`.") from None


def _asked(answer: Any, seconds: float = _ASK_SECONDS) -> Any:
    try:
        return ray.get(answer, timeout=seconds)
    except ray.exceptions.RayError as error:
        raise ClusterUnavailable(
            f"The cluster's controller does not answer ({type(error).__name__}); see Ray's logs, and run `confide "
            "cluster up` again."
        ) from error
