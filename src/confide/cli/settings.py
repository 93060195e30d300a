"""Settings: the options of services that no flag gives, from a file and from the environment.

An option is written once, where its command has it; here are its names elsewhere, and who may set it. The file is the
one that the command line names, or the user's own, never one of a working directory. Flags alone weaken a protection.
"""

import difflib
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Self

import msgspec
import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from confide.disk.files import read_guarded
from confide.disk.home import home
from confide.disk.secrets import HTTP_PROXY_PASSWORD, KEYS_PASSPHRASE, LEDGER_PASSWORD, LICENCE
from confide.errors import InvalidSettings
from confide.shallow_toml import require_shallow

SERVICES: Final = ("serve", "proxy", "keys serve", "chat")
"""The commands whose options are settings."""
SECRETS: Final[Mapping[str, tuple[str, ...]]] = {
    "serve": (LEDGER_PASSWORD,),
    "proxy": (LICENCE, HTTP_PROXY_PASSWORD),
    "keys serve": (KEYS_PASSPHRASE,),
    "chat": (LICENCE, HTTP_PROXY_PASSWORD),
}
"""What they are given besides, by the names of `disk.secrets`."""
FILE_NAME: Final = "config.toml"
_VERSION: Final = "confide-config"
_MAX_BYTES: Final = 64 << 10
_MAX_MARKS: Final = 1000
_WEAKENING: Final = ("insecure_", "simulated_")
_OF_ONE_RUN: Final = frozenset(("json", "background", "once"))
_MAX_SHOWN: Final = 100
_MAX_NUMBER: Final = 1 << 63
_META: Final = "confide.cli.settings"


@dataclass(frozen=True)
class SettingsFile:
    """What a file says, by service and by key. path: None where there is none. chosen: the command line names it."""

    path: Path | None = None
    chosen: bool = False
    tables: Mapping[str, Mapping[str, object]] = field(default_factory=dict)

    @classmethod
    def read(cls, chosen: Path | None) -> Self:
        """The file that is named, else the user's own where there is one. /dev/null is an empty one.

        Raises InvalidSettings for one that cannot be read, that others can change, or that is not of this form.
        """
        path = chosen or home() / FILE_NAME
        if path == Path(os.devnull):
            return cls(path, chosen=True)
        try:
            text = read_guarded(path, _MAX_BYTES).decode()
            require_shallow(text, str(path), InvalidSettings, _MAX_MARKS)
            document = msgspec.toml.decode(text)
        except OSError as error:
            if chosen is None and isinstance(error, FileNotFoundError | NotADirectoryError) and not path.is_symlink():
                return cls()
            raise InvalidSettings(f"{path} cannot be taken for settings: {error.strerror}. Mend that.") from error
        except (msgspec.MsgspecError, ValueError, RecursionError) as error:
            raise InvalidSettings(f"{path} cannot be understood: {str(error)[:300]}. Correct that place.") from None
        version = document.pop(_VERSION, None)
        if type(version) is not int or version != 1:
            raise InvalidSettings(f"{path} does not say `{_VERSION} = 1`; write that as its first line.")
        return cls(path, chosen is not None, dict(_tables(document, path)))

    def defaults(self, service: str, command: TyperCommand) -> dict[str, object]:
        """What takes the place of the command's defaults, by the names of its parameters.

        Raises InvalidSettings for a key that is none of its options, or one that only a flag gives.
        """
        by_key = {key(option): option for option in options(command)}
        found: dict[str, object] = {}
        for name, value in self.tables.get(service, {}).items():
            option = by_key.get(name)
            place = f"{self.path} has {name[:_MAX_SHOWN]!r} under [{service.replace(' ', '.')}]"
            if option is None:
                raise InvalidSettings(f"{place}, which is no setting; {_near(name, by_key, service)}.")
            if not is_setting(option):
                raise InvalidSettings(f"{place}, which is only ever a flag; take it out, and give --{name} instead.")
            found[option.name] = self._converted(option, value, place)
        return found

    def _converted(self, option: TyperOption, value: object, place: str) -> object:
        """As it would be written on the command line, so that it is checked as that is."""
        if option.is_flag:
            if not isinstance(value, bool):
                raise InvalidSettings(f"{place}, which is true or false; write one of them.")
            return value
        if option.multiple:
            if not isinstance(value, list):
                raise InvalidSettings(f"{place}, which takes several; write them as a list.")
            return [self._word(option, one, place) for one in value]
        return self._word(option, value, place)

    def _word(self, option: TyperOption, value: object, place: str) -> str:
        number = not isinstance(value, bool) and isinstance(value, int | float) and not abs(value) >= _MAX_NUMBER
        if not number and (not isinstance(value, str) or "\0" in value):
            raise InvalidSettings(f"{place}, which takes a text or a number; write one.")
        if option.type_descriptor.is_path and self.path is not None:
            return str(self.path.resolve().parent / str(value))
        return str(value)


def _tables(document: Mapping[str, Any], path: Path) -> Iterator[tuple[str, Mapping[str, object]]]:
    services = {service.replace(" ", "."): service for service in SERVICES}
    for name, value in document.items():
        grouped = isinstance(value, dict) and name not in services
        tables = {f"{name}.{inner}": content for inner, content in value.items()} if grouped else {name: value}
        for table, content in tables.items():
            if table not in services or not isinstance(content, dict):
                raise InvalidSettings(
                    f"{path} has {table[:_MAX_SHOWN]!r}, which is no table of a service; there are "
                    f"{', '.join(f'[{known}]' for known in services)}."
                )
            yield services[table], content


def options(command: TyperCommand) -> list[TyperOption]:
    """The options of a command, as they are listed in its help."""
    return [parameter for parameter in command.params if isinstance(parameter, TyperOption)]


def is_setting(option: TyperOption) -> bool:
    """Whether anything but a flag may give it."""
    return not option.name.startswith(_WEAKENING) and option.name not in _OF_ONE_RUN


def key(option: TyperOption) -> str:
    """Its name in a file: that of its flag."""
    return option.opts[0].removeprefix("--")


def variable(service: str, option: TyperOption) -> str:
    """Its name in the environment, such as CONFIDE_KEYS_SERVE_TLS_CERT."""
    return _prefix(service) + key(option).upper().replace("-", "_")


def _prefix(service: str) -> str:
    return f"CONFIDE_{service.upper().replace(' ', '_')}_"


def configure(ctx: typer.Context, chosen: Path | None) -> None:
    """Before a service reads its options: have them come from a file and the environment too.

    chosen: the file that --config names. Raises InvalidSettings as `SettingsFile` does, and for a variable that names
    no option, or one that only a flag gives.
    """
    services = [service for service in SERVICES if service.split()[0] == ctx.invoked_subcommand]
    if ctx.invoked_subcommand == "config":
        ctx.meta[_META] = SettingsFile.read(chosen)
        return
    if not services:
        if chosen:
            raise typer.BadParameter(f"--config is for {', '.join(SERVICES)}; this command has flags alone")
        return
    ctx.meta[_META] = file = SettingsFile.read(chosen)
    ctx.default_map = {}
    for service in services:
        command = command_of(ctx.command, service)
        take_environment(service, command)
        defaults: dict[str, object] = file.defaults(service, command)
        for word in reversed(service.split()):
            defaults = {word: defaults}
        ctx.default_map |= defaults


def file_of(ctx: typer.Context) -> SettingsFile:
    """The file that `configure` found for this command."""
    file = ctx.meta[_META]
    assert isinstance(file, SettingsFile)  # noqa: S101 - nobody else writes there
    return file


def command_of(root: object, service: str) -> TyperCommand:
    """The command of a service, of the whole command line's."""
    for word in service.split():
        root = root.commands[word] if isinstance(root, TyperGroup) else None
    assert isinstance(root, TyperCommand)  # noqa: S101 - SERVICES are commands
    return root


def take_environment(service: str, command: TyperCommand) -> None:
    """Let the options of a command come from their variables. InvalidSettings for one that is none of theirs."""
    by_variable = {variable(service, option): option for option in options(command)}
    for name in sorted(name for name in os.environ if name.startswith(_prefix(service))):
        if name not in by_variable:
            raise InvalidSettings(
                f"{name} in the environment is no setting; {_near(name, by_variable, service)}, or unset it."
            )
        if not is_setting(by_variable[name]):
            raise InvalidSettings(f"{name} is only ever a flag; unset it, and give --{key(by_variable[name])} instead.")
    for name, option in by_variable.items():
        if is_setting(option):
            option.envvar, option.show_envvar = name, False  # the table in docs/configuration.md has them


def _near(name: str, known: Iterable[str], service: str) -> str:
    found = difflib.get_close_matches(name[:_MAX_SHOWN], known, 1)
    return f"did you mean {found[0]}" if found else f"`confide config show {service}` shows those that there are"


@dataclass(frozen=True)
class Setting:
    """An option as a command would have it. source: default, file, environment or flag; where: the path or variable."""

    key: str
    value: object
    source: str
    where: str = ""


def settings(service: str, command: TyperCommand, words: list[str], file: SettingsFile) -> Iterator[Setting]:
    """The settings of a service that is started with these words and this file, without starting it; what only a flag
    gives is among them.

    Raises what starting it would for options that are not as they should be.
    """
    take_environment(service, command)
    ctx = typer.Context(command, info_name=service, default_map=file.defaults(service, command))
    ctx.meta[_META] = file
    with ctx.scope(cleanup=False):
        given, _, _ = command.make_parser(ctx).parse_args(list(words))
        for option in options(command):
            if option.name in _OF_ONE_RUN:
                continue
            value, _ = option.handle_parse_result(ctx, given, [])
            yield Setting(key(option), value, *origin(ctx, option))


def origin(ctx: typer.Context, option: TyperOption) -> tuple[str, str]:
    """Where an option's value is from, as in `Setting`."""
    source = ctx.get_parameter_source(option.name)
    match source.name if source else "":
        case "COMMANDLINE":
            return "flag", ""
        case "ENVIRONMENT":
            return "environment", str(option.envvar)
        case "DEFAULT_MAP":
            return "file", str(file_of(ctx).path)
        case _:
            return "default", ""


def require_chosen(ctx: typer.Context) -> None:
    """For a workload, whose host writes its environment, and the user's folder with that: flags and --config alone.

    Raises InvalidSettings for an option that is from anywhere else.
    """
    assert isinstance(ctx.command, TyperCommand)  # noqa: S101 - only commands call this
    for option in options(ctx.command):
        source, where = origin(ctx, option)
        if source == "environment" or (source == "file" and not file_of(ctx).chosen):
            raise InvalidSettings(
                f"{key(option)} is given by {where}, which whoever runs the machine of a sealed model chooses; take it "
                f"out there, and give --{key(option)}, or name a file that is measured with `confide --config`."
            )
