"""`confide split`: cut a model in two."""

import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

from confide.cli import output
from confide.cli.calibration import calibration_texts
from confide.cli.on_ray import OnRay, mapped_on
from confide.cli.options import ActivationBits, Calibrate, Json, OwnerFile, Protect, WeightBits
from confide.cli.output import megabytes
from confide.mapped import on_cores
from confide.rlwe.parameters import Profile

if TYPE_CHECKING:
    from confide.packages.manifest import Provenance


def command(
    model: Annotated[str, typer.Argument(help="`demo`, a local Hugging Face folder, or a hub id.")],
    out: Annotated[Path, typer.Option(help="Where to write client/ and server/.")],
    protect: Protect = "all",
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    calibrate: Calibrate = None,
    profile: Annotated[
        Profile, typer.Option(help="Whether the weights are secret too, or only what users ask.")
    ] = Profile.PRIVATE_WEIGHTS,
    hint: Annotated[
        bool, typer.Option("--hint/--no-hint", help="Make the hint now, or later with `confide hint make`.")
    ] = True,
    epoch: Annotated[
        int, typer.Option(help="Number of the public polynomials; another one gives others.", min=0, max=2**32 - 1)
    ] = 0,
    release: Annotated[str, typer.Option(help="What you call this release of the model, such as 2.1.")] = "",
    supersedes: Annotated[
        Path | None,
        typer.Option(help="Client or server folder of the release whose place this one takes; its users are told."),
    ] = None,
    merge_adapter: Annotated[
        Path | None, typer.Option(help="Folder of a LoRA adapter, as peft saves it, to merge into the model first.")
    ] = None,
    owner: OwnerFile = None,
    ray: OnRay = None,
    json: Json = False,
) -> None:
    """Cut a model into a shell for the client and int8 matrices for an untrusted server."""
    from confide.cli.owner import read_or_make_key
    from confide.models.adapter import read_adapter
    from confide.models.precision import Recipe
    from confide.models.source import open_model
    from confide.models.split import split

    output.quiet_transformers()
    recipe = Recipe.parse(weight_bits or (), activation_bits or ())
    source = open_model(model)
    if merge_adapter is not None:
        source = replace(source, adapter=read_adapter(merge_adapter))
    key = read_or_make_key(owner)
    provenance = _provenance(release, supersedes, source.adapter.digest if source.adapter else "")
    with mapped_on(ray, on_cores) as mapped, output.messages.status("quantizing and splitting") as status:
        summary = split(
            source,
            out,
            owner=key,
            protect=protect,
            recipe=recipe,
            texts=calibration_texts(source, calibrate),
            profile=profile,
            hint=hint,
            epoch=epoch,
            provenance=provenance,
            progress=lambda _, done, total: status.update(f"quantized {done} of {total} layer groups"),
            on_hint=lambda done, total: status.update(f"making the hint: {done / total:.0%} of {megabytes(total)}"),
            mapped=mapped,
        )
    if json:
        output.result(
            {
                "client": str(summary.client),
                "server": str(summary.server),
                "groups": summary.groups,
                "protected_parameters": summary.protected_parameters,
                "total_parameters": summary.total_parameters,
                "protected_share": summary.protected_share,
                "profile": profile.value,
                "encryption": list(summary.parameter_names),
                "client_bytes": summary.client_bytes,
                "server_bytes": summary.server_bytes,
                "hint_bytes": summary.hint_bytes,
                "owner": str(key.public),
                "release": release,
                "adapter": provenance.adapter or None,
            }
        )
        return
    output.console.print(
        f"Protected {summary.protected_parameters:,} of {summary.total_parameters:,} parameters "
        f"({summary.protected_share:.1%}) in {summary.groups} layer groups; "
        f"encryption {', '.join(summary.parameter_names)}."
    )
    output.console.print(f"Signed by {key.public.fingerprint}; publish your key: [bold]{key.public}[/]", soft_wrap=True)
    client, server = escape(str(summary.client)), escape(str(summary.server))
    output.console.print(f"For the client:  [bold]{client}[/]{_hint_note(summary.hint_bytes, profile)}")
    output.console.print(f"For the server:  [bold]{server}[/]   next: confide serve {server}")


def _provenance(release: str, supersedes: Path | None, adapter: str) -> "Provenance":
    from confide.packages.manifest import Provenance, read_kind
    from confide.packages.signing import open_package, superseded_by
    from confide.packages.trusted_owners import trusted_owners

    if not re.fullmatch(r"[A-Za-z0-9_.+\-]{0,64}", release):
        raise typer.BadParameter("--release is at most 64 letters, digits and . _ + -")
    if supersedes is None:
        return Provenance(release, adapter=adapter)
    earlier = open_package(supersedes, read_kind(supersedes), trusted_owners())
    return Provenance(release, superseded_by(earlier), adapter)


def _hint_note(size: int, profile: Profile) -> str:
    if size:
        return f"   with a hint of {megabytes(size)}"
    return "" if profile is Profile.OPEN_WEIGHTS else "   without its hint: `confide hint make` it, clients need it"
