"""`confide licence`: who may use a model, for how many tokens, and what they have used and learned."""

import csv
import math
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import output
from confide.cli.options import (
    Ca,
    InsecureNoTls,
    Json,
    LicenceFile,
    Proxy,
    ServerPlace,
    Shell,
    TrustedOwner,
    licence_key,
)
from confide.errors import ConfideError
from confide.ledger.address import parse_place
from confide.ledger.licences import (
    DEFAULT_DISCLOSURE,
    SECONDS_PER_DAY,
    Licence,
    LicenceBook,
    licence_book,
)
from confide.ledger.place import state_of
from confide.ledger.usage import WARN_DISCLOSED, bits_disclosed, licensed_tokens, share_disclosed
from confide.packages.manifest import MANIFEST_NAME, Manifest, PackageKind, read_kind, read_manifest
from confide.packages.signing import open_package
from confide.packages.trusted_owners import accepted_owners, other_keys
from confide.printable import printable
from confide.rlwe.parameters import Profile

app = typer.Typer(name="licence", help="Who may use a model, and what they have used.", no_args_is_help=True)

Name = Annotated[str, typer.Argument(help="The licence's name or id.", metavar="NAME")]
Tokens = Annotated[int | None, typer.Option(help="Tokens it may use in all.", min=1)]
Days = Annotated[int | None, typer.Option(help="Days from now until it expires.", min=1)]
Rate = Annotated[int | None, typer.Option(help="Tokens a minute.", min=1)]
CheckSets = Annotated[int | None, typer.Option(help="How many sets of check vectors its holder was given.", min=0)]
Disclosure = Annotated[
    float | None, typer.Option(help="How much of what solves a layer it may learn; 1.0 is all of it.", min=0.0)
]
LiftDisclosure = Annotated[
    bool, typer.Option("--lift-disclosure", help="Set no limit to what it learns of the weights.")
]


@app.command("create")
def create(
    server: ServerPlace,
    name: Annotated[str, typer.Option(help="What you call the licensee.")],
    tokens: Tokens = None,
    days: Days = None,
    rate: Rate = None,
    disclosure: Disclosure = DEFAULT_DISCLOSURE,
    lift_disclosure: LiftDisclosure = False,
    json: Json = False,
) -> None:
    """Make a licence and show its key, this once. The server may be running."""
    limits = _limits(tokens, days, rate, disclosure, lift=lift_disclosure)
    with _book(server) as book:
        licence, key = book.create(name, **limits)
    if json:
        output.result(_described(licence, 0) | {"key": key})
        return
    output.console.print(f"Licence [bold]{escape(licence.label)}[/]. Its key is shown once; hand it over safely:")
    output.console.print(f"[bold]{key}[/]", soft_wrap=True)
    _note_disclosure(server, licence)


@app.command("list")
def list_licences(server: ServerPlace, json: Json = False) -> None:
    """List the licences and what is left of each."""
    with _book(server) as book:
        rows = [_described(licence, _used(book, licence)) for licence in book.all()]
    if json:
        output.result({"licences": rows})
        return
    table = _table("licence", "id", "state", "expires", numbers=("tokens used", "of"))
    for row in rows:
        expires = row["expires"][:10] if row["expires"] else "never"
        numbers = (f"{row['tokens_used']:,}", _limit(row["tokens"]))
        table.add_row(escape(printable(row["name"])), row["id"], row["state"], expires, *numbers)
    output.console.print(table if rows else "No licence yet; `confide licence create` makes one.")


@app.command("show")
def show(server: ServerPlace, name: Name, json: Json = False) -> None:
    """Show one licence, and how much of each layer's weights its answers disclose."""
    with _book(server) as book:
        licence = book.find(name)
        described = _described(licence, _used(book, licence))
        layers = _disclosure(server, licence, book)
    if json:
        output.result(described | {"disclosed": layers})
        return
    for label, value in {
        "licence": licence.name,
        "id": described["id"],
        "state": described["state"],
        "created": described["created"],
        "expires": described["expires"] or "never",
        "tokens used": f"{described['tokens_used']:,}",
        "tokens in all": _limit(licence.tokens),
        "tokens a minute": _limit(licence.tokens_per_minute),
        "check sets": f"{licence.check_sets:,}",
        "disclosure": "no limit" if licence.disclosure is None else f"up to {licence.disclosure:.0%}",
    }.items():
        output.console.print(f"{label:<17}{escape(printable(value))}")
    table = _table("layer group", numbers=("tokens", "bits disclosed", "of what solves it"))
    for layer in layers:
        colour = "red" if layer["share"] >= 1 else "yellow" if layer["share"] >= WARN_DISCLOSED else "green"
        table.add_row(
            layer["group"], f"{layer['tokens']:,}", f"{layer['bits']:,}", f"[{colour}]{layer['share']:.1%}[/]"
        )
    if layers:
        output.console.print()
        output.console.print(table)


@app.command("change")
def change(
    server: ServerPlace,
    name: Name,
    tokens: Tokens = None,
    days: Days = None,
    rate: Rate = None,
    disclosure: Disclosure = None,
    check_sets: CheckSets = None,
    lift_disclosure: LiftDisclosure = False,
    json: Json = False,
) -> None:
    """Change a licence's limits; those that are not given stay. A running server notices within a second."""
    limits = _limits(tokens, days, rate, disclosure, check_sets, lift=lift_disclosure)
    if not limits:
        raise typer.BadParameter("say what to change, such as --tokens or --days")
    with _book(server) as book:
        licence = book.change(book.find(name), **limits)
        used = _used(book, licence)
    if json:
        output.result(_described(licence, used))
    else:
        output.console.print(f"Licence [bold]{escape(licence.label)}[/] is changed.")
        _note_disclosure(server, licence)


@app.command("rekey")
def rekey(server: ServerPlace, name: Name, json: Json = False) -> None:
    """Give a licence a new key, shown this once: the old one ends, and what was used stays counted.

    A running server notices within a second, also on connections that are open.
    """
    with _book(server) as book:
        licence, key = book.rekey(book.find(name))
        used = _used(book, licence)
    if json:
        output.result(_described(licence, used) | {"key": key})
        return
    output.console.print(f"Licence [bold]{escape(licence.label)}[/] has a new key, shown once; hand it over safely:")
    output.console.print(f"[bold]{key}[/]", soft_wrap=True)


@app.command("status")
def status(
    shell: Shell,
    server: Annotated[str, typer.Option(help="Address of the layer server.")],
    licence_file: LicenceFile = None,
    owner: TrustedOwner = None,
    ca: Ca = None,
    proxy: Proxy = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """As a licensee: ask the layer server what your licence still allows. Costs nothing."""
    from confide.hybrid.client.connection import LayerConnection
    from confide.hybrid.client.dial import Dial

    release = open_package(shell, PackageKind.SHELL, accepted_owners(owner)).release
    dial = Dial(server, licence_key(licence_file), ca, insecure_no_tls=insecure_no_tls, proxy=proxy)
    with LayerConnection(dial, release, other_keys(release.owner) if owner is None else ()) as connection:
        allowance = connection.welcome.allowance
    if json:
        output.result(
            {
                "tokens_left": allowance.tokens_left,
                "answers_left": allowance.answers_left,
                "bits_disclosed": allowance.bits_disclosed,
                "disclosed": allowance.disclosed,
                "disclosure_limit": allowance.disclosure,
                "expires": None if allowance.expires is None else output.utc(allowance.expires),
                "tokens_per_minute": allowance.tokens_per_minute,
            }
        )
        return
    of = "" if allowance.disclosure is None else f" of at most {allowance.disclosure:.1%}"
    for label, value in {
        "tokens left": _limit(allowance.tokens_left),
        "until disclosure": f"{_limit(allowance.answers_left)}{'' if allowance.answers_left is None else ' tokens'}",
        "disclosed": f"{allowance.disclosed:.1%} of what solves a layer{of}; {allowance.bits_disclosed:,} bits in all",
        "expires": "never" if allowance.expires is None else output.utc(allowance.expires),
        "tokens a minute": _limit(allowance.tokens_per_minute),
    }.items():
        output.console.print(f"{label:<18}{value}")
    output.note(f"As the server at {dial.url} says.")


@app.command("revoke")
def revoke(server: ServerPlace, name: Name, json: Json = False) -> None:
    """End a licence, for good. A running server notices within a second."""
    with _book(server) as book:
        licence = book.change(book.find(name), revoked=int(time.time()))
        used = _used(book, licence)
    if json:
        output.result(_described(licence, used))
    else:
        output.console.print(f"Licence [bold]{escape(licence.label)}[/] is revoked.")


@app.command("usage")
def usage(
    server: ServerPlace,
    name: Annotated[str | None, typer.Argument(help="One licence's name or id; all without.", metavar="[NAME]")] = None,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
    json: Json = False,
) -> None:
    """Show billed tokens by licence, day (UTC) and unit, as of the server's last checkpoint, seconds ago at most.

    The units: layers, of a layer server; input and output, the tokens of prompts and answers of a sealed model.
    """
    with _book(server) as book:
        names = {licence.id: licence.name for licence in book.all()}
        found = book.usage(book.find(name) if name else None)
    rows = [
        {
            "licence": names.get(one.licence, "anonymous"),
            "id": one.licence.hex(),
            "day": one.date,
            "unit": one.unit,
            "tokens": one.tokens,
        }
        for one in found
    ]
    if json:
        output.result({"usage": rows})
    elif as_csv:
        writer = csv.DictWriter(sys.stdout, ["licence", "id", "day", "unit", "tokens"])
        writer.writeheader()
        writer.writerows(rows)
    else:
        table = _table("day", "licence", "unit", numbers=("tokens",))
        for row in rows:
            name, tokens = escape(printable(str(row["licence"]))), f"{row['tokens']:,}"
            table.add_row(str(row["day"]), name, str(row["unit"]), tokens)
        output.console.print(table if rows else "Nothing was used yet.")


@contextmanager
def _book(server: str) -> Iterator[LicenceBook]:
    """The licences of what the user named, which must be there: a slip of the pen is no new server."""
    place = parse_place(server)
    if isinstance(place, Path):
        if not place.is_dir():
            raise ConfideError(f"{place} is no folder; give the layer server's package folder, or the --state folder.")
        kind = read_kind(place) if (place / MANIFEST_NAME).exists() else PackageKind.SERVER
        if kind is PackageKind.SEALED:
            raise ConfideError(
                f"{place} is a sealed model, which stays as its owner signed it; give the folder that `confide serve "
                "--state` has for its ledger."
            )
        if kind is not PackageKind.SERVER:
            raise ConfideError(f"{place} is a client's folder; licences are made where the server's package is.")
    with licence_book(state_of(place)) as book:
        yield book


def _limits(
    tokens: int | None,
    days: int | None,
    rate: int | None,
    disclosure: float | None,
    check_sets: int | None = None,
    *,
    lift: bool,
) -> dict[str, int | float | None]:
    """The fields of a licence that were given."""
    if disclosure is not None and not math.isfinite(disclosure):
        raise typer.BadParameter("--disclosure is a number; --lift-disclosure sets no limit")
    expires = None if days is None else int(time.time()) + days * SECONDS_PER_DAY
    given: dict[str, int | float | None] = {
        "tokens": tokens,
        "expires": expires,
        "tokens_per_minute": rate,
        "disclosure": disclosure,
        "check_sets": check_sets,
    }
    limits: dict[str, int | float | None] = {field: value for field, value in given.items() if value is not None}
    return limits | {"disclosure": None} if lift else limits


def _used(book: LicenceBook, licence: Licence) -> int:
    return sum(usage.tokens for usage in book.usage(licence))


def _described(licence: Licence, used: int) -> dict[str, Any]:
    return {
        "name": licence.name,
        "id": licence.id.hex(),
        "state": licence.state(time.time()),
        "tokens_used": used,
        "tokens": licence.tokens,
        "expires": None if licence.expires is None else output.utc(licence.expires),
        "tokens_per_minute": licence.tokens_per_minute,
        "disclosure_limit": licence.disclosure,
        "check_sets": licence.check_sets,
        "created": output.utc(licence.created),
    }


def _disclosure(server: str, licence: Licence, book: LicenceBook) -> list[dict[str, Any]]:
    """What the answers say of each layer group's weights; nothing where the package is not at hand or is public."""
    manifest = _private_manifest(server)
    if manifest is None:
        return []
    model = bytes.fromhex(manifest.model_digest)
    disclosed, lost = book.disclosed(licence.id, model), book.lost(licence.id, model)
    layers = []
    for index, group in enumerate(manifest.groups):
        tokens = disclosed.get(index, 0) + lost
        share = share_disclosed(group, tokens, licence.check_sets)
        bits = bits_disclosed(group, tokens, licence.check_sets)
        layers.append({"group": group.name, "tokens": tokens, "bits": bits, "share": share})
    return layers


def _private_manifest(server: str) -> Manifest | None:
    """The layer table, where it is at hand and the weights are not public anyway."""
    place = parse_place(server)
    if not isinstance(place, Path) or not (place / MANIFEST_NAME).exists():
        return None
    manifest = read_manifest(place)
    return manifest if manifest.profile is Profile.PRIVATE_WEIGHTS else None


def _note_disclosure(server: str, licence: Licence) -> None:
    if licence.disclosure is None:
        output.note(
            "No limit is set to what this licensee can learn of the weights: after enough tokens they can be solved."
        )
    elif (manifest := _private_manifest(server)) is not None:
        limit = licence.disclosure
        tokens = min(licensed_tokens(limit, group, licence.check_sets) for group in manifest.groups)
        output.note(
            f"It ends after {tokens:,} tokens, when answers hold {limit:.0%} of the bits that solve a layer's weights; "
            "`confide licence change --disclosure N` or --lift-disclosure allows more."
        )


def _limit(value: int | None) -> str:
    return "no limit" if value is None else f"{value:,}"


def _table(*names: str, numbers: tuple[str, ...]) -> Table:
    table = Table(show_edge=False, pad_edge=False)
    for place, name in enumerate(names):
        table.add_column(name, no_wrap=place > 0)
    for name in numbers:
        table.add_column(name, justify="right", no_wrap=True)
    return table
