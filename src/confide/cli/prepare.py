"""`confide prepare`: the offline phase, ahead of time."""

from typing import Annotated

import typer

from confide.cli import output
from confide.cli.options import Ca, Checks, InsecureNoTls, Json, Licence, Packs, Patience, Shell, TrustedOwner


def command(
    shell: Shell,
    server: Annotated[str, typer.Option(help="Address of the layer server, such as wss://layers.example:8470.")],
    tokens: Annotated[int, typer.Option(help="Masks to prepare, in tokens; rounds up to whole packs.", min=1)] = 1,
    owner: TrustedOwner = None,
    packs: Packs = None,
    checks: Checks = None,
    licence: Licence = "",
    ca: Ca = None,
    patience: Patience = 60,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Prepare masks for tokens to come. Safe to interrupt: the same command goes on where it stopped."""
    import time

    from confide.hybrid.client.client import HybridClient

    with HybridClient(
        shell,
        server,
        owner=owner,
        packs=packs,
        checks=checks,
        licence=licence,
        ca=ca,
        patience=patience,
        insecure_no_tls=insecure_no_tls,
    ) as client:
        traffic = client.traffic
        count = -(-tokens // traffic.tokens)
        travel = count * (traffic.bytes_up + traffic.bytes_down)
        disk = count * traffic.bytes_on_disk
        output.note(
            f"{tokens:,} tokens round up to {count * traffic.tokens:,} ({count} pack{'s' if count > 1 else ''}): "
            f"{output.megabytes(travel)} will travel, {output.megabytes(disk)} on disk."
        )
        started = time.perf_counter()
        with output.preparing(quiet=json) as progress:
            made = client.prepare(tokens, progress)
        seconds = time.perf_counter() - started
        left = client.tokens_left
        if json:
            output.result(
                {
                    "tokens_prepared": sum(pack.tokens_left for pack in made),
                    "tokens_left": left,
                    "bytes_up": count * traffic.bytes_up,
                    "bytes_down": count * traffic.bytes_down,
                    "bytes_on_disk": disk,
                    "seconds": seconds,
                }
            )
        else:
            output.console.print(f"Prepared in {seconds:.1f} s; masks for [bold]{left:,}[/] tokens are ready.")
