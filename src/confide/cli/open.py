"""`confide open`: what a sealed model is, and whether it is whole and what its owner signed."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, TrustedOwner
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage
from confide.packages.trusted_owners import accepted_owners, trusted_owners


def command(
    package: Annotated[Path, typer.Argument(help="The folder that `confide seal` wrote.", metavar="PACKAGE")],
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            help="Check every byte of the ciphertext; with --key of the model too, and have it make a token.",
        ),
    ] = False,
    key: Annotated[Path | None, typer.Option(help="File of the model key, for --verify.")] = None,
    owner: TrustedOwner = None,
    json: Json = False,
) -> None:
    """Show what a sealed model is, and with --verify that all of it is what its owner signed. Writes nothing."""
    if key and not verify:
        raise typer.BadParameter("--key is for --verify; what is shown without that needs no key")
    sealed = SealedPackage.open(package, accepted_owners(owner))
    if verify:
        _verify(sealed, ModelKey.read(key) if key else None, quiet=json)
    if json:
        output.result(_facts(sealed) | {"verified": verify, "decrypted": key is not None})
    else:
        _show(sealed)
        output.console.print(_verdict(verify=verify, decrypted=key is not None))


def _verify(sealed: SealedPackage, key: ModelKey | None, *, quiet: bool) -> None:
    unlocked = sealed.unlock(key) if key else None
    passes = 2 if unlocked else 1
    with output.counting_bytes("verifying", passes * sealed.manifest.size, quiet=quiet) as on_chunk:
        if unlocked:  # first, for it can say which chunk is damaged
            unlocked.verify(on_chunk)
        sealed.verify_ciphertext(on_chunk)
    if unlocked:
        from confide.enclave.boot import try_out

        output.quiet_transformers()
        try_out(unlocked)


def _facts(sealed: SealedPackage) -> dict[str, object]:
    manifest = sealed.manifest
    return {
        "name": manifest.name,
        "architecture": manifest.architecture,
        "weights": manifest.weights.value,
        "quantization": manifest.quantization,
        "bytes": manifest.size,
        "files": [file.name for file in manifest.files],
        "model_digest": manifest.model_digest,
        "key": manifest.key,
        "owner": str(sealed.owner),
    }


def _show(sealed: SealedPackage) -> None:
    manifest = sealed.manifest
    called = trusted_owners().get(sealed.owner)
    about = f"{manifest.architecture}, {manifest.quantization}"
    rows = {
        "Model": f"[bold]{escape(manifest.name)}[/]: {escape(about)}, {manifest.weights}",
        "Size": f"{output.megabytes(manifest.size)} in {len(manifest.files)} files",
        "Model digest": manifest.model_digest,
        "Model key": manifest.key,
        "Signed by": sealed.owner.fingerprint + (f" ({escape(called)})" if called else ""),
    }
    for name, value in rows.items():
        output.console.print(f"{name:<13} {value}", soft_wrap=True)


def _verdict(*, verify: bool, decrypted: bool) -> str:
    if decrypted:
        return (
            "[green]Verified:[/] every chunk decrypts with this key, the model is what its owner signed, and it runs."
        )
    if verify:
        return (
            "[green]Verified:[/] the ciphertext is what its owner signed. With --key the model itself is checked too."
        )
    return "The signature holds and no file is missing. Their content was not checked: use --verify."
