"""Confining this process to one folder: after that it creates, changes and removes nothing elsewhere.

Rules of the kernel (Landlock, Linux 6.2 and later), for every program that is started from here too, without special
rights and never to be taken off. A confined process does not look into the memory of others either. It still reads
what its user may read; see `egress` for the network.
"""

import ctypes
import os
from pathlib import Path
from typing import Final

from confide.enclave.egress import close_egress
from confide.errors import EgressOpen

# linux/landlock.h, linux/prctl.h; the numbers of these system calls are the same on all machines
_CREATE, _ADD, _RESTRICT = 444, 445, 446
_VERSION: Final = 1
_BENEATH: Final = 1
_PR_SET_NO_NEW_PRIVS: Final = 38
_TRUNCATE: Final = 1 << 14
_LEAST_VERSION: Final = 3
"""Before, files could be emptied."""
_CAPABILITY_VERSION: Final = 0x20080522
"""linux/capability.h, version 3."""
_WRITE_FILE: Final = 1 << 1
# write, remove a folder or a file, make a device, folder, file, socket, pipe, disk or link, move elsewhere, truncate
_CHANGES: Final = _WRITE_FILE | sum(1 << bit for bit in range(4, 14)) | _TRUNCATE


class _Ruleset(ctypes.Structure):
    """struct landlock_ruleset_attr as of version 1: more is not asked for."""

    _fields_ = (("handled_access_fs", ctypes.c_uint64),)


class _PathBeneath(ctypes.Structure):
    """struct landlock_path_beneath_attr."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def confine(folder: Path | None) -> None:
    """Let this process, which has one thread, change nothing but below `folder`, a temporary one of its own.

    folder: None for nothing at all. EgressOpen where that cannot be had.
    """
    if len(os.listdir("/proc/self/task")) != 1:
        raise EgressOpen("A process that has several threads cannot be confined; report this.")
    kernel = ctypes.CDLL(None, use_errno=True)
    if kernel.syscall(_CREATE, None, ctypes.c_size_t(0), _VERSION) < _LEAST_VERSION:
        raise EgressOpen(
            "This kernel cannot keep a process from writing files (Landlock, Linux 6.2 and later), as one that reads "
            "what strangers wrote has to be; use such a machine."
        )
    rules = _Ruleset(_CHANGES)
    ruleset = kernel.syscall(_CREATE, ctypes.byref(rules), ctypes.c_size_t(ctypes.sizeof(rules)), 0)
    if ruleset < 0:
        raise _refused()
    for path, allowed in ((folder, _CHANGES), (Path(os.devnull), _WRITE_FILE)) if folder else ():
        below = os.open(path, os.O_PATH | os.O_CLOEXEC)
        rule = _PathBeneath(allowed, below)
        if kernel.syscall(_ADD, ruleset, _BENEATH, ctypes.byref(rule), 0):
            raise _refused()
        os.close(below)
    if kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) or kernel.syscall(_RESTRICT, ruleset, 0):
        raise _refused()
    os.close(ruleset)
    if _changes(folder):
        raise EgressOpen("The kernel's rules for files are in place and do not hold; report this.")


def close_off() -> None:
    """Let this process, which has one thread, open no connection, change no file, and look into no other process.

    It reads what a stranger sent, with a parser that may have faults. EgressOpen where that cannot be had.
    """
    confine(None)
    # A superuser's process without rules has capabilities by which it reads of others what the rules leave.
    header, none = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION, 0), (ctypes.c_uint32 * 6)()
    if ctypes.CDLL(None, use_errno=True).capset(header, none):
        raise _refused()
    close_egress(keys=None, upstream=None)


def _changes(folder: Path | None) -> bool:
    """Whether anything outside can be changed."""
    try:
        if folder is None:
            os.close(os.open(os.devnull, os.O_WRONLY))
        else:
            outside = folder.parent / f"{folder.name}-outside"
            outside.mkdir()
            outside.rmdir()
    except PermissionError:
        return False
    return True


def _refused() -> EgressOpen:
    return EgressOpen(f"This process cannot be confined ({os.strerror(ctypes.get_errno())}); use another machine.")
