"""Choices for speed, each with its reason: what a target can express of them, and what it cannot.

`confide doctor` looks for the same on a machine, and measures what can be measured there.
"""

import re
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, Self

from confide.errors import DeployError

_RANGE: Final = re.compile(r"([0-9]{1,4})(?:-([0-9]{1,4}))?")
MAX_PROCESSORS: Final = 512

REASONS: Final = MappingProxyType(
    {
        "huge-pages": "fewer entries to look up for weights of gigabytes; each miss costs more in a TEE, which also "
        "checks who owns the page",
        "prefault": "memory is accepted before the first question, which would otherwise wait for it page by page",
        "one-thread-a-core": "two threads of a core share its units for matrices, and see each other's timing",
        "pinned": "a virtual processor that moves leaves its caches and its node's memory behind",
        "node": "memory of another node is slower, and a guest's memory does not move once it is private",
        "amx": "matrices are multiplied in units of their own; without them it is slow, and nobody is told why",
    }
)
"""Why, by the name of a choice."""

NOT_EXPRESSED: Final = MappingProxyType(
    {
        "tcmalloc": "it is put before the C library by LD_PRELOAD, which `deploy lint` refuses; link it in your image",
        "intel-openmp": "PyTorch comes with GNU's; another is put before it by LD_PRELOAD, as above",
        "no-sub-numa-clustering": "it is set in the host's firmware; `confide doctor` on the host says whether it is",
        "host-huge-pages": "Linux 6.16 backs private memory of TDX and SEV-SNP with pages of 4 KiB, whatever is asked "
        "for; the guest's own page tables gain from --huge-pages",
    }
)
"""Why not, by the name of what no target here writes."""


@dataclass(frozen=True)
class Tuning:
    """Of a virtual machine. pinned: a host's processor for each of the machine's; empty leaves them free.

    node: the host's NUMA node whose memory is taken, and no other's. huge_pages and prefault stand on the kernel's
    command line, which is measured; the others are the host's, and not.
    """

    huge_pages: bool = False
    prefault: bool = False
    pinned: tuple[int, ...] = ()
    node: int | None = None
    amx: bool = False

    @classmethod
    def of(cls, *, huge_pages: bool, prefault: bool, pin: str | None, node: int | None, amx: bool = False) -> Self:
        """From options. pin: such as 0-15,32. DeployError."""
        return cls(huge_pages, prefault, () if pin is None else processors(pin), node, amx)

    def __post_init__(self) -> None:
        if len(set(self.pinned)) != len(self.pinned):
            raise DeployError("--pin names a processor twice; give each of the machine's one of its own.")
        if self.node is not None and not 0 <= self.node < 1024:
            raise DeployError(f"There is no NUMA node {self.node}; `confide doctor` on the host counts them.")

    def require_for(self, processors: int) -> None:
        """DeployError where another number of processors is pinned than the machine has."""
        if self.pinned and len(self.pinned) != processors:
            raise DeployError(f"--pin names {len(self.pinned)} processors, and the machine has {processors}.")

    @property
    def arguments(self) -> str:
        """What the kernel is told (Linux, kernel-parameters: transparent_hugepage, accept_memory)."""
        words = (
            " transparent_hugepage=always" if self.huge_pages else "",
            " accept_memory=eager" if self.prefault else "",
        )
        return "".join(words)

    @property
    def reasons(self) -> dict[str, str]:
        """Why, by the name of each choice that was made."""
        chosen = {
            "huge-pages": self.huge_pages,
            "prefault": self.prefault,
            "one-thread-a-core": True,
            "pinned": bool(self.pinned),
            "node": self.node is not None,
            "amx": self.amx,
        }
        return {name: REASONS[name] for name, made in chosen.items() if made}


UNTUNED: Final = Tuning()


def processors(text: str) -> tuple[int, ...]:
    """A list of processors as Linux writes them, such as 0-3,8. DeployError."""
    found: list[int] = []
    for part in text.split(","):
        matched = _RANGE.fullmatch(part)
        if matched is None:
            raise DeployError("--pin is a list of processors such as 0-15,32; correct it.")
        first, last = int(matched[1]), int(matched[2] or matched[1])
        found.extend(range(first, last + 1))
        if len(found) > MAX_PROCESSORS:
            raise DeployError(f"--pin names more than {MAX_PROCESSORS} processors; no machine has so many.")
    return tuple(found)
