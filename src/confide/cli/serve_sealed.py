"""What `confide serve` prepares for whatever it serves from inside a trusted execution environment."""

import socket
import ssl
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.serve import Listening
from confide.cli.tee import WARNING
from confide.enclave.tee import TeeKind

if TYPE_CHECKING:
    from confide.client.joining import Joined
    from confide.enclave.boot import Fetch
    from confide.enclave.egress import WaysOut
    from confide.enclave.ra_tls import RaTls
    from confide.enclave.tee import Tee
    from confide.enclave.workload import Workload
    from confide.graph.history import History
    from confide.net.vsock import VsockAddress


@dataclass(frozen=True, kw_only=True)
class TeeOptions:
    """As the command's options, those that what is sealed has in common."""

    tee: TeeKind | None
    simulated_tee: Path | None
    keys: str | None
    keys_ca: Path | None
    keys_through: str | None
    ra_tls: bool
    tls_name: list[str] | None
    release: Path | None
    insecure_open_egress: bool
    graph: Path | None = None
    service: str | None = None
    neighbour: list[str] | None = None
    neighbour_ca: Path | None = None

    def stated(self, tee: str, listening: Listening) -> dict[str, str]:
        """Those that were given and change what the server does, for its statement. tee: as it was found."""
        given = asdict(self) | {
            "tls_name": None,  # what it is called changes nothing
            "certificate": None,  # nor does what others measured
            "adapter": None,  # the statement has its digest
            **dict.fromkeys(("graph", "service", "neighbour", "neighbour_ca")),  # and says which of which graph
            "state": None,  # where the ledger is; that there is one, is said
            "ledger": None,
            "traces": None,
            "collections": None,  # nor where users' documents are; that they may keep some, is said
            "tee": tee,
            "tls_cert": listening.tls_cert,
            "insecure_no_tls": listening.insecure_no_tls,
        }
        words = {name: "true" if value is True else str(value) for name, value in given.items() if value}
        return {name.replace("_", "-"): value[:1024] for name, value in words.items()}

    def history(self) -> "History | None":
        """The log of the graph that this is a service of, if it is one."""
        from confide.graph.history import MAX_LOG_BYTES, History

        if (self.graph is None) != (self.service is None):
            raise typer.BadParameter("--graph and --service go together")
        if self.graph is None:
            if self.neighbour or self.neighbour_ca:
                raise typer.BadParameter("--neighbour and --neighbour-ca go with --graph")
            return None
        return History.read(read_file(self.graph, MAX_LOG_BYTES))

    def urls(self) -> dict[str, str]:
        """Where the neighbours are, by name."""
        return named_urls(self.neighbour or [])


def named_urls(given: list[str]) -> dict[str, str]:
    """Of `--neighbour NAME=URL`, each name once."""
    urls: dict[str, str] = {}
    for one in given:
        name, equals, url = one.partition("=")
        if not (name and equals and url) or name in urls:
            raise typer.BadParameter(f"--neighbour takes NAME=URL, each name once, and not {one!r}")
        urls[name] = url
    return urls


@dataclass(frozen=True)
class Prepared:
    """A workload whose sockets are bound and whose other ways out are closed.

    joined: its neighbours in a graph; nobody without one. fetch_other: from the other key service, where there is one.
    tls: None where it ends elsewhere.
    """

    workload: "Workload"
    tee: "Tee"
    bound: socket.socket
    private: socket.socket | None
    ways: "WaysOut"
    joined: "Joined"
    fetch: "Fetch"
    fetch_other: "Fetch | None"
    tls: ssl.SSLContext | None
    own_tls: "RaTls | None"


@contextmanager
def prepared(
    listening: Listening,
    options: TeeOptions,
    *,
    upstream: str | None = None,
    other_keys: str | None = None,
    neighbours: Mapping[str, str] = MappingProxyType({}),
    scores: bytes | None = None,
    training: bytes | None = None,
    sealed: bool = True,
    ledger: bool = False,
) -> Iterator[Prepared]:
    """Find the environment, bind the addresses, and close this process's ways out but for the key service's.

    The addresses come before that: no socket can be made later, and no key leaves for a server that cannot listen.
    upstream: another address that stays reachable; other_keys: one until the keys are here. neighbours: addresses that
    stay reachable, by names, each with its connector in `ways`. scores, training: sent along with the evidence.
    sealed: whether it takes a key. ledger: whether another process keeps one for this one.
    """
    from confide.client.joining import Joined, join, stapled
    from confide.client.relying_party import vendor_collateral
    from confide.enclave.api.server import bind
    from confide.enclave.configuration import own_configuration
    from confide.enclave.connector import Connector
    from confide.enclave.egress import WaysOut, close_egress
    from confide.enclave.fetch_key import fetch_key
    from confide.enclave.ra_tls import RaTls
    from confide.enclave.tee import open_tee
    from confide.enclave.workload import Workload
    from confide.net.tls import client_context

    if options.ra_tls and listening.tls_cert:
        raise typer.BadParameter("give either --ra-tls or --tls-cert")
    if options.tls_name and not options.ra_tls:
        raise typer.BadParameter("--tls-name goes with --ra-tls; a certificate of --tls-cert has its names")
    keys_through = _keys_through(options)
    tee = open_tee(options.tee or TeeKind.AUTO, options.simulated_tee)
    if tee.simulated:
        output.messages.print(f"[bold red]{WARNING}[/]")
    if tee.gpus:
        output.messages.print(f"[bold yellow]The GPU is not attested.[/] {escape(tee.gpus)}")
    if sealed and options.keys is None:
        raise typer.BadParameter("what is sealed needs --keys, the address of its owner's `confide keys serve`")
    history, urls = options.history(), {**neighbours, **options.urls()}
    release = None if options.release is None else read_file(options.release)
    configuration = own_configuration(options.stated(tee.name, listening))
    in_graph = history is not None or not sealed
    collateral = stapled(tee, vendor_collateral()) if in_graph else tee.collateral
    workload = Workload(
        tee.reader, collateral, configuration=configuration, release=release, scores=scores, training=training
    )
    own_tls = RaTls(workload, options.tls_name or ()) if options.ra_tls else None
    tls = own_tls.context if own_tls else listening.tls()
    with ExitStack() as stack:
        bound = stack.enter_context(bind(listening.host, listening.port))
        private = stack.enter_context(bind("127.0.0.1", listening.metrics_port)) if listening.metrics_port else None
        if options.insecure_open_egress:
            output.messages.print("[bold red]This process can open connections to anywhere, and says so.[/]")
            ways = WaysOut(keys=Connector.to(options.keys, keys_through) if options.keys and keys_through else None)
        else:
            ways = close_egress(
                [bound, private] if private else [bound],
                keys=options.keys,
                upstream=upstream,
                other_keys=other_keys,
                neighbours=urls,
                keys_through=keys_through,
                ledger=ledger,
            )
        stack.callback(ways.close)
        key_tls = client_context(options.keys_ca)
        fetch = partial(fetch_key, options.keys or "", tls=key_tls, connector=ways.keys)
        other = partial(fetch_key, other_keys, tls=key_tls, connector=ways.other_keys) if other_keys else None
        joined = Joined(None, {}, None)
        if history is not None:
            joined = join(
                history,
                options.service or "",
                workload,
                root=tee.root,
                urls=options.urls(),
                connectors=ways.neighbours,
                ca=options.neighbour_ca,
                insecure_no_tls=listening.insecure_no_tls,
            )
        yield Prepared(workload, tee, bound, private, ways, joined, fetch, other, tls, own_tls)


def _keys_through(options: TeeOptions) -> "VsockAddress | None":
    from confide.net.vsock import VsockAddress

    if options.keys_through is None:
        return None
    try:
        return VsockAddress.parse(options.keys_through)
    except ValueError as error:
        raise typer.BadParameter(f"--keys-through: {error}") from None
