"""Where the ledger of a layer server's package lies: one place, which the package remembers.

It is the folder `state` in the package, or the folder or database that a file of that name says. With two, licences
made in one would be unknown in the other, and what was disclosed would be forgotten.
"""

import os
from pathlib import Path
from typing import Final

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import InvalidSettings, LedgerElsewhere
from confide.ledger.address import PREFIX, DatabaseAddress, Place
from confide.ledger.sqlite import DATABASE
from confide.packages.manifest import MANIFEST_NAME

STATE_NAME: Final = "state"
_MAX_PATH: Final = 1 << 12


def state_of(server: Place) -> Place:
    """The ledger's place of a package's folder, or the place itself where it is no package."""
    if isinstance(server, DatabaseAddress) or not (server / MANIFEST_NAME).exists():
        return server
    return _remembered(server) or server / STATE_NAME


def choose_state(package: Path, chosen: Place | None) -> Place:
    """The ledger's place to serve a package with, which the package remembers from now on.

    chosen: what the operator asks for. LedgerElsewhere where the package has its ledger in another place.
    """
    own, remembered = package / STATE_NAME, _remembered(package)
    if chosen is None or _same(chosen, own):
        if isinstance(remembered, Path) and not remembered.is_dir():
            raise LedgerElsewhere(
                f"The ledger of {package} was in {remembered}, which is not there; put it back, or remove the file "
                f"{own} and say with --state where it is now."
            )
        return state_of(package)
    if remembered is not None:
        if not _same(remembered, chosen):
            raise LedgerElsewhere(
                f"The ledger of {package} is in {remembered}, with its licences and what they have been answered; "
                f"leave {_option(chosen)} out, or {_move(remembered, chosen)} and remove the file {own}."
            )
        return chosen
    if (own / DATABASE).exists():
        raise LedgerElsewhere(
            f"The ledger of {package} is in {own}, with its licences and what they have been answered; leave "
            f"{_option(chosen)} out, or {_move(own, chosen)} first."
        )
    if isinstance(chosen, Path):
        chosen.mkdir(mode=0o700, parents=True, exist_ok=True)
    _remember(own, chosen)
    return chosen


def _option(chosen: Place) -> str:
    return "--state" if isinstance(chosen, Path) else "--ledger"


def _move(present: Place, chosen: Place) -> str:
    if isinstance(present, Path) and isinstance(chosen, Path):
        return f"move that folder to {chosen}"
    return f"take it to {chosen} by `confide ledger backup` and `restore`, with the server stopped,"


def _remembered(package: Path) -> Place | None:
    """What the file `state` says, if it is one."""
    path = package / STATE_NAME
    if not path.is_file():
        return None
    try:
        folder = os.fsdecode(read_bounded(path, _MAX_PATH)).rstrip("\n")
    except FileTooLarge:
        folder = ""
    except OSError as error:
        raise LedgerElsewhere(f"{path} cannot be read ({error.strerror}); it says where the ledger is.") from error
    if folder.startswith(PREFIX):
        try:
            return DatabaseAddress.parse(folder)
        except InvalidSettings as error:
            raise LedgerElsewhere(f"{path} holds no ledger's address; remove it, and give --ledger.") from error
    if "\0" in folder or not os.path.isabs(folder):
        raise LedgerElsewhere(f"{path} does not hold the path of a state folder; remove it, and give --state.")
    return Path(folder)


def _remember(own: Path, chosen: Place) -> None:
    try:
        if own.is_dir():
            own.rmdir()  # only where it is empty
        own.write_bytes(os.fsencode(f"{chosen.resolve() if isinstance(chosen, Path) else chosen}\n"))
    except OSError:
        return  # a package on a read-only disk is served from wherever its operator says


def _same(one: Place, other: Place) -> bool:
    if isinstance(one, Path) and isinstance(other, Path):
        return one.resolve() == other.resolve()
    return one == other
