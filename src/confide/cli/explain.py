"""Errors of others in a sentence with a way out: of the operating system, of libraries, and faults of our own."""

import errno
import json
from typing import Final

from confide.errors import ConfideError, MachineError, Unexpected
from confide.printable import printable

_LONGEST: Final = 300
_WAYS_OUT: Final = {
    errno.ENOSPC: "make room on that disk, and run the command again",
    errno.EDQUOT: "make room in your quota, and run the command again",
    errno.EROFS: "choose a folder that can be written to",
    errno.EACCES: "choose a file or folder that is yours, or change who may use it",
    errno.EPERM: "choose a file or folder that is yours, or change who may use it",
    errno.ENOENT: "check its name",
    errno.ENOTDIR: "check its name",
    errno.EISDIR: "name a file in it",
    errno.ELOOP: "check its links",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "close programs, or raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close programs, or raise the machine's limit of open files",
    errno.EADDRINUSE: "choose another --port, or stop what uses this one",
    errno.EADDRNOTAVAIL: "choose a --host that is this machine's",
    errno.ENOMEM: "close other programs, or use a machine with more memory",
    errno.EIO: "check the disk",
}


def explained(error: Exception) -> ConfideError:
    """The same error, as one of ours."""
    if isinstance(error, ConfideError):
        return error
    match error:
        case UnicodeDecodeError() | UnicodeEncodeError():
            return MachineError("A text is not UTF-8; save it as UTF-8, and run the command again.")
        case json.JSONDecodeError():
            return MachineError(f"A file is not the JSON that it should be ({_short(error)}); get an undamaged copy.")
        case OSError():
            return _of_the_machine(error)
        case MemoryError():
            return MachineError("There is not enough memory; close other programs, or use a smaller model.")
        case RecursionError():
            return Unexpected("Something is nested too deeply; get an undamaged copy of the files.")
    kind = type(error).__name__
    return Unexpected(f"{kind}: {_short(error)}. Run the command again with --debug, and report what it shows.")


def _of_the_machine(error: OSError) -> ConfideError:
    place = "" if error.filename is None else f"{printable(str(error.filename))}: "
    reason = error.strerror or _short(error) or type(error).__name__
    way_out = _WAYS_OUT.get(error.errno or 0, "see that this machine can do it, and run the command again")
    return MachineError(f"{place}{printable(reason)}; {way_out}.")


def _short(error: Exception) -> str:
    text = " ".join(printable(str(error)).split())
    return text.rstrip(".") if len(text) <= _LONGEST else text[:_LONGEST] + "\N{HORIZONTAL ELLIPSIS}"
