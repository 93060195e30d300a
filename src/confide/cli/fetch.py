"""`confide fetch`: a package from a folder, a web server or object storage, verified as it comes."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Ca, Endpoint, Json, TrustedOwner
from confide.printable import printable


def command(
    source: Annotated[
        str,
        typer.Argument(
            help="Where the package's folder lies: s3://bucket/folder (also gs://, az://), https://..., or a folder.",
            metavar="SOURCE",
        ),
    ],
    out: Annotated[Path, typer.Argument(help="The folder to make.", metavar="FOLDER")],
    groups: Annotated[
        str | None,
        typer.Option(help="Of a server's package: only what these layer groups need, such as 0-47 or 0-11,24-35."),
    ] = None,
    owner: TrustedOwner = None,
    endpoint: Endpoint = None,
    ca: Ca = None,
    json: Json = False,
) -> None:
    """Fetch a package of any kind. Every file is held against what its owner signed; an interrupted run is taken up.

    Credentials are those that the storage's own tools find in the environment, such as AWS_ACCESS_KEY_ID. Whoever uses
    the package trusts its owner or not, as ever: with --owner it is not even fetched otherwise.
    """
    from confide.client.package_fetch import Progress, fetch_package
    from confide.hybrid.groups import Groups
    from confide.packages.trusted_owners import accepted_owners

    chosen = None if groups is None else Groups.parse(groups)
    fetched, name = 0, "the manifest"

    def count(size: int) -> None:
        nonlocal fetched
        fetched += size
        status.update(f"[dim]fetching {name}: {output.megabytes(fetched)} so far")

    def begin(file: str) -> None:
        nonlocal name
        name = escape(printable(file))

    with output.messages.status("[dim]fetching the manifest") as status:
        listing = fetch_package(
            source,
            out,
            trusted=accepted_owners(owner) if owner else None,
            groups=chosen,
            ca=ca,
            endpoint=endpoint,
            progress=Progress(begin, count),
        )
    if json:
        output.result(
            {
                "package": str(out),
                "kind": listing.kind.value,
                "owner": None if listing.owner is None else str(listing.owner),
                "files": len(listing.files),
                "bytes": fetched,
            }
        )
        return
    output.console.print(
        f"Fetched [bold]{escape(str(out))}[/], a {listing.kind.value}: {len(listing.files):,} files, "
        f"{output.megabytes(fetched)}, each as its owner signed it.",
        soft_wrap=True,
    )
    if listing.owner is not None:
        output.console.print(f"Signed by {listing.owner.fingerprint}", soft_wrap=True)
