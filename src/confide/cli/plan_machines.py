"""`confide plan --machines`: a split model's layer groups, shared out over machines and written down for clients."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import output
from confide.cli.explain import explained
from confide.disk.files import create_file

Machines = Annotated[
    int | None,
    typer.Option(
        help="Share the layer groups of a split model out over so many machines. With --users: so many, and not the "
        "fewest that do.",
        min=1,
        max=10**9,
    ),
]
PlannedServers = Annotated[
    list[str] | None,
    typer.Option(
        "--server",
        help="With --machines: the address of each machine's server, in their order; once through again for replicas.",
    ),
]
PlacementOut = Annotated[
    Path | None,
    typer.Option(help="With --machines and --server: write the placement to this new file, for clients."),
]


def plan_machines(folder: Path, machines: int, servers: list[str], out: Path | None, *, json: bool) -> None:
    """Print what each machine serves, and write the placement. folder: the server's half of a split."""
    from confide.hybrid.client.dial import websocket_url
    from confide.hybrid.placement import Placement, share_out, stored_bytes
    from confide.packages.manifest import PackageKind
    from confide.packages.signing import open_package

    if len(servers) % machines:
        raise typer.BadParameter(f"--server comes {machines} times, once for each machine, or a multiple for replicas")
    if out is not None and not servers:
        raise typer.BadParameter("--out needs the servers' addresses; give --server for each machine")
    for address in servers:
        websocket_url(address)  # one that clients can use
    manifest = open_package(folder, PackageKind.SERVER).manifest
    sizes = [stored_bytes(group, manifest.profile) for group in manifest.groups]
    shares = share_out(sizes, machines)
    if out is not None:
        placed = tuple((address, shares[number % machines]) for number, address in enumerate(servers))
        try:
            create_file(out, Placement(manifest.model_digest, placed).write())
        except OSError as error:
            raise explained(error) from error
    planned = [
        {
            "groups": str(share),
            "bytes": sum(sizes[number] for number in share),
            "servers": servers[machine::machines],
        }
        for machine, share in enumerate(shares)
    ]
    if json:
        output.result({"model_digest": manifest.model_digest, "machines": planned, "placement": out and str(out)})
        return
    table = Table(show_edge=False, pad_edge=False)
    for heading in ("layer groups", "memory and work", "share", *(["servers"] if servers else [])):
        table.add_column(heading, justify="left" if heading in ("layer groups", "servers") else "right")
    for machine, share in enumerate(shares):
        size = sum(sizes[number] for number in share)
        row = [str(share), output.megabytes(size), f"{size / sum(sizes):.0%}"]
        table.add_row(*row, *(["\n".join(map(escape, servers[machine::machines]))] if servers else []))
    output.console.print(table)
    output.note("What a machine multiplies for a token grows with its bytes, so both are shared out alike.")
    output.note(f"On each machine: confide serve {folder} --groups GROUPS, with its groups from the table.")
    if out is not None:
        output.note(f"Clients connect by {out}: confide generate SHELL --placement {out} ...")
