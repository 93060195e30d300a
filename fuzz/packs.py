"""Pack folders that were damaged on the client's disk."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
from confide.hybrid.client.packs import MaskPack, PackStore

from confide.errors import ConfideError
from confide.packages.manifest import PackageKind
from confide.rlwe.parameters import Parameters

from .bench import manifest_for, scratch, small_weights
from .script import Script

SEED = bytes(32)


@functools.cache
def _parameters() -> list[Parameters]:
    """Of two groups with two rows, so that a pack is small."""
    manifest = manifest_for(small_weights(), PackageKind.SHELL)
    return [group.parameters(manifest.profile) for group in manifest.groups]


def _store(folder: Path) -> PackStore:
    return PackStore(folder, "0" * 64, _parameters())


@functools.cache
def _originals() -> list[Path]:
    """A pack being prepared, and one that is ready."""
    folders = []
    for done in (1, 2):
        folder = scratch(f"packs-{done}")
        with _store(folder) as store:
            pack = store.create(SEED)
            for group, parameters in enumerate(_parameters()[:done]):
                pack.write_group(group, np.zeros((parameters.tokens, parameters.rows), np.int32))
            if done == 2:
                pack.finish()
        folders.append(folder)
    return folders


def packs(data: bytes) -> None:
    """Damage the files of a pack, then use it."""
    script = Script(data)
    folder = scratch("packs")
    shutil.copytree(script.choice(_originals()), folder, dirs_exist_ok=True)
    (pack,) = folder.glob("pack-*")
    while script:
        _damage(pack / script.choice(["pack.json", "keys", "masks.bin", "groups-done"]), script)
    with _store(folder) as store:
        for found in store.packs(SEED):
            _use(found)


def _damage(path: Path, script: Script) -> None:
    match script.number() % 4:
        case 0:
            path.write_bytes(script.chunk())
        case 1 if path.exists():
            path.write_bytes(script.damaged(path.read_bytes()))
        case 2:
            path.unlink(missing_ok=True)
        case _ if path.exists():
            with path.open("r+b") as file:
                file.seek(script.number(3) % path.stat().st_size if path.stat().st_size else 0)
                file.write(script.chunk())


def _use(pack: MaskPack) -> None:
    if not pack.prepared:
        for group in range(pack.groups_done, len(_parameters())):
            if pack.group_masks(group).shape != (_parameters()[group].tokens, _parameters()[group].columns):
                raise AssertionError("masks of the wrong shape")
        return
    for block in pack.take(2):
        for group, parameters in enumerate(_parameters()):
            try:
                values = block.values(group)
            except ConfideError:
                continue
            if values.shape[1] != parameters.rows or values.any():
                raise AssertionError("values that were not written were taken")
    pack.burn_to(1 << 12)


def _seeds() -> list[bytes]:
    facts = b'{"pack":"' + b"0" * 32 + b'"}'
    return [
        bytes([0]),
        bytes([1]),
        bytes([1, 0, 0, len(facts)]) + facts,
        bytes([1, 1, 3, 40, 0, 0, 2, 0, 0]),
        bytes([1, 2, 3, 9, 0, 0, 1, 7]),
        bytes([1, 1, 1, 0, 1, 0, 3]),
        bytes([0, 3, 0, 1]) + b"1",
        bytes([0, 1, 3, 64, 0, 0, 1, 9]),
        bytes([0, 0, 1, 4, 0, 0, 0, 2, 34, 34]),
    ]


TARGETS: dict[str, Callable[[bytes], None]] = {"packs": packs}
SEEDS: dict[str, Callable[[], list[bytes]]] = {"packs": _seeds}
