"""Services of systemd (systemd.exec(5), systemd.service(5))."""

import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Final

from confide.deploy.lint import rules
from confide.deploy.lint.commands import in_command, in_variable
from confide.deploy.lint.rules import Finding
from confide.errors import InvalidManifest

_TRUE: Final = ("1", "yes", "true", "on")
_COMMANDS: Final = (
    "ExecStart",
    "ExecStartPre",
    "ExecStartPost",
    "ExecReload",
    "ExecStop",
    "ExecStopPost",
    "ExecCondition",
)
_ESCAPE: Final = re.compile(r"\\[a-zA-Z0-7]")
"""Of systemd's (systemd.syntax(7), Quoting), which shlex reads otherwise."""
_PRIVILEGED: Final = re.compile(r"[@:|-]*[+!]")
"""Signs before a command that run it as root, whatever User= says."""


def check(unit: Mapping[str, list[tuple[str, str]]]) -> Iterator[Finding]:
    """Faults of a unit. InvalidManifest where it is no service."""
    settings = unit.get("Service")
    if settings is None:
        raise InvalidManifest("The unit has no [Service]; give a .service file.")
    last = dict(settings)
    for name, value in settings:
        if name in ("PassEnvironment", "EnvironmentFile") and value:
            yield Finding(rules.UNMEASURED_ENVIRONMENT, name)
        if name == "Environment":
            for word in _words(value):
                variable, _, content = word.partition("=")
                yield from in_variable(variable, content, f"Environment {variable}")
        if name == "SetCredential":
            yield Finding(rules.SECRET_IN_FILE, name)
        if name in _COMMANDS:
            yield from in_command(_words(value), name)
            if _PRIVILEGED.match(value):
                yield Finding(rules.ROOT_USER, name)
    user = last.get("User", "")
    if user in ("root", "0") or (not user and last.get("DynamicUser", "") not in _TRUE):  # a user that exists counts
        yield Finding(rules.ROOT_USER, "User")
    if last.get("LimitCORE") not in ("0", "0:0"):
        yield Finding(rules.CORE_DUMPS, "LimitCORE")
    if last.get("NoNewPrivileges") not in _TRUE:
        yield Finding(rules.UNHARDENED, "NoNewPrivileges")
    if last.get("ProtectSystem") != "strict":
        yield Finding(rules.UNHARDENED, "ProtectSystem")
    if last.get("MemorySwapMax") != "0":
        yield Finding(rules.SWAP, "MemorySwapMax")


def _words(value: str) -> list[str]:
    if _ESCAPE.search(value):
        raise InvalidManifest("A setting of the unit has characters as escapes; write them out.")
    try:
        return shlex.split(value)
    except ValueError:
        raise InvalidManifest("A setting of the unit opens a quote that is never closed; close it.") from None
