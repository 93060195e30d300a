"""`confide doctor`: what works on this machine, what does not and why, and what to do about it."""

import importlib.util
import os
import platform
import shutil
import socket
import ssl
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final
from urllib.parse import urlsplit

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json
from confide.disk.home import home
from confide.errors import ConfideError
from confide.extras import EXTRAS
from confide.net.tls import client_context
from confide.printable import printable
from confide.version import VERSION


class State(StrEnum):
    """ok: it works. absent: it is not here, which is a fault only for those who want it. problem: it does not work."""

    OK = "ok"
    ABSENT = "absent"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """What was found of one thing, and what to do, which is empty where nothing need be done."""

    name: str
    state: State
    found: str
    todo: str = ""


ROLES: Final = {
    "hybrid": "split models, run them on layer servers, seal and quantize models",
    "proxy": "a local address and a page for models in trusted environments, release keys",
    "server": "serve layers, serve sealed models",
    "adapters": "merge LoRA adapters into models before they are split",
    "attention": "encrypted attention",
    "cluster": "servers on a Ray cluster, as many as there is work for",
    "deploy": "write, predict and check deployments",
    "evaluate": "plots of what is evaluated, plans of fleets",
    "gpu": "evidence of NVIDIA GPUs",
    "objects": "packages from object storage",
    "postgres": "one ledger for several layer servers, in PostgreSQL",
    "rag": "build, search and serve corpora of documents",
    "sigstore": "releases that a build service signed",
    "traces": "traces of requests to sealed models, for OpenTelemetry",
}
"""What each extra of the project is for."""
_LEAST_DISK: Final = 1 << 30
_LEAST_MEMORY: Final = 2 << 30
_SECONDS: Final = 10.0
_MARKS: Final = {State.OK: "[green]✓[/]", State.ABSENT: "[dim]–[/]", State.PROBLEM: "[bold red]✗[/]"}


def command(
    server: Annotated[
        str | None, typer.Option(help="Also see whether this address is reached, such as wss://layers.example:8470.")
    ] = None,
    ca: Annotated[Path | None, typer.Option(help="Authorities to trust there, instead of the system's.")] = None,
    measure: Annotated[
        bool, typer.Option("--measure", help="Also time what each costs, from products to evidence: seconds.")
    ] = False,
    json: Json = False,
) -> None:
    """Say what works on this machine, and what to install or change for the rest. Exits with 1 at a problem."""
    from confide.cli.doctor_machine import machine

    looked: list[Callable[[], Iterator[Finding]]] = [_installation, _processor, _memory, _home, _people, _environment]
    checks = [*looked, machine, *([_measured] if measure else [])]
    if server is not None:
        checks.append(lambda: _reached(server, ca))
    findings = [finding for check in checks for finding in check()]
    if json:
        output.result({"version": VERSION, "findings": [asdict(finding) for finding in findings]})
    else:
        width = max(len(finding.name) for finding in findings)
        output.console.print(f"[bold]Confide {VERSION}[/]")
        for finding in findings:
            name = escape(finding.name.ljust(width))
            output.console.print(f"{_MARKS[finding.state]} {name}  {escape(finding.found)}", soft_wrap=True)
            if finding.todo:
                output.console.print(f"  {' ' * width}  [dim]→ {escape(finding.todo)}[/]", soft_wrap=True)
    if any(finding.state is State.PROBLEM for finding in findings):
        raise typer.Exit(1)


def _installation() -> Iterator[Finding]:
    yield Finding("python", State.OK, f"{platform.python_version()} on {platform.system()} {platform.machine()}")
    yield Finding("client", State.OK, "chat with attested models, verify evidence")
    for extra, role in ROLES.items():
        missing = sorted(module for module, of in EXTRAS.items() if of == extra and not _is_installed(module))
        if missing:
            what = f"{', '.join(missing)} missing: {role}"
            yield Finding(extra, State.ABSENT, what, f"pip install 'confide[{extra}]'")
        else:
            yield Finding(extra, State.OK, role)


def _is_installed(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _processor() -> Iterator[Finding]:
    cores = len(os.sched_getaffinity(0))
    if not _is_installed("torch"):
        yield Finding("processor", State.OK, f"{cores} cores")
        return
    import torch

    from confide.rlwe.packed import chosen_kernel

    has = torch.cpu.get_capabilities()
    extensions = [name for name in ("avx2", "avx512_vnni", "amx_int8", "amx_tile") if has.get(name)]
    found = f"{cores} cores, {', '.join(extensions) or 'no AVX2'}; int8 by {chosen_kernel()}"
    fast = bool({"avx512_vnni", "amx_int8", "amx_tile"} & set(extensions))
    slow = "a server of layers is faster with AVX-512 VNNI or AMX"
    yield Finding("processor", State.OK, found, "" if fast else slow)


def _memory() -> Iterator[Finding]:
    from confide.enclave.engines.memory import available_bytes

    free = available_bytes()
    low = free < _LEAST_MEMORY
    todo = "close something, or raise the memory limit of this container" if low else ""
    yield Finding("memory", State.PROBLEM if low else State.OK, f"{output.megabytes(free)} available", todo)


def _home() -> Iterator[Finding]:
    folder = home()
    nearest = _nearest(folder)
    if not os.access(nearest, os.W_OK | os.X_OK):
        what = f"{folder} cannot be written"
        yield Finding("home", State.PROBLEM, what, "set CONFIDE_HOME to a folder of yours")
        return
    if folder.exists() and folder.stat().st_mode & 0o022:
        what = f"others may write to {folder}, and so decide which owners you trust"
        yield Finding("home", State.PROBLEM, what, f"chmod go-w {folder}")
        return
    free = shutil.disk_usage(nearest).free
    low = free < _LEAST_DISK
    todo = "make room: models and hints take gigabytes" if low else ""
    state = State.PROBLEM if low else State.OK
    yield Finding("home", state, f"{folder}, {output.megabytes(free)} free on its disk", todo)


def _people() -> Iterator[Finding]:
    from confide.packages.trusted_owners import trusted_owners

    try:
        trusted = len(trusted_owners())
    except ConfideError as error:
        yield Finding("owners", State.PROBLEM, str(error))
    else:
        todo = "" if trusted else "to run an owner's shells or sealed models: confide owner trust KEY"
        yield Finding("owners", State.OK if trusted else State.ABSENT, f"{trusted} trusted", todo)
    if not _is_installed("websockets"):
        return
    from confide.hybrid.client.refusals import RefusalList

    try:
        refused = RefusalList().entries()
    except ConfideError as error:
        yield Finding("servers", State.PROBLEM, str(error))
        return
    if refused:
        what = f"{len(refused)} refused because an answer was wrong"
        yield Finding("servers", State.PROBLEM, what, "confide distrust lists them")


def _environment() -> Iterator[Finding]:
    from confide.attest.reading.detect import detect

    detected = detect()
    for reader in detected.readers:
        yield Finding("tee", State.OK, f"{type(reader).__name__}: evidence can be had here")
    if not detected.readers:
        what = "no trusted execution environment: sealed models cannot be served here, only used from here"
        todo = "to try it out: confide tee simulate init DIR"
        yield Finding("tee", State.ABSENT, what, todo)


def _measured() -> Iterator[Finding]:
    from confide.cli.doctor_machine import measured, products

    if _is_installed("torch"):
        yield from products()
    yield from measured(_nearest(home()))


def _nearest(folder: Path) -> Path:
    """The folder itself, or the first above it that exists."""
    return next(parent for parent in (folder, *folder.parents) if parent.exists())


def _reached(address: str, ca: Path | None) -> Iterator[Finding]:
    """Whether somebody answers there, with a certificate that counts. Who that is, evidence or a release says."""
    try:
        parts = urlsplit(address if "://" in address else f"ws://{address}")
        secure = parts.scheme in ("wss", "https")
        host, port = parts.hostname or "", parts.port or (443 if secure else 80)
        started = time.perf_counter()
        with socket.create_connection((host, port), timeout=_SECONDS) as plain:
            took = output.duration(time.perf_counter() - started)
            if not secure:
                yield Finding("address", State.OK, f"{address} takes connections, in {took}, without TLS")
                return
            with client_context(ca).wrap_socket(plain, server_hostname=host) as private:
                found = f"{address} takes connections, in {took}; {private.version()}, and its certificate counts"
                yield Finding("address", State.OK, found)
    except ssl.SSLError as error:
        reason = getattr(error, "verify_message", None) or error.reason or "no TLS there"
        todo = "give --ca, the file of the server's own authority, or ask its operator"
        yield Finding("address", State.PROBLEM, f"{address}: {printable(str(reason))}", todo)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        todo = "check the address, a firewall, and whether the server runs"
        yield Finding("address", State.PROBLEM, f"{address} is not reached ({printable(str(reason))})", todo)
