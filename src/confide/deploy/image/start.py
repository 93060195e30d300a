"""The first program of a measured machine, `/init` of its initial RAM disk: it opens the root, and goes there.

All that it is given is measured: the kernel's command line with the root hash, and what lies in the RAM disk. Of a disk
nothing is believed, not even where its hashes begin: dm-verity holds every block that is read against the root hash.
Where anything is missing this program ends, upon which the kernel panics.

It runs with Python's standard library alone, and without Confide.
"""

import ctypes
import errno
import fcntl
import os
import re
import struct
import sys
import time
from pathlib import Path
from typing import Final

COMMAND_LINE: Final = "/proc/cmdline"
ROOT_BLOCKS: Final = "/root.blocks"
"""How many blocks of data the root has, in decimal. The rest of its disk are hashes."""
MODULES: Final = "/modules"
"""Modules of the kernel in the order of their names: `needed`, and `offered`, which not every machine takes."""
BLOCK: Final = 4096
"""Bytes of a block, of data and of hashes."""
NEXT: Final = ("/usr/bin/python3.11", "-I", "-m", "confide.deploy.image.machine")

SECONDS: Final = 60.0
"""In which a disk has to be there."""
MS_RDONLY, MS_NOSUID, MS_NODEV, MS_NOEXEC, MS_MOVE = 1, 2, 4, 8, 8192  # linux/mount.h
_FINIT_MODULE: Final = 313  # of x86-64
_ROOT_HASH: Final = re.compile(r"[0-9a-f]{64}")
_SECTOR: Final = 512

# linux/dm-ioctl.h: struct dm_ioctl, struct dm_target_spec, and the commands
_DM_IOCTL: Final = struct.Struct("=3I3Ii3IQ128s129s7x")
_DM_TARGET: Final = struct.Struct("=QQiI16s")
_DM_VERSION: Final = (4, 0, 0)
_DM_READONLY: Final = 1
_DM_CREATE, _DM_RESUME, _DM_LOAD = 3, 6, 9

LIBC: Final = ctypes.CDLL(None, use_errno=True)


def main() -> None:
    """From the RAM disk to the root."""
    for kind, place in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
        mount(kind, place, kind, MS_NOSUID)
    for descriptor in range(3):  # a machine without a console has none of them
        if not os.path.exists(f"/proc/self/fd/{descriptor}"):
            os.open("/dev/null", os.O_RDWR)
    root_hash = root_hash_of(Path(COMMAND_LINE).read_text())
    load_modules(Path(MODULES))
    blocks = int(Path(ROOT_BLOCKS).read_text())
    mount(open_verity("root", disk("root"), root_hash, blocks), "/root", "squashfs", MS_RDONLY | MS_NODEV | MS_NOSUID)
    say(f"the root is {root_hash}")
    for place in ("/dev", "/proc", "/sys"):
        mount(place, f"/root{place}", "", MS_MOVE)
    os.chdir("/root")
    mount(".", "/", "", MS_MOVE)
    os.chroot(".")
    # Without variables: the kernel makes some of words on its command line that it does not know.
    os.execve(NEXT[0], NEXT, {})  # noqa: S606


def root_hash_of(command_line: str) -> str:
    """The one root hash that the kernel was told. SystemExit for none, for another form, and for two."""
    given = [word.partition("=")[2] for word in command_line.split() if word.startswith("roothash=")]
    if len(given) != 1 or not _ROOT_HASH.fullmatch(given[0]):
        sys.exit("confide: the kernel's command line has no single roothash= of 64 hexadecimal digits.")
    return given[0]


def verity_table(device: str, root_hash: str, blocks: int) -> str:
    """For dm-verity (Linux, admin-guide/device-mapper/verity): no salt, and the hashes right behind the data.

    A block that is not what it should be makes the kernel panic.
    """
    return f"1 {device} {device} {BLOCK} {BLOCK} {blocks} {blocks} sha256 {root_hash} - 1 panic_on_corruption"


def dm_request(name: str, *, table: str = "", sectors: int = 0) -> bytearray:
    """An argument of the device mapper's ioctl. table: of one verity target over all sectors; without any, none."""
    targets = b""
    if table:
        words = table.encode() + b"\0"
        words += bytes(-len(words) % 8)
        targets = _DM_TARGET.pack(0, sectors, 0, _DM_TARGET.size + len(words), b"verity") + words
    size = _DM_IOCTL.size + len(targets)
    head = (*_DM_VERSION, size, _DM_IOCTL.size, 1 if table else 0, 0, _DM_READONLY, 0, 0, 0, name.encode(), b"")
    return bytearray(_DM_IOCTL.pack(*head) + targets)


def open_verity(name: str, device: str, root_hash: str, blocks: int) -> str:
    """The path of a device that gives a disk's data where it has this root hash. OSError."""
    table = verity_table(device, root_hash, blocks)
    control = os.open("/dev/mapper/control", os.O_RDWR | os.O_CLOEXEC)
    try:
        for command, argument in (
            (_DM_CREATE, dm_request(name)),
            (_DM_LOAD, dm_request(name, table=table, sectors=blocks * (BLOCK // _SECTOR))),
            (_DM_RESUME, dm_request(name)),
        ):
            fcntl.ioctl(control, 3 << 30 | _DM_IOCTL.size << 16 | 0xFD << 8 | command, argument)
    finally:
        os.close(control)
    return f"/dev/dm-{os.minor(_DM_IOCTL.unpack_from(argument)[10])}"


def disk(serial: str, blocks: Path = Path("/sys/block")) -> str:
    """The path of the disk that the host calls so. SystemExit where there is none in time."""
    until = time.monotonic() + SECONDS
    while True:
        for found in sorted(blocks.glob("vd*/serial")):
            if found.read_text().strip() == serial:
                return f"/dev/{found.parent.name}"
        if time.monotonic() > until:
            sys.exit(f"confide: there is no disk with the serial number {serial}.")
        time.sleep(0.1)


def mount(source: str, place: str, kind: str, flags: int = 0, options: str = "") -> None:
    """mount(2). OSError."""
    arguments = (source.encode(), place.encode(), kind.encode(), ctypes.c_ulong(flags), options.encode())
    if LIBC.mount(*arguments):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), place)


def load_modules(folder: Path) -> None:
    """Into the kernel. OSError where it does not take one that is needed."""
    for needed in ("needed", "offered"):
        for path in sorted((folder / needed).iterdir()):
            with path.open("rb") as file:
                if not LIBC.syscall(_FINIT_MODULE, file.fileno(), b"", 0):
                    continue
            code = ctypes.get_errno()
            if needed == "needed" and code != errno.EEXIST:
                raise OSError(code, os.strerror(code), str(path))


def say(words: str) -> None:
    """On the console, which is the host's to read."""
    os.write(2, f"confide: {words}\n".encode())


if __name__ == "__main__":
    main()
