"""Writes manual pages, one for each command, from the help that the commands have: `make man`.

python tools/man_pages.py FOLDER
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import typer
from click_man.man import ManPage
from typer.core import TyperGroup, TyperOption

from confide.cli.app import command_line
from confide.version import VERSION

_CONTROL: Final = re.compile(r"^(?=[.'])", re.MULTILINE)
"""Where troff would take a line of text for a request."""


def pages(root: typer.Context) -> Iterator[tuple[str, str]]:
    """File names and contents: of this command, and of those below it."""
    command = root.command
    file = root.command_path.replace(" ", "-")
    page = ManPage(root.command_path)
    page.version, page.date = f"confide {VERSION}", ""
    page.short_help = _text(command.get_short_help_str(200))
    page.description = _text(command.help or "")
    page.synopsis = _text(" ".join(command.collect_usage_pieces(root)))
    records = (option.get_help_record(root) for option in command.params if isinstance(option, TyperOption))
    page.options = [(_text(names), _text(said)) for names, said in filter(None, records)]
    below = sorted(command.commands.items()) if isinstance(command, TyperGroup) else []
    page.commands = [(name, _text(one.get_short_help_str(200))) for name, one in below]
    yield f"{file}.1", str(page).replace(rf"\fB{page.command}-", rf"\fB{file}-")  # as those below are named
    for name, one in below:
        yield from pages(typer.Context(one, info_name=name, parent=root))


def _text(words: str) -> str:
    return _CONTROL.sub(r"\\&", words.replace("\\", r"\e"))


def main() -> None:
    """Write them."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    root = typer.Context(typer.main.get_command(command_line([])), info_name="confide")
    for name, content in pages(root):
        (folder / name).write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
