"""`confide seal`: encrypt a model for a key, and sign it."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.options import Json, OwnerFile
from confide.packages.sealed.key import ModelKey


def command(
    model: Annotated[str, typer.Argument(help="`demo`, a local Hugging Face folder, or a .gguf file.")],
    out: Annotated[Path, typer.Option(help="The folder to write; it must not exist.", metavar="PACKAGE")],
    key: Annotated[Path, typer.Option(help="File of the model key, 32 bytes; made where there is none.")],
    owner: OwnerFile = None,
    json: Json = False,
) -> None:
    """Encrypt a model so that only holders of its key can run it, and sign it so that nobody else can change it."""
    from confide.cli.owner import read_or_make_key
    from confide.packages.sealed.contents import contents_of
    from confide.packages.sealed.write import require_absent, seal_model

    require_absent(out)
    contents = contents_of(model)
    signer = read_or_make_key(owner)
    model_key = _read_or_make(key)
    with output.counting_bytes("sealing", contents.size, quiet=json) as on_chunk:
        manifest = seal_model(contents, out, key=model_key, owner=signer, on_chunk=on_chunk)
    if json:
        output.result(
            {
                "package": str(out),
                "name": manifest.name,
                "architecture": manifest.architecture,
                "weights": manifest.weights.value,
                "quantization": manifest.quantization,
                "bytes": manifest.size,
                "model_digest": manifest.model_digest,
                "key": manifest.key,
                "owner": str(signer.public),
            }
        )
        return
    output.console.print(
        f"Sealed {manifest.name} ({manifest.architecture}, {manifest.quantization}): "
        f"{output.megabytes(manifest.size)} in {len(manifest.files)} files."
    )
    output.console.print(f"Model digest  {manifest.model_digest}   for policies and attestation", soft_wrap=True)
    output.console.print(f"Model key     {manifest.key}   in {escape(str(key))}: keep it secret", soft_wrap=True)
    output.console.print(
        f"Signed by     {signer.public.fingerprint}; publish your key: [bold]{signer.public}[/]", soft_wrap=True
    )
    output.console.print(f"Next: confide open --verify {escape(str(out))} --key {escape(str(key))}", soft_wrap=True)


def _read_or_make(path: Path) -> ModelKey:
    if path.exists():
        return ModelKey.read(path)
    key = ModelKey.generate()
    key.write(path)
    output.note(
        f"There was no model key in {path}: one was made. Keep a copy; without it the package cannot be opened."
    )
    return key
