"""`confide owner`: the key that signs a model's packages, and the keys of others that this machine trusts."""

import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, OwnerFile
from confide.disk.home import make_home
from confide.disk.secrets import OWNER_PASSPHRASE, find_secret
from confide.errors import OwnerKeyError
from confide.packages.owner import (
    OwnerKey,
    OwnerPublicKey,
    default_key_path,
    unattended_passphrase,
)
from confide.packages.signing import STATEMENTS_NAME
from confide.packages.succession import (
    Statement,
    Succession,
    Withdrawal,
    publish_statement,
    read_statements,
)
from confide.packages.trusted_owners import (
    OwnerBook,
    accept,
    distrust,
    find_owner,
    read_owners,
    trust,
    trusted_owners,
)

OWN_NAME = "own key"

Statements = Annotated[
    Path | None, typer.Option(help=f"The file to add it to; {STATEMENTS_NAME} in your Confide folder if not.")
]

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


@app.command("distrust")
def distrust_key(
    owner: Annotated[str, typer.Argument(help="The owner's key, fingerprint or name.", metavar="OWNER")],
    json: Json = False,
) -> None:
    """Trust this owner no more, whatever is signed for the key. `confide owner trust KEY` takes it back."""
    key = find_owner(owner)
    distrust(key)
    if json:
        output.result(_described(key, read_owners().names[key]))
    else:
        output.console.print(f"Not trusted any more: [bold]{key.fingerprint}[/]")


@app.command("rotate")
def rotate(
    out: Annotated[Path, typer.Option(help="The file to make, for the new key.")],
    owner: OwnerFile = None,
    statements: Statements = None,
    passphrase: Annotated[bool, typer.Option("--passphrase", help="Encrypt the file with a passphrase.")] = False,
    json: Json = False,
) -> None:
    """Make a key that takes the place of yours, and a statement that both sign. Publish the statement."""
    old = read_key(owner)
    new = OwnerKey.generate()
    trust(old.public)
    if later := read_owners().later(old.public):
        raise OwnerKeyError(
            f"{later[-1].fingerprint} took the place of this key already, and it may name one successor only; rotate "
            "the latest key, with --owner."
        )
    new.write(out, _passphrase(new=True) if passphrase else None)
    path = _publish(statements, Succession.make(old, new))
    if json:
        output.result(
            {"owner": str(new.public), "fingerprint": new.public.fingerprint, "file": str(out)}
            | {"succeeds": str(old.public), "statements": str(path)}
        )
        return
    _show(new.public, out, json=False)
    output.console.print(f"Statement    {escape(str(path))}", soft_wrap=True)
    output.note(
        f"Publish the statement: users take it in with `confide owner accept`. Sign packages anew with "
        f"`confide owner sign FOLDER --owner {out}`. The old key counts until `confide owner withdraw`."
    )


@app.command("withdraw")
def withdraw(
    key: Annotated[str, typer.Argument(help="The public key that shall count no more.", metavar="KEY")],
    owner: OwnerFile = None,
    statements: Statements = None,
    json: Json = False,
) -> None:
    """Say that nothing signed by a key counts any more, for good. --owner is that key, or one that took its place."""
    withdrawn, signer = OwnerPublicKey.parse(key), read_key(owner)
    if signer.public != withdrawn and signer.public not in read_owners().later(withdrawn):
        raise OwnerKeyError(
            f"The key {signer.public.fingerprint} did not take the place of {withdrawn.fingerprint}, so nobody would "
            "take its word; give the file of that key, or of a later one, with --owner."
        )
    path = _publish(statements, Withdrawal.make(withdrawn, signer))
    if json:
        output.result({"withdrawn": str(withdrawn), "statements": str(path)})
    else:
        output.console.print(
            f"Withdrawn: [bold]{withdrawn.fingerprint}[/]. Publish {escape(str(path))}", soft_wrap=True
        )


@app.command("accept")
def accept_statements(
    statements: Annotated[Path, typer.Argument(help="What an owner published.", metavar="STATEMENTS")],
    json: Json = False,
) -> None:
    """Take in what owners you trust say of their keys: which took another's place, and which are withdrawn."""
    new = accept(read_statements(statements))
    if json:
        output.result({"accepted": [_said(statement) for statement in new]})
        return
    for statement in new:
        output.console.print(_sentence(statement))
    if not new:
        output.note("Nothing here is new, or nothing of it is about an owner you trust.")


@app.command("sign")
def sign(
    package: Annotated[Path, typer.Argument(help="A folder of `confide split` or `confide seal`.", metavar="FOLDER")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Sign a package with a key that took the place of the one it is signed with. Its files are verified first."""
    from confide.packages.manifest import PackageKind, read_kind
    from confide.packages.sealed.manifest import write_signed
    from confide.packages.sealed.package import SealedPackage
    from confide.packages.signing import sign_again

    key = read_key(owner)
    same = {key.public, *read_owners().other_keys(key.public)}
    if (kind := read_kind(package)) is PackageKind.SEALED:
        sealed = SealedPackage.open(package, same)
        sealed.verify_ciphertext()
        write_signed(package, sealed.manifest, key)
    else:
        sign_again(package, kind, same, key)
    if json:
        output.result({"package": str(package), "owner": str(key.public)})
    else:
        output.console.print(f"Signed {escape(str(package))} as [bold]{key.public.fingerprint}[/]", soft_wrap=True)


@app.command("list")
def list_keys(json: Json = False) -> None:
    """List the owners you trust, and the keys that count no more."""
    book = read_owners()
    if json:
        owners = [{**_described(owner, name), **_successor(book, owner)} for owner, name in book.trusted.items()]
        gone = {"distrusted": sorted(map(str, book.distrusted)), "withdrawn": sorted(map(str, book.withdrawn))}
        output.result({"owners": owners} | gone)
        return
    for owner, name in book.trusted.items():
        later = book.successors.get(owner)
        note = f"  (then {later.fingerprint})" if later else ""
        output.console.print(f"[bold]{owner.fingerprint}[/]  {owner}  {escape(name)}{note}", soft_wrap=True)
    for word, keys in (("distrusted", book.distrusted), ("withdrawn", book.withdrawn)):
        for owner in sorted(keys, key=str):
            output.console.print(f"[dim]{owner.fingerprint}  {owner}  {word}[/]", soft_wrap=True)
    if not book.trusted:
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
    if not sys.stdin.isatty() or find_secret(OWNER_PASSPHRASE):
        return unattended_passphrase()
    text = "New passphrase" if new else "Passphrase of the owner key"
    entered: str = typer.prompt(text, hide_input=True, confirmation_prompt=new, err=True)
    return entered


def _show(key: OwnerPublicKey, path: Path, *, json: bool) -> None:
    if json:
        output.result({"owner": str(key), "fingerprint": key.fingerprint, "file": str(path)})
        return
    output.console.print(f"Public key   [bold]{key}[/]\nFingerprint  [bold]{key.fingerprint}[/]")
    output.console.print(f"Private key  {escape(str(path))}", soft_wrap=True)


def _publish(statements: Path | None, statement: Statement) -> Path:
    """Add a statement to a file, and take it in on this machine."""
    path = statements or make_home() / STATEMENTS_NAME
    publish_statement(path, statement)
    accept([statement])
    return path


def _said(statement: Statement) -> dict[str, str]:
    if isinstance(statement, Succession):
        return {"kind": "succession", "owner": statement.owner, "successor": statement.successor}
    return {"kind": "withdrawal", "owner": statement.owner}


def _sentence(statement: Statement) -> str:
    key = f"[bold]{OwnerPublicKey.parse(statement.owner).fingerprint}[/]"
    if isinstance(statement, Succession):
        successor = OwnerPublicKey.parse(statement.successor)
        return f"Trusted beside {key}, whose place it takes: [bold]{successor.fingerprint}[/]"
    return f"Withdrawn, and not trusted any more: {key}"


def _successor(book: OwnerBook, owner: OwnerPublicKey) -> dict[str, str | None]:
    later = book.successors.get(owner)
    return {"successor": str(later) if later else None}


def _described(owner: OwnerPublicKey, name: str) -> dict[str, str]:
    return {"owner": str(owner), "fingerprint": owner.fingerprint, "name": name}
