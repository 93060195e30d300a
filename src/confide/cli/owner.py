"""`confide owner`: the key that signs a model's packages, and the keys of others that this machine trusts."""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, OwnerFile
from confide.disk.home import make_home
from confide.packages.owner import (
    PASSPHRASE_VARIABLE,
    OwnerKey,
    OwnerPublicKey,
    default_key_path,
    passphrase_from_environment,
)
from confide.packages.trusted_owners import trust, trusted_owners

OWN_NAME = "own key"

app = typer.Typer(name="owner", help="Keys that sign models: your own, and those you trust.", no_args_is_help=True)


@app.command("init")
def init(
    out: Annotated[Path | None, typer.Option(help="The file to make; owner.key in your Confide folder if not.")] = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Encrypt the file with a passphrase.")] = False,
    json: Json = False,
) -> None:
    """Make a key to sign models with. An existing file is never overwritten."""
    path = out or _default_path()
    key = make_key(path, _passphrase(new=True) if passphrase else None)
    _show(key.public, path, json=json)


@app.command("show")
def show(owner: OwnerFile = None, json: Json = False) -> None:
    """Show the public half of your key: what you publish and users pin."""
    path = owner or default_key_path()
    _show(OwnerKey.read(path, _passphrase).public, path, json=json)


@app.command("trust")
def trust_key(
    key: Annotated[str, typer.Argument(help="The public key that an owner published.", metavar="KEY")],
    name: Annotated[str, typer.Option(help="What you call the owner.")] = "",
    json: Json = False,
) -> None:
    """Trust whatever this owner signs."""
    owner = OwnerPublicKey.parse(key)
    trust(owner, name)
    if json:
        output.result(_described(owner, trusted_owners()[owner]))
    else:
        output.console.print(f"Trusted from now on: [bold]{owner.fingerprint}[/]")


@app.command("list")
def list_keys(json: Json = False) -> None:
    """List the owners you trust."""
    owners = trusted_owners()
    if json:
        output.result({"owners": [_described(owner, name) for owner, name in owners.items()]})
        return
    for owner, name in owners.items():
        output.console.print(f"[bold]{owner.fingerprint}[/]  {owner}  {escape(name)}", soft_wrap=True)
    if not owners:
        output.note("Nobody is trusted yet; `confide owner trust KEY` adds an owner.")


def make_key(path: Path, passphrase: str | None = None) -> OwnerKey:
    """A new key in a new file, trusted on this machine."""
    key = OwnerKey.generate()
    key.write(path, passphrase)
    trust(key.public, OWN_NAME)
    return key


def read_or_make_key(path: Path | None) -> OwnerKey:
    """The key of a file that the user names; else that of the usual place, made on first use."""
    if path is None and not default_key_path().exists():
        path = _default_path()
        output.note(f"You have no owner key yet: one is made in {path}. Keep a copy of it; users will pin it.")
        return make_key(path)
    return read_key(path)


def read_key(path: Path | None) -> OwnerKey:
    """The key of a file that the user names; else that of the usual place. OwnerKeyError where there is none."""
    return OwnerKey.read(path or default_key_path(), _passphrase)


def _default_path() -> Path:
    make_home()
    return default_key_path()


def _passphrase(*, new: bool = False) -> str:
    if PASSPHRASE_VARIABLE in os.environ or not sys.stdin.isatty():
        return passphrase_from_environment()
    text = "New passphrase" if new else "Passphrase of the owner key"
    entered: str = typer.prompt(text, hide_input=True, confirmation_prompt=new, err=True)
    return entered


def _show(key: OwnerPublicKey, path: Path, *, json: bool) -> None:
    if json:
        output.result({"owner": str(key), "fingerprint": key.fingerprint, "file": str(path)})
        return
    output.console.print(f"Public key   [bold]{key}[/]\nFingerprint  [bold]{key.fingerprint}[/]")
    output.console.print(f"Private key  {escape(str(path))}", soft_wrap=True)


def _described(owner: OwnerPublicKey, name: str) -> dict[str, str]:
    return {"owner": str(owner), "fingerprint": owner.fingerprint, "name": name}
