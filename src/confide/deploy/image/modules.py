"""Modules of a kernel, and the order in which they are loaded: what a module depends on comes before it."""

import lzma
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Final

from confide.deploy.image.trees import Entry
from confide.errors import InvalidImage

NEEDED: Final = (
    *("virtio_pci", "virtio_blk", "virtio_net", "virtio_rng"),
    *("sha256_generic", "dm_verity", "squashfs", "configfs"),
)
OFFERED: Final = ("sha256_ssse3", "tdx_guest", "sev_guest")
"""Loaded where the machine takes them: faster hashes, and the evidence of TDX and SEV-SNP."""
MAX_BYTES: Final = 64 << 20
_FILE: Final = re.compile(r"lib/modules/[^/]+/kernel/(?:.+/)?(?P<name>[^/]+)\.ko(?P<packed>\.xz)?")
_DEPENDS: Final = re.compile(rb"\0depends=([^\0]*)\0")
"""In `.modinfo`, a section of words that end in zeros."""


class Modules:
    """Of one kernel. files: those of its package, by path."""

    def __init__(self, files: Mapping[str, Entry]) -> None:
        found = ((_FILE.fullmatch(path), entry) for path, entry in files.items())
        self._files = {_plain(matched["name"]): (matched["packed"], entry) for matched, entry in found if matched}
        built_in = [entry for path, entry in files.items() if path.endswith("/modules.builtin")]
        if len(built_in) != 1:
            raise InvalidImage("The lock file has to name exactly one kernel; take the one of the release.")
        self._built_in = {_plain(Path(line).stem) for line in built_in[0].read().decode().splitlines()}

    def in_order(self, names: Iterable[str], loaded: Iterable[str] = ()) -> dict[str, bytes]:
        """The modules of these names, and what they depend on, by name; without those that are built in or loaded.

        InvalidImage for one that the kernel does not have.
        """
        ordered: dict[str, bytes] = {}
        passed = {*loaded, *self._built_in}

        def add(name: str) -> None:
            if name in passed:
                return
            passed.add(name)
            content = self._content(name)
            for needed in depends(content):
                add(needed)
            ordered[name] = content

        for name in names:
            add(name)
        return ordered

    def _content(self, name: str) -> bytes:
        if name not in self._files:
            raise InvalidImage(f"The kernel of the lock file has no module {name}; take the lock of the release.")
        packed, entry = self._files[name]
        raw = entry.read()
        if not packed:
            return raw
        return lzma.LZMADecompressor(memlimit=MAX_BYTES).decompress(raw, MAX_BYTES)


def depends(module: bytes) -> list[str]:
    """What a module says that it depends on. InvalidImage where it says nothing, or more than one thing."""
    found = _DEPENDS.findall(module)
    if len(found) != 1:
        raise InvalidImage("A module of the kernel does not say what it depends on; take the lock of the release.")
    return [_plain(name) for name in found[0].decode("ascii", "replace").split(",") if name]


def _plain(name: str) -> str:
    """The kernel takes both for the same."""
    return name.replace("-", "_")
