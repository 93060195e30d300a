"""`confide collection`: documents of your own at a service that searches them, under a key that you alone keep."""

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.markup import escape
from rich.text import Text

from confide.cli import output
from confide.cli.options import (
    Ca,
    InsecureNoTls,
    Json,
    LicenceFile,
    Offline,
    SimulatedRoot,
    UserPolicy,
    licence_key,
    require_text,
)
from confide.printable import printable

if TYPE_CHECKING:
    from confide.client.collections import OwnCollection

app = typer.Typer(name="collection", help="Documents of your own, at a service that is verified.", no_args_is_help=True)

Url = Annotated[
    str, typer.Argument(help="A corpus service that takes documents, or a model before one.", metavar="URL")
]
KeyFile = Annotated[Path, typer.Argument(help="The collection's key file.", metavar="KEY")]
_SHOWN = 400
"""Characters of a chunk on a terminal."""


@app.callback()
def collection() -> None:
    """Documents of your own, at a service that is verified."""


@app.command("create")
def create(
    key: Annotated[Path, typer.Argument(help="The key file to make.", metavar="KEY")], json: Json = False
) -> None:
    """Make the key of a new collection. Whoever has it can read the documents, and without it nobody can."""
    from confide.packages.sealed.key import ModelKey
    from confide.rag.collection import collection_id

    made = ModelKey.generate()
    made.write(key)
    store = f"vs_{collection_id(made)}"
    if json:
        output.result({"key": str(key), "vector_store": store})
        return
    output.console.print(f"Key           {escape(str(key))}: keep it secret, and a copy of it", soft_wrap=True)
    output.console.print(f"Vector store  {store}", soft_wrap=True)
    output.console.print(f"Next: confide collection add URL {escape(str(key))} DOCUMENT...", soft_wrap=True)


@app.command("add")
def add(
    url: Url,
    key: KeyFile,
    documents: Annotated[list[Path], typer.Argument(help=".txt, .md, .html, .pdf or .docx.", metavar="DOCUMENT...")],
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Have documents read and searched. Each is sealed under the key before it is kept."""
    added = {}
    with _opened(url, key, policy, simulated_root, licence_file, ca, offline=offline, plain=insecure_no_tls) as own:
        for path in documents:
            with output.messages.status(f"[dim]adding {escape(printable(path.name))}"):
                added[str(path)] = own.add(path)
            if not json:
                output.console.print(Text(f"{added[str(path)]}  {printable(path.name)}"), soft_wrap=True)
        store = own.vector_store
    if json:
        output.result({"vector_store": store, "added": added})


@app.command("list")
def list_(
    url: Url,
    key: KeyFile,
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Show which documents there are."""
    with _opened(url, key, policy, simulated_root, licence_file, ca, offline=offline, plain=insecure_no_tls) as own:
        rows = [
            {"id": one.id, "name": one.filename, "bytes": one.bytes, "created": one.created_at}
            for one in own.documents()
        ]
        store = own.vector_store
    if json:
        output.result({"vector_store": store, "documents": rows})
        return
    for row in rows:
        when = f"{datetime.fromtimestamp(row['created'], UTC):%Y-%m-%d %H:%M}"
        line = Text(f"{row['id']}  {when}  {row['bytes']:>12,}  ", "dim").append(printable(row["name"]), "not dim")
        output.console.print(line, soft_wrap=True)
    output.console.print(f"{len(rows):,} documents" if rows else "There are no documents; `confide collection add`.")


@app.command("search")
def search(
    url: Url,
    key: KeyFile,
    question: Annotated[str, typer.Argument(help="In your words.", metavar="QUESTION")],
    most: Annotated[int, typer.Option(help="Chunks at most.", min=1, max=50)] = 5,
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Show the chunks of your documents that fit a question, the best one first."""
    require_text(question, "QUESTION")
    with _opened(url, key, policy, simulated_root, licence_file, ca, offline=offline, plain=insecure_no_tls) as own:
        found = [
            {
                "id": one.file_id,
                "name": one.filename,
                "score": one.score,
                **dict(one.attributes or {}),
                "text": one.content[0].text,
            }
            for one in own.search(question, most)
        ]
    if json:
        output.result({"found": found})
        return
    for one in found:
        page = f", page {one['page']}" if "page" in one else ""
        output.console.print(
            Text(f"{printable(one['name'])}{page}", "bold").append(f"  {one['score']:.2f}", "not bold")
        )
        text = one["text"]
        output.words(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…")
        output.console.print("\n")
    if not found:
        output.console.print("Nothing fits.")


@app.command("remove")
def remove(
    url: Url,
    key: KeyFile,
    ids: Annotated[list[str], typer.Argument(help="As `list` shows them.", metavar="ID...")],
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Leave documents out from now on. A machine that kept the older head still has them, for whoever has the key."""
    with _opened(url, key, policy, simulated_root, licence_file, ca, offline=offline, plain=insecure_no_tls) as own:
        for id_ in ids:
            require_text(id_, "ID")
            own.remove(id_)
    if json:
        output.result({"removed": ids})
        return
    output.console.print(f"Removed {len(ids):,}.")


@app.command("delete")
def delete(
    url: Url,
    key: KeyFile,
    proof: Annotated[Path, typer.Option(help="Folder to make, with what shows the deletion.", metavar="FOLDER")],
    keep_key: Annotated[bool, typer.Option("--keep-key", help="Leave the key file where it is.")] = False,
    policy: UserPolicy = None,
    simulated_root: SimulatedRoot = None,
    offline: Offline = False,
    licence_file: LicenceFile = None,
    ca: Ca = None,
    insecure_no_tls: InsecureNoTls = False,
    json: Json = False,
) -> None:
    """Delete a collection, keep the service's signed word that nothing of it is left there, and remove its key.

    Copies that the machine may have made open with the key alone: once no copy of that is left, they are noise.
    """
    from confide.client.collections import part_with

    if proof.exists():
        raise typer.BadParameter(f"{proof} exists already; name a new folder for the proof")
    with _opened(url, key, policy, simulated_root, licence_file, ca, offline=offline, plain=insecure_no_tls) as own:
        result = own.delete(proof)
        store = own.vector_store
    if not keep_key:
        part_with(key)
    if json:
        output.result(
            {
                "vector_store": store,
                "verified": result.verified,
                "simulated": result.simulated,
                "proof": str(proof),
                "key_removed": not keep_key,
            }
        )
        return
    output.console.print(f"Deleted {store}", soft_wrap=True)
    output.console.print(f"Receipt: {result.verdict()}", soft_wrap=True)
    if not keep_key:
        output.console.print(f"Removed {escape(str(key))}. Remove copies of it, too: they open what was deleted.")
    shown = escape(str(proof))
    output.console.print(
        f"Later: confide receipt verify {shown}/receipt.json --bundle {shown}/bundle.json", soft_wrap=True
    )


@contextmanager
def _opened(
    url: str,
    key: Path,
    policy: Path | None,
    simulated_root: Path | None,
    licence_file: Path | None,
    ca: Path | None,
    *,
    offline: bool,
    plain: bool,
) -> Iterator["OwnCollection"]:
    """The collection of a key, at a service that was verified before it is shown that. plain: as InsecureNoTls."""
    from confide.client.enclave import EnclaveSession
    from confide.packages.sealed.key import ModelKey

    own = ModelKey.read(key)  # before anybody is asked for anything
    options: dict[str, Any] = {"policy": policy, "simulated_root": simulated_root, "offline": offline}
    with EnclaveSession(url, **options, licence=licence_key(licence_file), ca=ca, insecure_no_tls=plain) as session:
        yield session.collection(own)
