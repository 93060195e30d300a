"""Writes the table in docs/configuration.md: every setting of every service, as its command has it.

python tools/settings_table.py            # writes it
python tools/settings_table.py --check    # exits 1 where it is out of date; the tests do the same
"""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Final

import typer
from typer.core import TyperCommand, TyperOption

from confide.cli.app import command_line
from confide.cli.settings import SECRETS, SERVICES, command_of, is_setting, key, options, variable
from confide.disk import secrets

PAGE: Final = Path(__file__).resolve().parent.parent / "docs" / "configuration.md"
_MARK: Final = "## Every setting\n"


def page() -> str:
    """The page with the table as it should be: what stands before it is written by hand."""
    written, mark, _ = PAGE.read_text(encoding="utf-8").partition(_MARK)
    if not mark:
        raise ValueError(f"{PAGE} has no heading {_MARK!r}")
    return written + mark + "".join(_tables())


def _tables() -> Iterator[str]:
    yield "\nMade from the commands by `PYTHONPATH=. python tools/settings_table.py`; a test compares.\n"
    root = typer.main.get_command(command_line([]))
    for service in SERVICES:
        command = command_of(root, service)
        yield f"\n### `confide {service}`: `[{service.replace(' ', '.')}]`\n\n"
        yield "| key | variable | default | what it says |\n| --- | --- | --- | --- |\n"
        yield from (_row(service, command, option) for option in options(command) if is_setting(option))
        flags = [f"`--{key(option)}`" for option in options(command) if not is_setting(option)]
        yield f"\nFlags only: {', '.join(flags)}.\n"
        for name in SECRETS.get(service, ()):
            yield f"\nSecret: `{secrets.variable(name)}`, or the credential `{name}`.\n"


def _row(service: str, command: TyperCommand, option: TyperOption) -> str:
    default = option.get_default(typer.Context(command))
    shown = "" if default in (None, "", []) else f"`{str(default).lower() if option.is_flag else default}`"
    said = (option.help or "").replace("|", "\\|")
    return f"| `{key(option)}` | `{variable(service, option)}` | {shown} | {said} |\n"


def main() -> int:
    """Write the page, or compare it."""
    made = page()
    if "--check" in sys.argv[1:]:
        return int(PAGE.read_text(encoding="utf-8") != made)
    PAGE.write_text(made, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
