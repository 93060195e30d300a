"""`confide audit`: the client's own log of what was verified, refused and answered, as digests and verdicts.

Exit codes of `verify` as `confide attest` has them: 0 verified, 10 refused or not verified, 30 wrong usage.
"""

from collections import deque
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from confide.cli import output
from confide.cli.attest import Exit, show_checks, show_verdict
from confide.cli.explain import explained
from confide.cli.files import read_file
from confide.cli.options import Json
from confide.printable import printable

if TYPE_CHECKING:
    from confide.audit.entries import Entry

app = typer.Typer(
    name="audit", help="The client's own log: digests and verdicts, signed and chained.", no_args_is_help=True
)
Folder = Annotated[
    Path | None, typer.Option("--folder", help="A log, or an export of one; yours without.", metavar="FOLDER")
]


@app.callback()
def group() -> None:
    """The client's own log: digests and verdicts, signed and chained."""


@app.command("start")
def start(json: Json = False) -> None:
    """Begin to keep a log: from now on each verdict, refusal and receipt stands in it, or does not happen."""
    from confide.audit.log import start_log
    from confide.receipts.client_key import ClientKey

    folder, key = start_log(), ClientKey.open().public
    if json:
        output.result({"folder": str(folder), "public_key": key})
        return
    output.console.print(f"The log is in [bold]{printable(str(folder))}[/].", soft_wrap=True)
    output.note(f"Its checkpoints are signed by {key}: give this key to whoever audits you.")
    output.note("To keep no log any more, export it and move that folder away.")


@app.command("show")
def show(
    last: Annotated[int | None, typer.Option(help="Only the last so many entries.", min=1)] = None,
    event: Annotated[str | None, typer.Option(help="Only these, such as refused or receipt.", metavar="EVENT")] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Show what stands in the log. Its chain is checked on the way; who signed it, `verify` says."""
    import msgspec

    from confide.audit.verify import entries

    wanted = (entry for entry in entries(_folder(folder)) if event in (None, entry.event))
    found = deque(wanted, maxlen=last)
    if json:
        output.result({"entries": [msgspec.to_builtins(entry) for entry in found]})
        return
    for entry in found:
        output.console.print(_line(entry), soft_wrap=True)
    if not found:
        output.note("There is no such entry.")


@app.command("verify")
def verify(
    client_key: Annotated[
        str | None, typer.Option(help="The public key of whoever's log it is; your own for your log.", metavar="HEX")
    ] = None,
    checkpoint: Annotated[
        Path | None, typer.Option(help="A checkpoint.json of this log that you kept elsewhere.", metavar="FILE")
    ] = None,
    folder: Folder = None,
    json: Json = False,
) -> None:
    """Check that no line of the log was changed, removed, moved, or cut off behind the last signed checkpoint."""
    from confide.audit.verify import verify_log
    from confide.receipts.client_key import ClientKey

    key = ClientKey.open().public if client_key is None and folder is None else client_key
    result = verify_log(_folder(folder), key, None if checkpoint is None else read_file(checkpoint))
    if json:
        checks = [asdict(check) for check in result.checks]
        output.result({"verified": result.verified, "entries": result.entries, "head": result.head, "checks": checks})
    else:
        show_checks(result.checks)
        show_verdict(result.verdict(), good=result.verified)
        if checkpoint is None:
            output.note(
                "Whoever can write the folder can put back an older state of it, checkpoint included. Keep a "
                "checkpoint.json on another machine, and give it with --checkpoint."
            )
    raise typer.Exit(Exit.TRUSTED if result.verified else Exit.REFUSED)


@app.command("export")
def export(
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist.", metavar="OUT")],
    json: Json = False,
) -> None:
    """Copy the log for an auditor: its lines, and the signed statements beside it. There is no text in it."""
    from confide.audit.log import AuditLog
    from confide.receipts.client_key import ClientKey

    key = ClientKey.open()
    try:
        AuditLog(_folder(None), key).export(out)
    except OSError as error:
        raise explained(error) from error
    if json:
        output.result({"folder": str(out), "public_key": key.public})
        return
    output.note(f"Verify it anywhere: confide audit verify --folder {out} --client-key {key.public}")


@app.command("rotate")
def rotate(json: Json = False) -> None:
    """Go on in another file. The chain goes on with it."""
    from confide.audit.log import AuditLog

    number = AuditLog(_folder(None)).rotate()
    if json:
        output.result({"segment": number})
    else:
        output.note(f"The log goes on in segment {number}.")


@app.command("retain")
def retain(
    segments: Annotated[int, typer.Option(help="Keep the last so many files, the open one counted.", min=1)],
    days: Annotated[
        int | None, typer.Option(help="And of the others those whose last entry is younger.", min=0)
    ] = None,
    json: Json = False,
) -> None:
    """Drop old files of the log. A signed statement stays of how far it went, and what its chain had come to."""
    from confide.audit.log import AuditLog

    until = None if days is None else datetime.now(UTC) - timedelta(days=days)
    gone = AuditLog(_folder(None)).retain(segments, until)
    if json:
        output.result({"dropped": gone})
    elif gone:
        output.note(f"Dropped: segments {gone[0]} to {gone[-1]}. retired.json, which is signed, says so.")
    else:
        output.note("Nothing was old enough to be dropped; `confide audit rotate` begins another file.")


def _folder(folder: Path | None) -> Path:
    from confide.audit.log import FOLDER
    from confide.disk.home import home

    return home() / FOLDER if folder is None else folder


_STYLES = {"connected": "green", "receipt": "green", "refused": "bold red", "distrusted": "bold red"}


def _line(entry: "Entry") -> Text:
    """One entry, on one line."""
    bad = bool(entry.failed)
    line = Text(f"{entry.at.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC  ")
    line.append(f"{entry.event:<10}", "bold red" if bad else _STYLES.get(entry.event, "dim"))
    facts: dict[str, Any] = {
        entry.mode: printable(entry.peer),
        "by": entry.made_by,
        "model": entry.model[:16],
        "policy": entry.policy[:16],
        "receipt": entry.receipt[:23],
        "failed": ", ".join(entry.failed),
        "torn bytes": entry.recovered,
        "segment": entry.segment,
    }
    for name, value in facts.items():
        if value:
            line.append(f"  {name} " if name else "  ", "dim").append(str(value))
    return line.append("  SIMULATED", "bold red") if entry.simulated else line
