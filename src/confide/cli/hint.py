"""`confide hint`: what a client multiplies by, made by a model's owner, fetched from anywhere, verified."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.on_ray import OnRay, mapped_on
from confide.cli.options import Ca, Endpoint, Json, OwnerFile, Shell, TrustedOwner
from confide.mapped import on_cores
from confide.packages.manifest import Manifest, PackageKind
from confide.packages.signing import open_package
from confide.packages.trusted_owners import accepted_owners

app = typer.Typer(name="hint", help="The hint of a shell: made, fetched, verified.", no_args_is_help=True)


@app.command("make")
def make(
    client: Shell,
    server: Annotated[Path, typer.Argument(help="The server folder of the same split.", metavar="SERVER_FOLDER")],
    owner: OwnerFile = None,
    ray: OnRay = None,
    json: Json = False,
) -> None:
    """Make the hint of a shell that was split with --no-hint, and sign both folders again with its digests."""
    from confide.cli.owner import read_key
    from confide.packages.hint import hint_size
    from confide.packages.hint_writer import add_hint

    key = read_key(owner)
    with mapped_on(ray, on_cores) as mapped, output.progress_of("making the hint", quiet=json) as on_hint:
        manifest = add_hint(client, server, key, on_hint, mapped)
    _report(client, hint_size(manifest), "Made", json=json)


@app.command("fetch")
def fetch(
    client: Shell,
    source: Annotated[
        str,
        typer.Argument(
            help="What has it: an https address, s3://bucket/folder (also gs://, az://), or a folder.", metavar="SOURCE"
        ),
    ],
    owner: TrustedOwner = None,
    endpoint: Endpoint = None,
    ca: Ca = None,
    json: Json = False,
) -> None:
    """Fetch a shell's hint from wherever it is; it is verified by the digests that the owner signed."""
    from confide.client.hint_fetch import fetch_hint
    from confide.packages.hint import hint_size

    manifest = _opened(client, owner)
    size = hint_size(manifest)
    with output.counting_bytes("fetching the hint", size, quiet=json) as on_bytes:
        fetch_hint(client, manifest, source, ca=ca, endpoint=endpoint, on_bytes=on_bytes)
    _report(client, size, "Fetched", json=json)


@app.command("verify")
def verify(client: Shell, owner: TrustedOwner = None, json: Json = False) -> None:
    """Check that a shell's hint is the one its owner signed."""
    from confide.packages.hint import Hint, hint_size

    manifest = _opened(client, owner)
    size = hint_size(manifest)
    with output.counting_bytes("verifying the hint", size, quiet=json) as on_bytes:
        Hint.open(client, manifest, on_bytes)
    _report(client, size, "Verified", json=json)


def _opened(client: Path, owner: str | None) -> Manifest:
    return open_package(client, PackageKind.SHELL, accepted_owners(owner)).manifest


def _report(client: Path, size: int, done: str, *, json: bool) -> None:
    if json:
        output.result({"client": str(client), "hint_bytes": size})
    else:
        output.console.print(f"{done} the hint of [bold]{escape(str(client))}[/]: {output.megabytes(size)}.")
