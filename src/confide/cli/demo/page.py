"""`confide demo page`: a page to chat on, and a model behind it in three ways: simulated, encrypted, tampered with."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Annotated

import typer

from confide.cli import output
from confide.cli.demo.enclave import EnclaveDemo
from confide.cli.demo.process import serving
from confide.cli.demo.tampering import damage_evidence, tampering_relay
from confide.cli.options import Json

NAME = "fairy tales"


def command(
    port: Annotated[int, typer.Option(help="Port of the page; 0 takes a free one.", min=0, max=65535)] = 0,
    json: Json = False,
) -> None:
    """Serve the page, with a model that is verified, one whose server cheats, and one that computes on ciphertext."""
    from confide.cli.proxy import serve
    from confide.proxy.settings import ModelSettings

    def announce(url: str, page: str) -> None:
        if json:
            output.result({"url": url, "page": page})
            return
        output.console.print(f"\nOpen this in your browser: [bold]{page}[/]", soft_wrap=True)
        output.note(
            "The model knows fairy tales and little else: begin one, and it goes on. Of its servers one is simulated, "
            "one is tampered with and refused, and one computes on encrypted numbers. Ctrl-C stops all of them."
        )

    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="confide-demo-")))
        # This proxy's page and state are the demo's own: one that its user runs is left alone.
        stack.enter_context(_home(folder / "home"))
        demo = EnclaveDemo(folder, show=not json)
        server, _ = stack.enter_context(demo.serving())
        relay = stack.enter_context(tampering_relay(server["url"], {"/attestation": damage_evidence}))
        if not json:
            output.console.print("\n[bold cyan]3  The same model cut in two, with a server that sees ciphertext[/]")
        shell, address, owner, licence = stack.enter_context(_layers(folder / "split"))
        root = str(demo.root)
        models = [
            ModelSettings(name=NAME, url=server["url"], simulated_root=root),
            ModelSettings(name=f"{NAME}, encrypted", shell=str(shell), server=address, owner=owner),
            ModelSettings(name=f"{NAME}, tampered with", url=relay, simulated_root=root),
        ]
        serve(models, licence, ("127.0.0.1", port), announce)


@contextmanager
def _home(folder: Path) -> Iterator[None]:
    before = os.environ.get("CONFIDE_HOME")
    os.environ["CONFIDE_HOME"] = str(folder)
    try:
        yield
    finally:
        if before is None:
            del os.environ["CONFIDE_HOME"]
        else:
            os.environ["CONFIDE_HOME"] = before


@contextmanager
def _layers(folder: Path) -> Iterator[tuple[Path, str, str, str]]:
    """The demo model on a layer server: the client's folder, the address, the owner and a licence."""
    from confide.ledger.licences import licence_book
    from confide.models.source import open_model
    from confide.models.split import split
    from confide.packages.owner import OwnerKey

    owner = OwnerKey.generate()
    summary = split(open_model("demo"), folder, owner=owner)
    with licence_book(summary.server / "state") as book:
        _, licence = book.create("demo", disclosure=None)  # here the licensee is the owner
    with serving("serve", str(summary.server), "--port", "0") as server:
        yield summary.client, server["url"], str(owner.public), licence
