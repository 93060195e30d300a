"""`confide seal`: encrypt a model for a key, and sign it."""

from functools import partial
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
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="Text file of prompts, one to a line, for the known answers that servers must give; general ones "
            "without.",
            exists=True,
            dir_okay=False,
        ),
    ] = None,
    insecure_no_self_test: Annotated[
        bool,
        typer.Option(
            "--insecure-no-self-test",
            help="Try the model out, but keep no known answers; `confide serve` then refuses it unless told otherwise.",
        ),
    ] = False,
    json: Json = False,
) -> None:
    """Encrypt a model so that only holders of its key can run it, and sign it so that nobody else can change it.

    What was sealed is loaded and asked as `confide serve` does it, and refused where that fails.
    """
    from confide.cli.owner import read_or_make_key
    from confide.enclave.boot import examine, try_out
    from confide.packages.sealed.contents import contents_of
    from confide.packages.sealed.draft import require_absent
    from confide.packages.sealed.package import SealedPackage
    from confide.packages.sealed.write import seal_model

    if prompts and insecure_no_self_test:
        raise typer.BadParameter("give either --prompts or --insecure-no-self-test")
    output.quiet_transformers()
    require_absent(out)
    contents = contents_of(model)
    signer = read_or_make_key(owner)
    model_key = read_or_make(key)
    ask = partial(examine, prompts=_lines(prompts)) if prompts else examine
    with output.counting_bytes("sealing", contents.size, quiet=json) as on_chunk:
        manifest = seal_model(
            contents,
            out,
            key=model_key,
            owner=signer,
            examine=try_out if insecure_no_self_test else ask,
            on_chunk=on_chunk,
        )
    known = SealedPackage.open(out).unlock(model_key).known_answers()
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
                "known_tokens": known.tokens if known else 0,
                "weights_digest": known.weights if known else "",
            }
        )
        return
    output.console.print(
        f"Sealed {escape(manifest.name)} ({escape(manifest.architecture)}, {escape(manifest.quantization)}): "
        f"{output.megabytes(manifest.size)} in {len(manifest.files)} files."
    )
    output.console.print(f"Model digest  {manifest.model_digest}   for policies and attestation", soft_wrap=True)
    if known:
        output.console.print(f"Weights digest  {known.weights}   as {known.engine} holds them", soft_wrap=True)
        output.console.print(f"Known answers  {len(known.answers)} with {known.tokens} tokens, which servers must give")
    else:
        output.console.print("No known answers: `confide serve` refuses it unless told to skip the self-test.")
    output.console.print(f"Model key     {manifest.key}   in {escape(str(key))}: keep it secret", soft_wrap=True)
    output.console.print(
        f"Signed by     {signer.public.fingerprint}; publish your key: [bold]{signer.public}[/]", soft_wrap=True
    )
    output.console.print(f"Next: confide open --verify {escape(str(out))} --key {escape(str(key))}", soft_wrap=True)


def _lines(path: Path) -> list[str]:
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError):
        raise typer.BadParameter(f"{path} is no text that can be read") from None
    if not lines:
        raise typer.BadParameter(f"{path} has no prompts")
    return lines


def read_or_make(path: Path) -> ModelKey:
    """The key in a file, made on first use."""
    if path.exists():
        return ModelKey.read(path)
    key = ModelKey.generate()
    key.write(path)
    output.note(
        f"There was no model key in {path}: one was made. Keep a copy; without it the package cannot be opened."
    )
    return key
