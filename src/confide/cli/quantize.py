"""`confide quantize`: a model as one GGUF file for llama.cpp."""

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.calibration import calibration_texts
from confide.cli.on_ray import OnRay, mapped_on
from confide.cli.options import Calibrate, Json
from confide.mapped import one_by_one
from confide.models.gguf.types import GgufType


def command(
    model: Annotated[str, typer.Argument(help="`demo`, a local Hugging Face folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="The GGUF file to write.", dir_okay=False)],
    type: Annotated[GgufType, typer.Option(help="Bits of most weights; see docs/serving.md.")] = GgufType.Q8_0,
    calibrate: Calibrate = None,
    ray: OnRay = None,
    json: Json = False,
) -> None:
    """Write a model as GGUF for llama.cpp, in fewer bits.

    Of GPT-2, Llama, Mistral, Qwen 2 and 3, Gemma 1 to 3, Phi, GPT-NeoX, Falcon or MPT.
    """
    from confide.models.gguf.write import write_gguf
    from confide.models.source import open_model

    output.quiet_transformers()
    source = open_model(model)
    with mapped_on(ray, one_by_one) as mapped, output.messages.status("reading the model") as status:
        summary = write_gguf(
            source,
            out,
            type,
            lambda done, total: status.update(f"wrote {done} of {total} tensors"),
            calibration_texts(source, calibrate),
            mapped,
            keep=ray is not None,
        )
    if json:
        output.result(
            {
                "file": str(summary.path),
                "type": summary.type.value,
                "tensors": summary.tensors,
                "parameters": summary.parameters,
                "bytes": summary.size,
                "context": summary.context,
                "wider": summary.wider,
            }
        )
        return
    output.console.print(
        f"Wrote {summary.parameters:,} parameters as {summary.type}: {output.megabytes(summary.size)} "
        f"in [bold]{escape(str(summary.path))}[/], for {summary.context:,} tokens of context"
    )
    for kind in dict.fromkeys(summary.wider.values()):
        first, *more = (name for name, found in summary.wider.items() if found == kind)
        others = f" and {len(more)} more" if more else ""
        output.note(f"Written as {kind}, since rows or weights do not fit {type}: {first}{others}.")
