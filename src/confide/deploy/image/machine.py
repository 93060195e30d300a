"""The first program of a measured machine once its root is open: package, network, and one service, without a shell.

What it does is written in `/etc/confide/machine.json`, which lies in the root and so is measured. The service runs as a
user of its own, whose one capability is for the kernel's files of evidence, which are root's.
"""

import ctypes
import fcntl
import json
import os
import platform
import resource
import signal
import socket
import struct
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final, NoReturn

from confide.deploy.image import dhcp
from confide.deploy.image.start import (
    LIBC,
    MS_NODEV,
    MS_NOEXEC,
    MS_NOSUID,
    MS_RDONLY,
    disk,
    mount,
    open_verity,
    say,
)

CONFIGURATION: Final = "/etc/confide/machine.json"
RESOLVER: Final = "/run/resolv.conf"
USER: Final = 65534
AGAIN_SECONDS: Final = 10.0
"""After which a service that ended is started again: its broker may not have been there."""
_MEMORY: Final = "/tmp"  # noqa: S108 - this machine has no other users, and keeps nothing
ENVIRONMENT: Final = {
    "CONFIDE_HOME": f"{_MEMORY}/confide",
    "HOME": _MEMORY,
    "LANG": "C.UTF-8",
    "PATH": "/usr/bin",
    "TERM": "dumb",
}

_LEAST_RENEWAL, _MOST_RENEWAL = 60.0, 86400.0
_WAIT_SECONDS: Final = 60.0
KERNEL_SETTINGS: Final = {
    "sysrq": "0",  # the host has a keyboard, and its keys show registers and memory
    "kexec_load_disabled": "1",
    "modules_disabled": "1",
    "unprivileged_bpf_disabled": "1",
}
"""Of /proc/sys/kernel. Where it is 1, it is so for good."""

# linux/prctl.h, linux/capability.h
_CAP_DAC_OVERRIDE: Final = 1
_PR_SET_KEEPCAPS, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS, _PR_CAP_AMBIENT, _AMBIENT_RAISE = 8, 24, 38, 47, 2
_CAPABILITIES_3: Final = 0x20080522
_CAPSET: Final = {"x86_64": 126, "aarch64": 91}
"""The system call's number, as glibc has no function for it."""

# linux/sockios.h, linux/if.h, linux/route.h
_SET_FLAGS, _SET_ADDRESS, _SET_MASK, _ADD_ROUTE = 0x8914, 0x8916, 0x891C, 0x890B
_UP: Final = 0x41  # and running
_TO_GATEWAY: Final = 3
_ROUTE: Final = struct.Struct("@L16s16s16sHhLPhPLLH")


def main() -> NoReturn:
    """Until the machine ends."""
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])
    configuration = json.loads(Path(CONFIGURATION).read_text())
    prepare(configuration["package"])
    interface = bring_up_network()
    hardware = bytes.fromhex(Path(f"/sys/class/net/{interface}/address").read_text().strip().replace(":", ""))
    lease, renewal = None, 0.0
    service = Kept(configuration["command"])
    while True:
        now = time.monotonic()
        if now >= renewal:
            lease, renewal = renewed(interface, hardware, lease)
        service.tend(wanted=lease is not None)
        signal.sigtimedwait([signal.SIGCHLD], 1.0)


class Kept:
    """A service that is started again ten seconds after it ended."""

    def __init__(self, command: Sequence[str]) -> None:
        self._command = command
        self._number, self._again = 0, 0.0

    def tend(self, *, wanted: bool = True) -> None:
        """Start it where it is wanted and due, and see which processes have ended."""
        if wanted and not self._number and time.monotonic() >= self._again:
            self._number = start(self._command)
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                if ended[0] == self._number:
                    say(f"the service ended with {os.waitstatus_to_exitcode(ended[1])}; it is started again")
                    self._number, self._again = 0, time.monotonic() + AGAIN_SECONDS


def prepare(package: Mapping[str, Any], kernel: Path = Path("/proc/sys/kernel")) -> None:
    """File systems in memory, the kernel's for evidence, and the package; then the kernel takes no more modules."""
    os.makedirs("/dev/shm", exist_ok=True)  # noqa: S108 - the kernel makes /dev without it
    for place in ("/run", _MEMORY, "/dev/shm"):  # noqa: S108
        mount("tmpfs", place, "tmpfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "mode=1777")
    mount("configfs", "/sys/kernel/config", "configfs", MS_NOSUID | MS_NODEV | MS_NOEXEC)
    device = open_verity("package", disk("package"), package["root_hash"], package["blocks"])
    mount(device, package["path"], "squashfs", MS_RDONLY | MS_NOSUID | MS_NODEV | MS_NOEXEC)
    for name, value in KERNEL_SETTINGS.items():
        (kernel / name).write_text(value)


def start(command: Sequence[str]) -> int:
    """The service, in a process of its own. Returns its number."""
    if child := os.fork():
        return child
    try:
        os.setsid()
        os.dup2(os.open("/dev/null", os.O_RDONLY), 0)  # at the console the host could type
        signal.pthread_sigmask(signal.SIG_SETMASK, [])
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        os.umask(0o077)
        give_up_rights()
        os.execve(command[0], list(command), ENVIRONMENT)  # noqa: S606 - what the image says
    except BaseException as error:  # noqa: BLE001 - it must not go on as a second first program
        say(f"the service does not start: {error}")
    os._exit(127)


def give_up_rights() -> None:
    """From root to a user with one capability, which programs that it starts keep, and none can gain another."""
    last = int(Path("/proc/sys/kernel/cap_last_cap").read_text())
    for capability in range(last + 1):
        if capability != _CAP_DAC_OVERRIDE:
            _prctl(_PR_CAPBSET_DROP, capability)
    _prctl(_PR_SET_KEEPCAPS, 1)
    os.setgroups([])
    os.setresgid(USER, USER, USER)
    os.setresuid(USER, USER, USER)
    kept = 1 << _CAP_DAC_OVERRIDE
    header, sets = struct.pack("=Ii", _CAPABILITIES_3, 0), struct.pack("=6I", kept, kept, kept, 0, 0, 0)
    _checked(LIBC.syscall(_CAPSET[platform.machine()], header, sets))
    _prctl(_PR_CAP_AMBIENT, _AMBIENT_RAISE, _CAP_DAC_OVERRIDE)
    _prctl(_PR_SET_NO_NEW_PRIVS, 1)


def bring_up_network() -> str:
    """The loopback, and the one interface that the machine has. Returns its name; SystemExit where there is none."""
    set_up("lo")
    until = time.monotonic() + _WAIT_SECONDS
    while not (found := sorted(set(os.listdir("/sys/class/net")) - {"lo"})):
        if time.monotonic() > until:
            sys.exit("confide: there is no network interface.")
        time.sleep(0.1)
    set_up(found[0])
    return found[0]


def renewed(interface: str, hardware: bytes, held: dhcp.Lease | None) -> tuple[dhcp.Lease | None, float]:
    """The lease, and when to ask again. What was granted stays where nobody answers: no other address is taken."""
    lease = dhcp.obtain(interface, hardware, held)
    if lease is None or (held is not None and held.address != lease.address):
        say("nobody grants the address; asked again in a minute")
        return held, time.monotonic() + _LEAST_RENEWAL
    try:
        use(interface, lease)
    except OSError as error:
        say(f"the address {lease.address} cannot be used ({error.strerror}); asked again in a minute")
        return held, time.monotonic() + _LEAST_RENEWAL
    return lease, time.monotonic() + min(max(lease.seconds / 2, _LEAST_RENEWAL), _MOST_RENEWAL)


def use(interface: str, lease: dhcp.Lease) -> None:
    """Take an address, a way out, and nameservers."""
    _interface_address(interface, _SET_ADDRESS, lease.address.packed)
    _interface_address(interface, _SET_MASK, lease.mask.packed)
    if lease.router is not None:
        nowhere = _internet(bytes(4))
        route = _ROUTE.pack(0, nowhere, _internet(lease.router.packed), nowhere, _TO_GATEWAY, *[0] * 8)
        with suppress(FileExistsError):
            _configure(_ADD_ROUTE, route)
    Path(RESOLVER).write_text("".join(f"nameserver {one}\n" for one in lease.nameservers))
    say(f"the address is {lease.address}")


def set_up(interface: str) -> None:
    """An interface."""
    _configure(_SET_FLAGS, struct.pack("16sH22x", interface.encode(), _UP))


def _interface_address(interface: str, command: int, address: bytes) -> None:
    _configure(command, struct.pack("16s16s8x", interface.encode(), _internet(address)))


def _internet(address: bytes) -> bytes:
    """struct sockaddr_in."""
    return struct.pack("=HH4s8x", socket.AF_INET, 0, address)


def _configure(command: int, argument: bytes) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        fcntl.ioctl(asking, command, argument)


def _prctl(option: int, *arguments: int) -> None:
    _checked(LIBC.prctl(option, *[ctypes.c_ulong(one) for one in (*arguments, 0, 0, 0, 0)[:4]]))


def _checked(answer: int) -> None:
    if answer:
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))


if __name__ == "__main__":
    main()
