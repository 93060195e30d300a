"""Builds the wheel and the source archive of a commit, the same bytes wherever and whenever it is done: `make dist`.

python tools/build_release.py FOLDER [COMMIT]    # HEAD without

The build sees the files of the commit and nothing else of the tree, with modes and times that are the commit's and not
this machine's; what is built with is pinned in constraints.txt.
"""

import gzip
import io
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
_UMASK: Final = 0o022


def build(folder: Path, commit: str = "HEAD") -> list[Path]:
    """Make both in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    epoch = int(_git("show", "--no-patch", "--format=%ct", f"{commit}^{{commit}}"))
    with tempfile.TemporaryDirectory() as place:
        source, made = Path(place) / "source", Path(place) / "made"
        _unpack(_git("archive", "--format=tar", commit), source)
        _run_build("--sdist", source, made, epoch)
        (draft,) = made.glob("*.tar.gz")
        archive = folder / draft.name
        archive.write_bytes(_plain(draft.read_bytes(), epoch))
        unpacked = Path(place) / "unpacked"
        _unpack(archive.read_bytes(), unpacked)
        (again,) = unpacked.iterdir()
        _run_build("--wheel", again, folder, epoch)
    (wheel,) = folder.glob(f"{draft.name.removesuffix('.tar.gz')}-*.whl")
    return [archive, wheel]


def _git(*arguments: str) -> bytes:
    return subprocess.run(["git", *arguments], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout


def _run_build(kind: str, source: Path, folder: Path, epoch: int) -> None:
    # Without isolation: what is installed here is pinned, and what pip would fetch for a build is not.
    command = [sys.executable, "-m", "build", "--no-isolation", kind, "--outdir", str(folder), str(source)]
    environment = os.environ | {"SOURCE_DATE_EPOCH": str(epoch)}
    subprocess.run(command, env=environment, umask=_UMASK, stdout=subprocess.DEVNULL, check=True)


def _unpack(archive: bytes, folder: Path) -> None:
    with tarfile.open(fileobj=io.BytesIO(archive)) as files:
        for member in files:
            member.mode = _mode(member)
            files.extract(member, folder, filter="data")


def _plain(archive: bytes, epoch: int) -> bytes:
    """An archive with the same files, and nothing of the machine or the moment that it was packed in."""
    packed = io.BytesIO()
    with (
        tarfile.open(fileobj=io.BytesIO(archive)) as before,
        gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=epoch) as zipped,
        tarfile.open(fileobj=zipped, mode="w", format=tarfile.PAX_FORMAT) as after,
    ):
        for member in sorted(before, key=lambda one: one.name):
            plain = tarfile.TarInfo(member.name)
            plain.type, plain.size, plain.mtime, plain.mode = member.type, member.size, epoch, _mode(member)
            after.addfile(plain, before.extractfile(member) if member.isfile() else None)
    return packed.getvalue()


def _mode(member: tarfile.TarInfo) -> int:
    return 0o755 if member.isdir() or member.mode & 0o100 else 0o644


def main() -> None:
    """Build, and say what."""
    for path in build(Path(sys.argv[1]), *sys.argv[2:3]):
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    main()
