"""`confide config`: what the settings of the services are, and where each is from."""

from itertools import takewhile
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from confide.cli import output
from confide.cli.options import Json
from confide.cli.settings import FILE_NAME, SECRETS, SERVICES, Setting, command_of, file_of, settings
from confide.disk.home import home
from confide.disk.secrets import find_secret

app = typer.Typer(name="config", help="Settings of the services, and where they are from.", no_args_is_help=True)


@app.callback()
def config() -> None:
    """Settings of the services, and where they are from."""


@app.command("show", context_settings={"ignore_unknown_options": True})
def show(
    ctx: typer.Context,
    words: Annotated[
        list[str] | None,
        typer.Argument(
            help=f"One of {', '.join(SERVICES)}, and the flags it would be started with; all of them without.",
            metavar="SERVICE [FLAG]",
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Show what each setting would be, and whether a flag, the environment or a file says so. Secrets are not shown."""
    from confide.cli.app import command_line

    service, flags = _service(words or [])
    file = file_of(ctx)
    root = typer.main.get_command(command_line([service.partition(" ")[0]]))
    found = {
        one: list(settings(one, command_of(root, one), flags, file)) for one in ([service] if service else SERVICES)
    }
    secrets = {
        one: {name: secret.source if (secret := find_secret(name)) else "" for name in SECRETS.get(one, ())}
        for one in found
    }
    if json:
        services = {one: {setting.key: _described(setting) for setting in shown} for one, shown in found.items()}
        output.result({"file": str(file.path) if file.path else None, "services": services, "secrets": secrets})
        return
    for one, shown in found.items():
        output.console.print(f"[bold]confide {one}[/]")
        table = Table("setting", "value", "from", box=None, pad_edge=False)
        for setting in shown:
            style = "dim" if setting.source == "default" else ""
            table.add_row(setting.key, escape(_text(setting.value)), escape(_source(setting)), style=style)
        for name, source in secrets[one].items():
            table.add_row(
                name, "(secret)" if source else "-", escape(source or "not set"), style="" if source else "dim"
            )
        output.console.print(table)
        output.console.print()
    output.note(f"File: {file.path}" if file.path else f"No file: {home() / FILE_NAME} is not there.")


def _service(words: list[str]) -> tuple[str, list[str]]:
    named = list(takewhile(lambda word: not word.startswith("-"), words))
    for service in SERVICES:
        if named[: len(service.split())] == service.split():
            return service, words[len(service.split()) :]
    if words:
        raise typer.BadParameter(f"settings are those of {', '.join(SERVICES)}; name one of these first")
    return "", []


def _described(setting: Setting) -> dict[str, Any]:
    value = setting.value
    plain = value if isinstance(value, bool | int | float | None) else _words(value)
    return {"value": plain, "source": setting.source, "where": setting.where}


def _words(value: object) -> str | list[str]:
    return list(map(str, value)) if isinstance(value, list) else str(value)


def _text(value: object) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    return "-" if value in (None, "", []) else ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _source(setting: Setting) -> str:
    return f"{setting.source} {setting.where}".rstrip()
