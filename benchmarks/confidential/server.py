"""One engine behind two ports: in the clear, and attested and sealed. Nothing else differs.

    python -m benchmarks.confidential.server PACKAGE KEYFILE SIMULATED_TEE

Prints where it serves as a line of JSON.
"""

import asyncio
import json
import socket
import sys
from functools import partial
from pathlib import Path

import uvloop

from confide.attest.simulated import SimulatedTee
from confide.cli.output import quiet_transformers
from confide.enclave.api.answer import Serving
from confide.enclave.api.app import api_app
from confide.enclave.api.public import public_app
from confide.enclave.api.server import Server, configuration
from confide.enclave.boot import load_engine
from confide.enclave.workload import Workload
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage


async def serve(package: Path, key: Path, tee_folder: Path) -> None:
    tee = SimulatedTee.open(tee_folder)
    workload = Workload(tee, tee.collateral)
    sealed = SealedPackage.open(package)
    engine = load_engine(sealed, workload, lambda *_: ModelKey.read(key), insecure_skip_self_test=True).engine
    serving = Serving(engine)
    apps = {"plain": api_app(serving), "sealed": public_app(workload, serving)}
    listeners = {name: socket.create_server(("127.0.0.1", 0), backlog=1024) for name in apps}
    urls = {name: f"http://127.0.0.1:{listener.getsockname()[1]}" for name, listener in listeners.items()}
    waiting = set(apps)

    def ready(name: str) -> None:
        waiting.discard(name)
        if not waiting:
            print(json.dumps(urls | {"model": engine.facts.model}), flush=True)

    servers = {name: Server(configuration(app, tls=None), partial(ready, name)) for name, app in apps.items()}
    running = [asyncio.create_task(server.serve([listeners[name]])) for name, server in servers.items()]
    await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)  # a signal reaches one of them
    for server in servers.values():
        server.should_exit = True
    await asyncio.gather(*running)


if __name__ == "__main__":
    quiet_transformers()
    uvloop.run(serve(*map(Path, sys.argv[1:])))
