"""Trees of files without a machine's or a moment's traces, and the archives that they go into.

Everything is root's, of the time 0, with one of two modes, and in the order of its path. So bytes follow from names and
contents alone. Nothing is compressed: a compressor's version would be in the measurement.
"""

import io
import stat
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final

from confide.errors import InvalidImage

_PARTS: Final = 4
"""Bytes that names and contents are filled up to in a newc archive."""


@dataclass(frozen=True)
class Entry:
    """kind: S_IFDIR, S_IFREG or S_IFLNK. content: of a file, or where it lies. target: of a link."""

    kind: int
    content: bytes | Path = b""
    executable: bool = False
    target: str = ""

    @property
    def mode(self) -> int:
        """As stat(2) has it."""
        if self.kind == stat.S_IFLNK:
            return self.kind | 0o777
        return self.kind | (0o755 if self.kind == stat.S_IFDIR or self.executable else 0o644)

    def read(self) -> bytes:
        """The whole content; of a link, where it leads."""
        if self.kind == stat.S_IFLNK:
            return self.target.encode()
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


Tree = dict[str, Entry]
"""By path, without a slash before it."""


def file(content: bytes | Path, *, executable: bool = False) -> Entry:
    """A file's entry."""
    return Entry(stat.S_IFREG, content, executable)


def folder() -> Entry:
    """A folder's entry."""
    return Entry(stat.S_IFDIR)


def tree_of(place: Path) -> Tree:
    """Everything below a folder; who owns it, and whom it is open to, is left out. InvalidImage for devices."""
    found: Tree = {}
    for path in place.rglob("*"):
        name, facts = path.relative_to(place).as_posix(), path.lstat()
        if stat.S_ISLNK(facts.st_mode):
            found[name] = Entry(stat.S_IFLNK, target=str(path.readlink()))
        elif stat.S_ISDIR(facts.st_mode):
            found[name] = folder()
        elif stat.S_ISREG(facts.st_mode):
            found[name] = file(path, executable=bool(facts.st_mode & stat.S_IXUSR))
        else:
            raise InvalidImage(f"{path} is no file, folder or link; an image has nothing else from outside.")
    return found


def with_folders(tree: Tree) -> Tree:
    """With the folders that its paths lie in, in order."""
    parents = {str(parent) for name in tree for parent in Path(name).parents} - {"."}
    return dict(sorted({**dict.fromkeys(parents, folder()), **tree}.items()))


def write_cpio(tree: Tree, out: IO[bytes]) -> None:
    """As Linux takes it for an initial RAM disk (Documentation/driver-api/early-userspace/buffer-format)."""
    for number, (name, entry) in enumerate([*with_folders(tree).items(), ("TRAILER!!!", Entry(0))], 1):
        content = entry.read()
        mode = entry.mode if entry.kind else 0
        fields = (number, mode, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name.encode()) + 1, 0)
        for part in (b"070701" + b"".join(b"%08X" % one for one in fields) + name.encode() + b"\0", content):
            out.write(part + bytes(-len(part) % _PARTS))


def write_tar(tree: Tree, out: IO[bytes]) -> None:
    """As mksquashfs takes it."""
    kinds = {stat.S_IFDIR: tarfile.DIRTYPE, stat.S_IFREG: tarfile.REGTYPE, stat.S_IFLNK: tarfile.SYMTYPE}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for name, entry in with_folders(tree).items():
            member = tarfile.TarInfo(name)
            member.type, member.mode, member.linkname = kinds[entry.kind], stat.S_IMODE(entry.mode), entry.target
            if isinstance(entry.content, Path):
                member.size = entry.content.stat().st_size
                with entry.content.open("rb") as content:
                    archive.addfile(member, content)
            else:
                member.size = len(entry.content)
                archive.addfile(member, io.BytesIO(entry.content))
