"""Fetching a shell's hint, from wherever it lies, from whoever has it: its digests are signed with the shell.

A file has its name only once it is whole and verified; those that are there already and right are not fetched again.
"""

from pathlib import Path

from confide.client.objects import opened
from confide.client.package_fetch import fetch_file
from confide.errors import ConfideError, DamagedFile, InvalidPackage, StaleHint
from confide.packages.hint import OnBytes, hint_bytes, verified
from confide.packages.listing import Listed
from confide.packages.manifest import HINT_FOLDER, Manifest, hint_name


def fetch_hint(
    folder: Path,
    manifest: Manifest,
    source: str,
    *,
    ca: Path | str | None = None,
    endpoint: str | None = None,
    on_bytes: OnBytes = lambda count: None,
) -> None:
    """Fetch the hint of the shell in a folder; `manifest` is the shell's, its signature checked.

    source, ca, endpoint: see `objects.opened`, of the hint or of a shell with it. Raises StaleHint where what comes is
    not what was signed, InvalidPackage where the table knows of no hint or the source has none, ConnectionLost.
    """
    if not manifest.hint:
        raise InvalidPackage(
            f"{folder} was split with --no-hint; its owner makes a hint with `confide hint make` and hands the shell "
            "out anew."
        )
    (folder / HINT_FOLDER).mkdir(exist_ok=True)
    with opened(source, ca=ca, endpoint=endpoint) as read:
        for index, group in enumerate(manifest.groups):
            try:
                verified(folder, index, manifest, on_bytes)
                continue
            except InvalidPackage:  # missing or wrong: the reason to fetch it
                pass
            name = hint_name(index)
            file = Listed(name, hint_bytes(group), manifest.hint[name])
            try:
                fetch_file(read, source, folder / name, file, on_bytes)
            except DamagedFile as error:
                raise StaleHint(
                    f"What {source} has as {Path(name).name} is not the hint that was signed with this shell; fetch it "
                    "from elsewhere, or get the shell that belongs to it."
                ) from error
            except OSError as error:
                raise ConfideError(
                    f"{folder / name} cannot be written ({error.strerror}); make room and fetch again: what is done "
                    "is kept."
                ) from error
