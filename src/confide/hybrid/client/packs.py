"""Mask packs on the client's disk: what was prepared offline, and the rule that each mask serves once.

A pack folder holds `pack.json` (public facts), `keys` (mode 0600) and `masks.bin`. The masks of a block of tokens,
and the encrypted values that unmask their answers, all hang on that block's key. Taking a block erases its key from
the file, durably, before any frame that uses it can leave: so the key file itself is the high-water mark, a crash
burns what was taken, and used masks cannot be recovered from the disk.
"""

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Annotated, Final

import msgspec
import numpy as np
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from numpy.typing import NDArray

from confide.disk.files import hold_folder, replace_file, sync_folder
from confide.errors import PackCorrupted, PackInUse, PackUnavailable
from confide.hybrid.closing import Closing
from confide.rlwe.masks import uniform_masks
from confide.rlwe.parameters import Parameters
from confide.rlwe.streams import KEY_BYTES, derive_key, fresh_key

BLOCK_TOKENS: Final = 16
"""Tokens that share a key: what a crash, or the end of a session, burns at most."""
_SCRAP: Final = "scrap-"
"""Folders with this name are packs being made or deleted, of no worth to anybody after a crash."""
_TAG_BYTES = 16
_MAX_DIGITS = 8
_ERASED = bytes(KEY_BYTES)
_MAGIC = b"confide pack keys 1".ljust(32, b"\0")


class PackFacts(msgspec.Struct, frozen=True):
    """The public facts of a pack: which model and server it is for."""

    pack: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{32}$")]
    client_nonce: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    model_digest: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    server_seed: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
    tokens: Annotated[int, msgspec.Meta(ge=BLOCK_TOKENS, le=1 << 16, multiple_of=BLOCK_TOKENS)]


@dataclass(frozen=True)
class Block:
    """The keys of one taken block of tokens, in memory only."""

    pack: "MaskPack"
    index: int
    key: bytes

    def __repr__(self) -> str:
        return f"Block(index={self.index}, <hidden>)"

    @property
    def first_token(self) -> int:
        """The pack's mask index of the block's first token."""
        return self.index * BLOCK_TOKENS

    def masks(self, group: int) -> NDArray[np.int32]:
        """int32 (BLOCK_TOKENS, columns): the one-time pads of a group's inputs."""
        return self.pack.block_masks(self.key, group)

    def values(self, group: int) -> NDArray[np.int32]:
        """int32 (BLOCK_TOKENS, rows): what unmasks a group's answers. PackCorrupted if the file was changed."""
        return self.pack.block_values(self.key, self.index, group)


class MaskPack:
    """One pack folder, opened by the one `PackStore` that holds the lock."""

    def __init__(self, folder: Path, facts: PackFacts, groups: Sequence[Parameters]) -> None:
        self.folder = folder
        self.facts = facts
        self.id = bytes.fromhex(facts.pack)
        self.blocks = facts.tokens // BLOCK_TOKENS
        self._groups = groups
        self._mask_offsets = _offsets([BLOCK_TOKENS * group.columns * 4 for group in groups])
        self._value_offsets = _offsets([self.blocks * self._chunk_bytes(index) for index in range(len(groups))])
        self._keys = _KeyFile(folder / "keys", self.blocks)

    def _chunk_bytes(self, group: int) -> int:
        return BLOCK_TOKENS * self._groups[group].rows * 4 + _TAG_BYTES

    @property
    def prepared(self) -> bool:
        """Whether the offline phase is over for all groups."""
        return self._keys.seed is None

    @property
    def next_block(self) -> int:
        """The first block whose key still exists, which is the high-water mark."""
        return self._keys.first_kept

    @property
    def tokens_left(self) -> int:
        """Masks that can still be taken."""
        return (self.blocks - self.next_block) * BLOCK_TOKENS

    def take(self, blocks: int) -> list[Block]:
        """Take up to this many blocks, erasing their keys durably first."""
        if not self.prepared:
            raise PackCorrupted("A pack that is still being prepared has no masks to give; finish preparing it.")
        first = self.next_block
        last = min(first + blocks, self.blocks)
        keys = self._keys.erase(first, last)
        return [Block(self, first + place, key) for place, key in enumerate(keys)]

    def burn_to(self, token: int) -> int:
        """Make sure that no mask index below `token` is ever used; returns how many tokens that burned."""
        blocks = min(-(-token // BLOCK_TOKENS), self.blocks) - self.next_block
        return len(self.take(blocks)) * BLOCK_TOKENS if blocks > 0 else 0

    def block_masks(self, key: bytes, group: int) -> NDArray[np.int32]:
        """The one-time pads of a group that belong to a block's key."""
        offset = self._mask_offsets[group]
        return uniform_masks(derive_key(key, "masks"), self._groups[group], BLOCK_TOKENS, offset=offset)

    def block_values(self, key: bytes, index: int, group: int) -> NDArray[np.int32]:
        """The unmasking values of a group in a block, decrypted from the file."""
        size = self._chunk_bytes(group)
        start = self._value_offsets[group] + index * size
        # Read rather than mapped: where a mapped file is cut, the process dies.
        with _storage(self.folder), (self.folder / "masks.bin").open("rb", buffering=0) as file:
            whole = os.fstat(file.fileno()).st_size == self._value_offsets[-1]
            encrypted = os.pread(file.fileno(), size, start)
        if not whole:
            raise PackCorrupted(f"{self.folder / 'masks.bin'} has been cut; {_remedy(self.folder)}.")
        try:
            values = _cipher(key).decrypt(_nonce(group), encrypted, None)
        except InvalidTag:
            raise PackCorrupted(
                f"masks.bin in {self.folder} is not what was written to it; delete that folder and prepare a new pack."
            ) from None
        return np.frombuffer(values, np.int32).reshape(BLOCK_TOKENS, -1)

    # -- what the server must know ------------------------------------------------------------------------------

    @property
    def answered_to(self) -> int:
        """The server has answered indexes below this one, and perhaps more: its mark can never be lower."""
        with suppress(OSError):
            return int.from_bytes((self.folder / "answered").read_bytes()[:4], "little")
        return 0

    def note_answered(self, end: int) -> None:
        """Remember that the server has answered up to here."""
        # Where this is lost, in a crash or for want of room, an old record at the server goes unnoticed, no more.
        with suppress(OSError):
            descriptor = os.open(self.folder / "answered", os.O_WRONLY | os.O_CREAT, 0o600)
            try:
                os.pwrite(descriptor, end.to_bytes(4, "little"), 0)
            finally:
                os.close(descriptor)

    # -- while the pack is being prepared ----------------------------------------------------------------------

    @property
    def seed(self) -> bytes:
        """The seed of the encryption's secrets; it exists only until the pack is prepared."""
        seed = self._keys.seed
        if seed is None:
            raise PackCorrupted("The pack is prepared already; its encryption seed is gone.")
        return seed

    @property
    def groups_done(self) -> int:
        """Groups whose values are durably on disk."""
        path = self.folder / "groups-done"
        with _storage(self.folder):
            content = path.read_bytes()[:_MAX_DIGITS] if path.exists() else b"0"
        if not content.isdigit() or int(content) > len(self._groups):
            raise _corrupted(path)
        return int(content)

    def group_masks(self, group: int) -> NDArray[np.int32]:
        """All one-time pads of a group: int32 (tokens, columns)."""
        return np.concatenate([self.block_masks(key, group) for key in self._keys.all()])

    def write_group(self, group: int, values: NDArray[np.int32]) -> None:
        """Encrypt and write a group's unmasking values, int32 (tokens, rows), then count the group as done."""
        with _storage(self.folder):
            with (self.folder / "masks.bin").open("r+b") as file:
                file.seek(self._value_offsets[group])
                for index, key in enumerate(self._keys.all()):
                    block = np.ascontiguousarray(values[index * BLOCK_TOKENS : (index + 1) * BLOCK_TOKENS])
                    file.write(_cipher(key).encrypt(_nonce(group), block.reshape(-1).view(np.uint8).data, None))
                file.flush()
                os.fsync(file.fileno())
            replace_file(self.folder / "groups-done", str(group + 1).encode())

    def finish(self) -> None:
        """Erase the encryption seed: from now on nothing on this disk opens the server's ciphertexts."""
        self._keys.erase_seed()
        with _storage(self.folder):
            (self.folder / "groups-done").unlink(missing_ok=True)

    def move_to(self, folder: Path) -> None:
        """Rename the pack's folder."""
        self.folder.rename(folder)
        self.folder = folder
        self._keys = _KeyFile(folder / "keys", self.blocks)

    def erase_keys(self) -> None:
        """Erase every key: nothing in the folder can be read or used any more."""
        self._keys.erase_all()

    def create_files(self) -> None:
        """Make the key file, with fresh keys, and room for the values."""
        self._keys.create()
        with (self.folder / "masks.bin").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, self._value_offsets[-1])


class PackStore(Closing):
    """A folder of packs for one model, owned by one process at a time.

    PackInUse where another process holds the folder, and in the child of a fork.
    """

    def __init__(self, folder: Path, model_digest: str, groups: Sequence[Parameters]) -> None:
        self.folder = folder
        self._model_digest = model_digest
        self._groups = groups
        self._process = os.getpid()
        with _storage(folder):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._lock = _lock(folder)
            for scrap in folder.glob(f"{_SCRAP}*"):
                shutil.rmtree(scrap)

    def require_owner(self) -> None:
        """PackInUse in a process that inherited this store by a fork."""
        if os.getpid() != self._process:
            raise PackInUse(
                "This process was forked from one that owns the mask packs, and no mask may serve twice; "
                "open the model again in the new process, with a pack folder of its own."
            )

    def adopt(self, folder: Path, server_seed: bytes, *, unfinished: bool = False) -> list[MaskPack]:
        """Move the prepared packs of another folder into this one, or all of them; none while it is in use."""
        self.require_owner()
        if not folder.exists():
            return []
        try:
            lock = _lock(folder)
        except PackInUse:
            return []
        with lock:
            adopted = [pack for pack in self._packs_in(folder, server_seed) if pack.prepared or unfinished]
            for pack in adopted:
                pack.move_to(self.folder / pack.folder.name)
            sync_folder(folder)
            sync_folder(self.folder)
        return adopted

    def packs(self, server_seed: bytes) -> list[MaskPack]:
        """The packs for this model and server, oldest first."""
        self.require_owner()
        return self._packs_in(self.folder, server_seed)

    def _packs_in(self, folder: Path, server_seed: bytes) -> list[MaskPack]:
        packs = self._packs_of_model(folder)
        return [pack for pack in packs if pack.facts.server_seed == server_seed.hex()]

    def _packs_of_model(self, folder: Path) -> list[MaskPack]:
        with _storage(folder):
            # One without a description is damaged: it got its name when it was complete.
            described = [(_read_facts(path / "pack.json"), path) for path in folder.glob("pack-*")]
            described.sort(key=lambda pack: (pack[1] / "pack.json").stat().st_mtime_ns)
        return [
            MaskPack(path, self._fitting(path, facts), self._groups)
            for facts, path in described
            if facts.model_digest == self._model_digest
        ]

    def _fitting(self, path: Path, facts: PackFacts) -> PackFacts:
        if facts.tokens != self._groups[0].tokens:
            raise _corrupted(path / "pack.json")
        return facts

    def foreign_packs(self, server_seed: bytes) -> int:
        """How many packs for this model belong to another server, or to another life of this one."""
        self.require_owner()
        return sum(pack.facts.server_seed != server_seed.hex() for pack in self._packs_of_model(self.folder))

    def create(self, server_seed: bytes) -> MaskPack:
        """A new pack with fresh keys, to be prepared."""
        self.require_owner()
        identity = os.urandom(16).hex()
        tokens = self._groups[0].tokens
        facts = PackFacts(identity, os.urandom(32).hex(), self._model_digest, server_seed.hex(), tokens)
        draft = self.folder / f"{_SCRAP}{identity}"
        with _storage(self.folder):
            try:
                draft.mkdir(mode=0o700)
                pack = MaskPack(draft, facts, self._groups)
                pack.create_files()
                replace_file(draft / "pack.json", msgspec.json.format(msgspec.json.encode(facts)))
                pack.move_to(self.folder / f"pack-{identity}")
            except BaseException:
                shutil.rmtree(draft, ignore_errors=True)
                raise
            sync_folder(self.folder)
        return pack

    def discard(self, pack: MaskPack) -> None:
        """Delete a pack, its keys first."""
        self.require_owner()
        with suppress(PackCorrupted):  # then there are no keys to erase, and the rest goes all the same
            pack.erase_keys()
        with _storage(self.folder):
            pack.move_to(self.folder / f"{_SCRAP}{pack.facts.pack}")
            shutil.rmtree(pack.folder)
            sync_folder(self.folder)

    def close(self) -> None:
        """Give the folder up."""
        self._lock.close()


def disk_bytes(groups: Sequence[Parameters]) -> int:
    """What one pack of these layer groups takes on disk: its values and its keys."""
    rows = sum(group.rows for group in groups)
    tokens = groups[0].tokens
    tags = tokens // BLOCK_TOKENS * len(groups) * _TAG_BYTES
    return tokens * rows * 4 + tags + len(_MAGIC) + KEY_BYTES * (1 + tokens // BLOCK_TOKENS)


def _lock(folder: Path) -> IO[str]:
    lock = hold_folder(folder)
    if lock is None:
        raise PackInUse(
            f"Another process is using the packs in {folder}; wait for it, or give this one a folder of its own."
        )
    return lock


class _KeyFile:
    """MAGIC, the encryption seed, then one key a block; 32 bytes each, zeros where erased. Overwritten in place."""

    def __init__(self, path: Path, blocks: int) -> None:
        self._path = path
        self._blocks = blocks
        self._cache: bytearray | None = None
        self._first_kept = 0

    def create(self) -> None:
        keys = b"".join(fresh_key() for _ in range(1 + self._blocks))
        replace_file(self._path, _MAGIC + keys, mode=0o600)

    def _content(self) -> bytearray:
        if self._cache is None:
            with _storage(self._path.parent):
                content = bytearray(self._path.read_bytes())
            if len(content) != len(_MAGIC) + KEY_BYTES * (1 + self._blocks) or content[: len(_MAGIC)] != _MAGIC:
                raise PackCorrupted(
                    f"{self._path} is not a whole key file; delete {self._path.parent} and prepare a new pack."
                )
            self._cache = content
        return self._cache

    def _slot(self, index: int) -> slice:
        start = len(_MAGIC) + KEY_BYTES * (1 + index)
        return slice(start, start + KEY_BYTES)

    @property
    def seed(self) -> bytes | None:
        seed = bytes(self._content()[self._slot(-1)])
        return None if seed == _ERASED else seed

    def all(self) -> list[bytes]:
        return self._kept(0, self._blocks)

    def _kept(self, first: int, last: int) -> list[bytes]:
        keys = [bytes(self._content()[self._slot(index)]) for index in range(first, last)]
        if _ERASED in keys:
            # Blocks are taken in order, so this is damage; and masks from a key of zeros would be known to everyone.
            raise PackCorrupted(f"{self._path} has lost keys; {_remedy(self._path.parent)}.")
        return keys

    @property
    def first_kept(self) -> int:
        """Blocks are taken in order, so the first key that exists is the mark."""
        content = self._content()
        while self._first_kept < self._blocks and content[self._slot(self._first_kept)] == _ERASED:
            self._first_kept += 1
        return self._first_kept

    def erase(self, first: int, last: int) -> list[bytes]:
        """Take the keys of blocks first..last - 1 out of the file, durably, and return them."""
        keys = self._kept(first, last)
        if keys:
            self._overwrite(self._slot(first).start, KEY_BYTES * len(keys))
        return keys

    def erase_seed(self) -> None:
        self._overwrite(self._slot(-1).start, KEY_BYTES)

    def erase_all(self) -> None:
        self._overwrite(self._slot(-1).start, KEY_BYTES * (1 + self._blocks))

    def _overwrite(self, start: int, count: int) -> None:
        content = self._content()
        with _storage(self._path.parent), self._path.open("r+b", buffering=0) as file:
            done = 0
            while done < count:
                done += os.pwrite(file.fileno(), bytes(count - done), start + done)
            os.fsync(file.fileno())
        content[start : start + count] = bytes(count)


def _offsets(sizes: list[int]) -> list[int]:
    return [0, *np.cumsum(sizes).tolist()]


def _cipher(block_key: bytes) -> AESGCM:
    return AESGCM(derive_key(block_key, "values"))


def _nonce(group: int) -> bytes:
    # The key serves one block of one pack, so the group alone makes the nonce unique.
    return group.to_bytes(12, "big")


@contextmanager
def _storage(folder: Path) -> Iterator[None]:
    """Reports what the operating system refuses to do in a pack folder."""
    try:
        yield
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as error:
        raise PackCorrupted(f"{error.filename} is missing; {_remedy(folder)}.") from error
    except OSError as error:
        raise PackUnavailable(
            f"{folder} cannot be read or written ({error.strerror or error}); make room on its disk, or check its "
            "permissions, and do the same again. Nothing was sent, and no mask is lost."
        ) from error


def _remedy(folder: Path) -> str:
    return f"delete {folder} and prepare a new pack"


def _read_facts(path: Path) -> PackFacts:
    try:
        return msgspec.json.decode(path.read_bytes(), type=PackFacts)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise _corrupted(path) from error


def _corrupted(path: Path) -> PackCorrupted:
    return PackCorrupted(f"{path} is missing or damaged; delete {path.parent} and prepare a new pack.")
