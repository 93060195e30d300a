"""What this person has met before, by numbers that only grow, so that an older one is not taken for the newest.

Whoever runs a machine can start a service with anything that its owner ever signed; evidence says which, and the only
clock is what was seen before. Each kind has a file in the Confide folder, with what is simulated apart.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Final, Generic, TypeVar

import msgspec

from confide.disk.files import lock_file, read_bounded, replace_file
from confide.disk.home import make_home
from confide.errors import AttestationError

_LOCK_SECONDS: Final = 10.0
_MAX_FILE: Final = 1 << 20

Served = TypeVar("Served", bound=msgspec.Struct)
_Name = Annotated[str, msgspec.Meta(max_length=129)]


class Met(msgspec.Struct, Generic[Served], frozen=True, forbid_unknown_fields=True):
    """The newest of each that was met. simulated: by evidence that proves nothing."""

    attested: dict[_Name, Served] = {}
    simulated: dict[_Name, Served] = {}


def require_newest(
    kind: type[Met[Served]],
    what: str,
    name: str,
    served: Served,
    number: Callable[[Served], int],
    older: Callable[[Served], AttestationError],
    *,
    simulated: bool,
) -> None:
    """Remember it, in the file named for `what`, such as corpora. name: which of them. number: that only grows.

    older: the error where a newer one, or another of its number, was met before. The same kind of error is raised where
    nobody can tell: the file is damaged, or cannot be read or written.
    """
    folder = make_home()
    path, refused = folder / f"{what}.json", type(older(served))
    try:
        with (folder / f"{what}.lock").open("w") as lock:
            if not lock_file(lock.fileno(), _LOCK_SECONDS):
                raise refused(f"Another program has held {path} for long; end that one, and try again.")
            met = _read(path, kind, refused)
            known = met.simulated if simulated else met.attested
            before = known.get(name)
            if before == served:
                return
            if before is not None and number(before) >= number(served):
                raise older(before)
            part = "simulated" if simulated else "attested"
            met = msgspec.structs.replace(met, **{part: {**known, name: served}})
            replace_file(path, msgspec.json.format(msgspec.json.encode(met)), mode=0o600)
    except OSError as error:
        raise refused(
            f"What you met of {what} cannot be kept in {path} ({error.strerror}), so an older one would not be "
            "noticed; make your Confide folder writable."
        ) from error


def _read(path: Path, kind: type[Met[Served]], refused: type[AttestationError]) -> Met[Served]:
    try:
        return msgspec.json.decode(read_bounded(path, _MAX_FILE), type=kind)
    except FileNotFoundError:
        return kind()
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise refused(
            f"{path} is not what was kept of what you met; look at it, and remove it to meet all anew."
        ) from error
