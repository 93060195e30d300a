"""`confide guard`: the rules of a guard, signed, and tried on a text."""

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import Json, OwnerFile, require_text
from confide.errors import InvalidPackage

app = typer.Typer(name="guard", help="Rules of a guard that stands before a model.", no_args_is_help=True)

_MAX_BYTES = 2 << 20
GuardFolder = Annotated[Path, typer.Argument(help="What `confide guard sign` wrote.", metavar="GUARD")]


@app.callback()
def guard() -> None:
    """Rules of a guard that stands before a model."""


@app.command("sign")
def sign(
    rules: Annotated[Path, typer.Argument(help="TOML: name, refusal and phrases, see docs/graph.md.", metavar="FILE")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Sign rules, so that a guard's evidence names them."""
    from confide.cli.owner import read_or_make_key
    from confide.packages.guard import sign_rules
    from confide.packages.sealed.draft import require_absent

    require_absent(out)
    content = read_file(rules, _MAX_BYTES, InvalidPackage(f"{rules} is larger than 2 MiB; leave phrases out."))
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise InvalidPackage(f"{rules} is no text; a guard's rules are a TOML file.") from None
    signer = read_or_make_key(owner)
    manifest = sign_rules(text, out, signer)
    facts: dict[str, Any] = {
        "name": manifest.name,
        "phrases": len(manifest.phrases),
        "digest": manifest.digest,
        "owner": str(signer.public),
    }
    if json:
        output.result({"package": str(out), **facts})
        return
    output.console.print(f"Signed {escape(manifest.name)}: {len(manifest.phrases):,} phrases.")
    output.console.print(f"Digest     {manifest.digest}   for the graph", soft_wrap=True)
    output.console.print(f"Signed by  {signer.public.fingerprint}", soft_wrap=True)


@app.command("try")
def try_(
    guard: GuardFolder,
    text: Annotated[str, typer.Argument(help="What somebody might ask.")],
    json: Json = False,
) -> None:
    """Say whether a text would be handed on. Writes nothing, and keeps nothing."""
    from confide.packages.guard import GuardPackage

    require_text(text, "the text")
    package = GuardPackage.open(guard)
    refused = package.rules.match(text)
    if json:
        output.result({"refused": refused, "digest": package.manifest.digest})
    elif refused:
        output.console.print(Text(f"Refused: {package.manifest.refusal}"))
    else:
        output.console.print("Handed on.")
