"""Closing this process's own ways out: after that it opens no connection, whatever code runs in it.

A filter of system calls (seccomp, Linux 3.17 and later), for all threads and for every program that is started from
here, without special rights and never to be taken off. Refused are: sockets but for Unix domain; every `connect`;
sending to an address; TCP fast open; io_uring, which passes by such filters; and reaching into other processes.
Connections that come in are answered as before. What must still be reached comes from a `Connector`.

It is about one process. Who is root in the environment, or another program there, can do what it could before.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

from confide.attest.configuration import Egress
from confide.enclave.connector import Connector
from confide.errors import EgressOpen

# linux/seccomp.h, linux/filter.h, linux/prctl.h, linux/audit.h
_SET_MODE_FILTER: Final = 1
_FLAG_TSYNC: Final = 1
_ALLOW: Final = 0x7FFF0000
_REFUSE: Final = 0x00050000 | errno.EPERM
_PR_SET_NO_NEW_PRIVS: Final = 38
_LOAD: Final = 0x20  # BPF_LD | BPF_W | BPF_ABS
_EQUAL: Final = 0x15  # BPF_JMP | BPF_JEQ | BPF_K
_AT_LEAST: Final = 0x35  # BPF_JMP | BPF_JGE | BPF_K
_ANY_BIT: Final = 0x45  # BPF_JMP | BPF_JSET | BPF_K
_RETURN: Final = 0x06  # BPF_RET | BPF_K
_NUMBER, _ARCHITECTURE, _ARGUMENTS = 0, 4, 16  # offsets in struct seccomp_data; arguments have 8 bytes each
_MSG_FASTOPEN: Final = 0x20000000
_X32: Final = 0x40000000
_SO_DOMAIN: Final = 39


class Calls(NamedTuple):
    """Numbers of system calls. architecture: AUDIT_ARCH_*. refused: those that are refused whatever their arguments."""

    architecture: int
    seccomp: int
    socket: int
    sendto: int
    sendmsg: int
    refused: tuple[int, ...]


CALLS: Final = {
    # refused: connect, sendmmsg, io_uring_setup, _enter, _register, ptrace, process_vm_readv, _writev, pidfd_getfd
    "x86_64": Calls(0xC000003E, 317, 41, 44, 46, (42, 307, 425, 426, 427, 101, 310, 311, 438)),
    "aarch64": Calls(0xC00000B7, 277, 198, 206, 211, (203, 269, 425, 426, 427, 117, 270, 271, 438)),
}
"""By the machine's name, as `platform.machine` has it."""


@dataclass
class WaysOut:
    """What this process can still reach. keys, other_keys, upstream: connectors, until they are closed, or None.

    other_keys: to the service that releases the key of a dataset or an adapter, where it is another one. neighbours: by
    their names. ledger: whether another process keeps one for this one. closed: whether everything else is, which
    `close_egress` alone says.
    """

    keys: Connector | None = None
    upstream: Connector | None = None
    closed: bool = False
    other_keys: Connector | None = None
    neighbours: dict[str, Connector] = field(default_factory=dict)
    ledger: bool = False

    @property
    def stated(self) -> Egress:
        """For the statement."""
        if not self.closed:
            return Egress.OPEN
        ways = {
            "key-service": self.keys or self.other_keys,
            "upstream": self.upstream,
            "neighbours": self.neighbours,
            "ledger": self.ledger,
        }
        return Egress.to(*(name for name, way in ways.items() if way))

    def close_keys(self) -> None:
        """The keys are here: their services are not needed any more."""
        for connector in (self.keys, self.other_keys):
            if connector is not None:
                connector.close()
        self.keys = self.other_keys = None

    def close(self) -> None:
        """End the connectors. What is closed stays closed."""
        self.close_keys()
        if self.upstream is not None:
            self.upstream.close()
            self.upstream = None
        while self.neighbours:
            self.neighbours.popitem()[1].close()


def close_egress(
    listeners: Collection[socket.socket] = (),
    *,
    keys: str | None,
    upstream: str | None,
    other_keys: str | None = None,
    neighbours: Mapping[str, str] = MappingProxyType({}),
    keys_through: tuple[int, int] | None = None,
    ledger: bool = False,
) -> WaysOut:
    """Close this process's ways out, but for connectors to these URLs, and see that they are closed.

    listeners: bound sockets to serve on, the only ones with a network behind them that may be open by now. neighbours:
    URLs by names. keys_through: CID and port of virtual sockets that lead to keys, where there is no network. ledger:
    whether a process that was started before keeps one.
    EgressOpen where something else is open, or where the kernel has no such filters: nothing is claimed that does not
    hold.
    """
    _require_no_connection(listeners)
    ways = WaysOut(ledger=ledger)
    try:
        ways.keys = Connector.to(keys, keys_through) if keys else None
        ways.upstream = Connector.to(upstream) if upstream else None
        ways.other_keys = Connector.to(other_keys) if other_keys else None
        for name, url in neighbours.items():
            ways.neighbours[name] = Connector.to(url)
        _install_filter()
        _verify()
    except BaseException:
        ways.close()
        raise
    ways.closed = True
    return ways


def _program(calls: Calls) -> bytes:
    """The filter, as struct sock_filter[]: for each rule the jump to its answer."""
    rules: list[tuple[int, int, int, int]] = []  # code, steps forward if true, if false, value

    def refuse_unless_equal(offset: int, value: int) -> None:
        rules.extend([(_LOAD, 0, 0, offset), (_EQUAL, 1, 0, value), (_RETURN, 0, 0, _REFUSE)])

    def refuse_any_bit(offset: int, bits: int) -> None:
        rules.extend([(_LOAD, 0, 0, offset), (_ANY_BIT, 0, 1, bits), (_RETURN, 0, 0, _REFUSE)])

    def for_call(number: int, checks: list[tuple[int, int, bool]]) -> None:
        """checks: offset, value, and whether it must equal that; otherwise none of these bits may be set."""
        rules.extend([(_LOAD, 0, 0, _NUMBER), (_EQUAL, 0, 3 * len(checks) + 1, number)])
        for offset, value, equal in checks:
            (refuse_unless_equal if equal else refuse_any_bit)(offset, value)
        rules.append((_RETURN, 0, 0, _ALLOW))

    def argument(index: int) -> int:
        return _ARGUMENTS + 8 * index

    refuse_unless_equal(_ARCHITECTURE, calls.architecture)
    rules.extend([(_LOAD, 0, 0, _NUMBER), (_AT_LEAST, 0, 1, _X32), (_RETURN, 0, 0, _REFUSE)])
    for number in calls.refused:
        rules.extend([(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _REFUSE)])
    for_call(calls.socket, [(argument(0), socket.AF_UNIX, True)])
    no_address = [(argument(4), 0, True), (argument(4) + 4, 0, True)]
    for_call(calls.sendto, [*no_address, (argument(3), _MSG_FASTOPEN, False)])
    for_call(calls.sendmsg, [(argument(2), _MSG_FASTOPEN, False)])
    rules.append((_RETURN, 0, 0, _ALLOW))
    return b"".join(struct.pack("=HBBI", *rule) for rule in rules)


class _FilterProgram(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))


def _install_filter() -> None:
    calls = CALLS.get(platform.machine())
    if calls is None:
        raise _unsupported(f"there are no filters for {platform.machine()}")
    program = _program(calls)
    kernel = ctypes.CDLL(None, use_errno=True)
    if kernel.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        raise _unsupported(os.strerror(ctypes.get_errno()))
    given = _FilterProgram(len(program) // 8, program)
    # On success 0. With TSYNC a positive number is a thread that could not be included.
    answer = kernel.syscall(calls.seccomp, _SET_MODE_FILTER, _FLAG_TSYNC, ctypes.byref(given))
    if answer:
        raise _unsupported(os.strerror(ctypes.get_errno()) if answer < 0 else f"thread {answer} cannot be included")


def _require_no_connection(listeners: Collection[socket.socket]) -> None:
    """Nothing open has a network behind it, but for sockets that wait to be connected to."""
    allowed = {os.fstat(listener.fileno()).st_ino for listener in listeners}
    for number in map(int, os.listdir("/proc/self/fd")):
        try:
            copy = socket.socket(fileno=os.dup(number))
        except OSError:
            continue  # no socket, or the folder's own descriptor
        with copy:
            domain = copy.getsockopt(socket.SOL_SOCKET, _SO_DOMAIN)
            if domain != socket.AF_UNIX and (os.fstat(copy.fileno()).st_ino not in allowed or _connected(copy)):
                raise EgressOpen(
                    f"This process has a connection open already (descriptor {number}), so its ways out cannot be "
                    "closed; start it without inherited sockets."
                )


def _connected(open_socket: socket.socket) -> bool:
    try:
        open_socket.getpeername()
    except OSError:
        return False
    return True


def _verify() -> None:
    """Try what must not work, and look at every thread."""
    tried = ((socket.AF_INET, socket.SOCK_STREAM), (socket.AF_INET6, socket.SOCK_DGRAM))
    for family, kind in (*tried, (socket.AF_VSOCK, socket.SOCK_STREAM)):
        try:
            socket.socket(family, kind).close()
        except PermissionError:
            continue
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
        raise EgressOpen("The filter of system calls is in place and does not hold; report this.")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        if probe.connect_ex("\0confide-nobody") != errno.EPERM:
            raise EgressOpen("The filter of system calls is in place and does not refuse to connect; report this.")
    for task in Path("/proc/self/task").iterdir():
        try:
            lines = (task / "status").read_text().splitlines()
        except FileNotFoundError:
            continue  # it has ended
        if "Seccomp:\t2" not in lines:
            raise EgressOpen("A thread of this process is without the filter of system calls; report this.")


def _unsupported(reason: str) -> EgressOpen:
    return EgressOpen(
        f"The ways out of this process cannot be closed here ({reason}), and a statement would have to say so; use "
        "Linux with seccomp, or give --insecure-open-egress to serve nevertheless."
    )
