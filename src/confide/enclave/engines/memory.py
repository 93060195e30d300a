"""How much memory this process may still take."""

import os
from contextlib import suppress
from pathlib import Path
from typing import Final

_CGROUPS: Final = Path("/sys/fs/cgroup")
_UNKNOWN: Final = 1 << 60


def available_bytes(root: Path = Path("/")) -> int:
    """What the kernel can give without swapping, and no more than the process's control groups (version 2) allow.

    root: of the file system with /proc and /sys.
    """
    return min(_machine(root), _control_groups(root))


def _machine(root: Path) -> int:
    """`MemAvailable` of proc_meminfo(5)."""
    with suppress(OSError, ValueError, IndexError):
        for line in (root / "proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _control_groups(root: Path) -> int:
    """`memory.max` less what is taken, of the group and of those above it; the page cache counts as free."""
    rooms = [_UNKNOWN]
    with suppress(OSError):
        own = (root / "proc/self/cgroup").read_text().strip().rpartition("::")[2].lstrip("/")
        top = root / _CGROUPS.relative_to("/")
        group = top / own
        for folder in (group, *group.parents):
            with suppress(OSError, ValueError):
                most = int((folder / "memory.max").read_text())  # or the word max
                taken = int((folder / "memory.current").read_text())
                rooms.append(max(0, most - taken + _reclaimable(folder)))
            if folder == top:
                break
    return min(rooms)


def _reclaimable(folder: Path) -> int:
    with suppress(OSError, ValueError):
        pairs = (line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return sum(int(value) for name, value in pairs if name in ("inactive_file", "active_file"))
    return 0
