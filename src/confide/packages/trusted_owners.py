"""The owners whose shells a person runs: a file of public keys, one to a line, each with an optional name."""

from pathlib import Path
from typing import Final

from confide.disk.files import replace_file
from confide.disk.home import home, make_home
from confide.errors import OwnerKeyError
from confide.packages.owner import OwnerPublicKey

TRUSTED_NAME: Final = "trusted-owners"
MAX_NAME: Final = 100
MAX_FILE: Final = 1 << 20
"""Bytes of a list of owners; a larger one is refused."""

TrustedOwners = dict[OwnerPublicKey, str]
"""Public keys with what a person calls them, or an empty name."""


def trusted_path() -> Path:
    """Where the file lies."""
    return home() / TRUSTED_NAME


def trusted_owners() -> TrustedOwners:
    """Everyone trusted; nobody where there is no file. OwnerKeyError for a file that cannot be understood."""
    path = trusted_path()
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise OwnerKeyError(f"{path} cannot be read ({error.strerror}); make it readable again.") from error
    return parse_trusted(content)


def parse_trusted(content: bytes) -> TrustedOwners:
    """The owners in a file's content. OwnerKeyError names the first line that is odd."""
    if len(content) > MAX_FILE:
        raise OwnerKeyError(f"The file {TRUSTED_NAME} is too large; remove what is not a key from it.")
    owners: TrustedOwners = {}
    for number, line in enumerate(content.decode(errors="replace").split("\n"), start=1):
        key, *name = line.split(None, 1) or [""]
        if not key:
            continue
        try:
            owners[OwnerPublicKey.parse(key)] = _checked_name("".join(name))
        except OwnerKeyError as error:
            raise OwnerKeyError(f"Line {number} of {TRUSTED_NAME} is not a key and a name; correct it.") from error
    return owners


def trust(key: OwnerPublicKey, name: str = "") -> None:
    """Add an owner, or give one a new name. OwnerKeyError where the name cannot stand on a line."""
    owners = trusted_owners()
    owners[key] = _checked_name(name) or owners.get(key, "")
    lines = [f"{owner} {called}".rstrip() + "\n" for owner, called in owners.items()]
    make_home()
    try:
        replace_file(trusted_path(), "".join(lines).encode())
    except OSError as error:
        raise OwnerKeyError(
            f"{trusted_path()} cannot be written ({error.strerror}); set CONFIDE_HOME to a folder of yours."
        ) from error


def _checked_name(name: str) -> str:
    name = name.strip()
    if len(name) > MAX_NAME or not name.isprintable():
        raise OwnerKeyError(f"An owner's name is at most {MAX_NAME} printable characters; choose a shorter one.")
    return name
