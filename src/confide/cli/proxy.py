"""`confide proxy`: a local address for every program that speaks OpenAI's API, with the protections behind it."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import msgspec
import typer

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import (
    Ca,
    Checks,
    InsecureNoTls,
    Json,
    LicenceFile,
    Offline,
    PlacementFile,
    Proxy,
    Replicas,
    SimulatedRoot,
    UserPolicy,
    licence_key,
)
from confide.errors import ConfideError, InsecureConnection, ProxyNotRunning
from confide.net.loopback import is_loopback

if TYPE_CHECKING:
    from confide.proxy.settings import ModelSettings

_START_SECONDS = 30.0


def command(
    targets: Annotated[
        list[str] | None,
        typer.Argument(
            help="https:// addresses of a model in a trusted environment and its replicas, or a client folder with "
            "--server; `status` and `stop` for the proxy that runs.",
            metavar="[URL... | SHELL | status | stop]",
        ),
    ] = None,
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    replicas: Replicas = None,
    server: Annotated[str | None, typer.Option(help="For a client folder: the layer server's address.")] = None,
    placement: PlacementFile = None,
    owner: Annotated[
        str | None, typer.Option(help="For a client folder: the public key that must have signed it.")
    ] = None,
    licence_file: LicenceFile = None,
    checks: Checks = None,
    proxy: Proxy = None,
    patience: Annotated[
        float | None,
        typer.Option(help="For a client folder: seconds that a question waits for a server that goes away.", min=0),
    ] = None,
    name: Annotated[str, typer.Option(help="What programs call the model; its own name without.")] = "",
    models: Annotated[Path | None, typer.Option(help="TOML file of models; that of `confide setup` without.")] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 8790,
    key_file: Annotated[
        Path | None, typer.Option(help="File with the key that programs must show; needed beyond this machine.")
    ] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="PEM file with a certificate chain.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="PEM file with its private key.")] = None,
    background: Annotated[bool, typer.Option("--background", help="Start it, and come back.")] = False,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Serve OpenAI's API on this machine: verify, encrypt or run the shell, and forward."""
    if targets in (["status"], ["stop"]):
        (_status if targets == ["status"] else _stop)(json=json)
        return
    if background:
        _start_in_background(json=json)
        return
    from confide.proxy.settings import ModelSettings, default_path, read_settings

    if models is None and not targets and server is None and placement is None and default_path().exists():
        models = default_path()
    own: dict[str, Any] = {
        "policy": _text(policy),
        "simulated_root": _text(simulated_root),
        "offline": offline,
        "replicas": replicas,
        "server": server,
        "placement": _text(placement),
        "owner": owner,
        "checks": _text(checks),
        "proxy": proxy,
        "patience": patience,
        "name": name,
        "ca": _text(ca),
    }
    if models is not None:
        foreign = [
            f"--{option.replace('_', '-')}"
            for option, value in own.items()
            if value is not None and value is not False and value != ""
        ]
        if targets or foreign:
            what = " and ".join([*foreign, "an address"] if targets else foreign)
            raise typer.BadParameter(f"give either a file of models, {models}, or {what}")
        served = read_settings(models)
    else:
        of_shell = server is not None or placement is not None
        if of_shell and len(targets or ()) != 1:
            raise typer.BadParameter("--server and --placement go with one client folder")
        place = "shell" if of_shell else "url"
        served = [ModelSettings(**own | {place: target}) for target in targets or []]
        if not served:
            raise typer.BadParameter(
                "give an address, a client folder with --server, or --models; or answer `confide setup` once"
            )
    if insecure_no_tls:
        served = [msgspec.structs.replace(one, insecure_no_tls=True) for one in served]
    key = "" if key_file is None else read_file(key_file).decode("ascii", "replace").strip()
    if not is_loopback(host) and not (key and tls_cert and tls_key):
        raise InsecureConnection(
            f"On {host} the proxy would answer anybody on the network; give --tls-cert, --tls-key and --key-file, or "
            "use a loopback host."
        )
    if bool(tls_cert) != bool(tls_key):
        raise typer.BadParameter("--tls-cert and --tls-key go together")

    def announce(url: str, page: str) -> None:
        if json:
            output.result({"url": url, "base_url": f"{url}/v1", "key_needed": bool(key)})
            return
        output.console.print(f"[bold]{url}/v1[/]  is OpenAI's API now; models are verified before anything is sent.")
        output.note(f"export OPENAI_BASE_URL={url}/v1 OPENAI_API_KEY={'<your key>' if key else 'any'}")
        # Whoever opens the page may ask: its address belongs in a terminal, and in no journal.
        if output.console.is_terminal:
            output.console.print(f"A page to chat on: [bold]{page}[/]", soft_wrap=True)
        output.note("`confide proxy status` shows the page's address and what was verified. Ctrl-C stops it.")

    serve(served, licence_key(licence_file), (host, port), announce, key, (tls_cert, tls_key))


def serve(
    models: "list[ModelSettings]",
    licence: str,
    place: tuple[str, int],
    announce: Callable[[str, str], None],
    key: str = "",
    tls: tuple[Path | None, Path | None] = (None, None),
) -> None:
    """Run the proxy until it is told to stop. announce: called with its address and its page's once it answers."""
    from confide.enclave.api.server import bind, serve_app
    from confide.net.loopback import is_everywhere
    from confide.net.tls import certificate_names, server_context
    from confide.proxy.app import ProxyApp
    from confide.proxy.guard import Guard, as_host, hosts_of
    from confide.proxy.page.page import address, is_file
    from confide.proxy.running import Running, forget, new_token, page_token, remember
    from confide.proxy.settings import backends

    certificate, private = tls
    context = server_context(certificate, private) if certificate and private else None
    standing = backends(models, licence)
    token = new_token()
    bound = bind(*place)
    host, port = bound.getsockname()[:2]
    names = certificate_names(certificate) if certificate else []
    app = ProxyApp(standing, token, lambda: os.kill(os.getpid(), signal.SIGTERM)).asgi()
    page = page_token()
    keys = (key, token) if key else ()
    hosts = hosts_of(host, port, [place[0], *names])
    guarded = Guard(app, hosts, keys, secure=context is not None, page=page, open_to=is_file)
    scheme = "http" if context is None else "https"
    # Programs check the certificate against the name that they are given.
    named = host
    if names and host not in names:
        named = next((name for name in names if not is_loopback(name)), names[0])
    url = f"{scheme}://{as_host(named)}:{port}"
    own = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host) if is_everywhere(host) else host  # noqa: S104
    running = Running(
        url,
        token,
        str(certificate.resolve()) if certificate else "",
        f"{scheme}://{as_host(own)}:{port}" if own != named else "",
    )

    def ready(_: str) -> None:
        remember(running)
        announce(url, address(url, page))

    try:
        serve_app(guarded, bound, context, ready)
    finally:
        forget(running)


def _start_in_background(*, json: bool) -> None:
    """The same command without --background, in a process of its own that outlives the terminal."""
    arguments = [argument for argument in sys.argv[1:] if argument not in ("--background", "--json")]
    command = [sys.executable, "-P", "-m", "confide", *arguments, "--json"]
    from confide.disk.home import make_home

    log = make_home() / "proxy.log"
    with os.fdopen(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "wb") as errors:
        process = subprocess.Popen(  # noqa: S603 - our own arguments, once more
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors, start_new_session=True
        )
    line = process.stdout.readline() if process.stdout else b""
    if not line.startswith(b'{"url"'):
        process.wait(_START_SECONDS)
        said = log.read_bytes()[-2000:].decode("utf-8", "replace").strip()
        raise ConfideError(f"The proxy did not start; {said or line.decode('utf-8', 'replace').strip()}")
    found = msgspec.json.decode(line, type=dict[str, Any])
    if json:
        output.result(found)
    else:
        output.console.print(f"[bold]{found['base_url']}[/]  runs in the background.")
        output.note("`confide proxy status` shows what was verified, `confide proxy stop` stops it.")


def _status(*, json: bool) -> None:
    from rich.markup import escape

    from confide.printable import printable
    from confide.proxy.page.page import address
    from confide.proxy.running import ask, page_token, recall

    running = recall()
    health = ask(running, "/health")
    page = address(running.url, page_token())
    if json:
        output.result({"url": running.url, "page": page, **health, **ask(running, "/confide/status")})
        return
    output.console.print(f"[bold]{running.url}/v1[/]")
    output.console.print(f"A page to chat on: [bold]{page}[/]", soft_wrap=True)
    for backend in ask(running, "/confide/status").get("backends", []):
        names = ", ".join(backend["models"]) or "(no name yet)"
        simulated = "  [bold red]SIMULATED: this protects nothing[/]" if backend.get("simulated") else ""
        output.console.print(
            f"{escape(printable(names))}  {backend['mode']}  {escape(printable(backend['url']))}  "
            f"[bold]{backend['state']}[/]{simulated}"
        )
        if "reason" in backend:
            output.note(backend["reason"])
        for reason in backend.get("replicas", {}).get("refused", []):
            output.note(f"A replica is not relied on: {reason}")
        if "trust" in backend:
            output.console.print(escape(printable(backend["trust"], keep="\n")))


def _stop(*, json: bool) -> None:
    from confide.proxy.running import ask, recall

    running = recall()
    if ask(running, "/confide/stop", method="POST").get("status") != "stopping":
        raise ProxyNotRunning(f"What answers at {running.url} is not the proxy that was started; stop it yourself.")
    if json:
        output.result({"stopped": running.url})
    else:
        output.note(f"The proxy at {running.url} stops.")


def _text(path: Path | None) -> str | None:
    return None if path is None else str(path)
