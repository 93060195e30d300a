"""Making a hint: from a model's matrices and its owner's key, a tile of rows at a time, straight to disk.

What is drawn for it comes from the owner's key and from what it is drawn for: made twice, it is the same, and for
other weights it has nothing in common. A making that is interrupted goes on after the last whole layer group.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec
import torch
from torch import Tensor

from confide.disk.files import hold_folder, name_file, replace_file
from confide.errors import ConfideError, InvalidPackage
from confide.mapped import Mapped, on_cores
from confide.packages.hint import hint_bytes, hint_size
from confide.packages.manifest import HINT_FOLDER, Group, Manifest, PackageKind, hint_name, read_package_file
from confide.packages.owner import OwnerKey
from confide.packages.server_package import ServerPackage
from confide.packages.signing import file_digest, open_package, resign_package
from confide.rlwe.hint import TILE_ROWS, HintMaker
from confide.rlwe.parameters import Profile, require_noise_fits
from confide.rlwe.public import PublicSeed

_UNFINISHED: Final = ".unfinished-hint-"
_MAX_RECORD: Final = 64
OnHint = Callable[[int, int], object]
"""Called with the bytes of a hint that are done so far, and those there will be."""


class HintWriter:
    """Makes the hint, and U, of one model of an owner.

    manifest: of either half; its `hint` and `files` do not matter. mapped: what makes tiles; it gets a layer group's
    weights, and keys that are good for its hint alone.
    """

    def __init__(self, manifest: Manifest, owner: OwnerKey, mapped: Mapped = on_cores) -> None:
        self._manifest = manifest
        self._mapped = mapped
        self._owner = owner
        self._public = PublicSeed(bytes.fromhex(manifest.model_digest), manifest.epoch)

    def u(self, index: int, weights: Tensor) -> Tensor:
        """U of a layer group as its server keeps it: int8 (rows, N). weights: int8 (rows, columns)."""
        return torch.from_numpy(self._maker(index, weights).u())

    def _maker(self, index: int, weights: Tensor) -> HintMaker:
        return HintMaker(weights, self._public, self._owner.hint_key(), index)

    def make(
        self, weights: Callable[[int], Tensor], beside: Path, on_hint: OnHint | None = None
    ) -> tuple[Path, dict[str, str]]:
        """Make what is still missing. Returns the folder of the files, in `beside`, and their digests by `hint_name`.

        weights: gives int8 (rows, columns) of a group; asked for one at a time. Raises InsecureParameters where the
        noise, now that it is known, does not fit; ConfideError where another process is at it, or the disk is full.
        """
        draft = self._draft(beside)
        draft.mkdir(exist_ok=True)
        lock = hold_folder(draft)
        if lock is None:
            raise ConfideError(f"Another process makes this hint, in {draft}; wait until it is done.")
        progress = _Progress(on_hint, hint_size(self._manifest))
        with lock:
            try:
                digests = {
                    hint_name(index): self._group(index, weights, draft, progress)
                    for index in range(len(self._manifest.groups))
                }
            except OSError as error:
                raise ConfideError(
                    f"The hint cannot be written to {draft} ({error.strerror}); it takes {progress.total / 1e9:.2f} "
                    "GB. Make room and run the same command again: what is done is kept."
                ) from error
        return draft, digests

    def _draft(self, beside: Path) -> Path:
        words = self._owner.public.raw + bytes.fromhex(self._manifest.model_digest) + self._manifest.table_digest()
        return beside / f"{_UNFINISHED}{hashlib.sha256(words).hexdigest()[:16]}"

    def _group(self, index: int, weights: Callable[[int], Tensor], draft: Path, progress: "_Progress") -> str:
        group = self._manifest.groups[index]
        path = draft / Path(hint_name(index)).name
        if (digest := _whole(path, group)) is not None:
            progress.more(hint_bytes(group))
            return digest
        parameters = group.parameters(self._manifest.profile)
        hashed = hashlib.sha256()
        with path.with_suffix(".part").open("wb") as file, one_thread():
            for tile in self._mapped(self._maker(index, weights(index)).tile, range(0, group.rows, TILE_ROWS)):
                require_noise_fits(parameters, tile.noise_std)
                content = tile.hint.data.cast("B")
                hashed.update(content)
                file.write(content)
                progress.more(len(content))
        name_file(path.with_suffix(".part"), path)
        replace_file(_record(path), hashed.hexdigest().encode())
        return hashed.hexdigest()


@contextmanager
def one_thread() -> Iterator[None]:
    """Of torch's, for each operation: those too small to be shared among several, which would wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class _Progress:
    def __init__(self, on_hint: OnHint | None, total: int) -> None:
        self.total = total
        self._on_hint = on_hint
        self._done = 0

    def more(self, count: int) -> None:
        self._done += count
        if self._on_hint:
            self._on_hint(self._done, self.total)


def _record(path: Path) -> Path:
    return path.with_suffix(".sha256")


def _whole(path: Path, group: Group) -> str | None:
    """The digest of a group's file that an earlier making finished; None where there is none, or it has changed."""
    try:
        digest = read_package_file(_record(path), _MAX_RECORD).decode("ascii", "replace")
        whole = path.stat().st_size == hint_bytes(group) and file_digest(path) == digest
    except (InvalidPackage, FileNotFoundError):
        return None
    return digest if whole else None


def place_hint(draft: Path, shell: Path) -> None:
    """Move a whole hint, as `HintWriter.make` left it, to its place in a shell."""
    for path in draft.iterdir():
        if path.suffix != ".bin":
            path.unlink()
    draft.rename(shell / HINT_FOLDER)


def forget_drafts(folder: Path) -> None:
    """Remove what unfinished hints of other splits left in a folder."""
    for draft in folder.glob(f"{_UNFINISHED}*"):
        shutil.rmtree(draft)


def add_hint(
    client: Path, server: Path, owner: OwnerKey, on_hint: OnHint | None = None, mapped: Mapped = on_cores
) -> Manifest:
    """Make the hint of a split that has none, and sign both folders again. Returns the shell's layer table.

    Raises InvalidPackage for folders of different splits, of open weights or with a hint already, and for damaged
    ones; UntrustedOwner where the key is not the one that signed them.
    """
    shell = open_package(client, PackageKind.SHELL, {owner.public}).manifest
    package = ServerPackage(server, open_package(server, PackageKind.SERVER, {owner.public}))
    shell.require_counterpart(package.manifest)
    if shell.profile is Profile.OPEN_WEIGHTS:
        raise InvalidPackage(f"{client} has open weights, which need no hint.")
    if (client / HINT_FOLDER).exists():
        raise InvalidPackage(f"{client / HINT_FOLDER} exists already; remove it to make the hint again.")
    writer = HintWriter(shell, owner, mapped)
    draft, digests = writer.make(lambda index: package.group(index).weights, client.parent, on_hint)
    for folder, manifest in ((server, package.manifest), (client, shell)):
        resign_package(folder, msgspec.structs.replace(manifest, hint=digests), owner)
    place_hint(draft, client)
    return msgspec.structs.replace(shell, hint=digests)
