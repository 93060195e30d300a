import os
import stat
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from confide.errors import PackCorrupted, PackExhausted, PackInUse
from confide.hybrid.client.packs import BLOCK_TOKENS, MaskPack, PackStore
from confide.hybrid.client.supply import MaskSupply
from confide.rlwe.parameters import Parameters, Profile

SEED, MODEL = b"s" * 32, "ab" * 32
GROUPS = [
    Parameters.for_shape(Profile.PRIVATE_WEIGHTS, rows=rows, columns=columns, activation_bits=12)
    for rows, columns in ((3, 4), (2, 5))
]
TOKENS = GROUPS[0].tokens


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    return PackStore(tmp_path / "packs", MODEL, GROUPS)


def values_of(group: int) -> np.ndarray:
    rows = GROUPS[group].rows
    return np.arange(TOKENS * rows, dtype=np.int32).reshape(TOKENS, rows)


def x(tokens: int) -> np.ndarray:
    """Some activations; their width is of no concern to the supply."""
    return np.zeros((tokens, 1), np.int32)


def prepared(store: PackStore) -> MaskPack:
    pack = store.create(SEED)
    for group in range(len(GROUPS)):
        pack.write_group(group, values_of(group))
    pack.finish()
    return pack


def reopened(store: PackStore) -> MaskPack:
    return store.packs(SEED)[0]


def test_what_is_written_comes_back_token_by_token(store: PackStore) -> None:
    pack = store.create(SEED)
    masks = [pack.group_masks(group) for group in range(2)]
    for group in range(2):
        pack.write_group(group, values_of(group))
    pack.finish()
    pack = reopened(store)
    for block in pack.take(3):
        tokens = slice(block.first_token, block.first_token + BLOCK_TOKENS)
        for group in range(2):
            np.testing.assert_array_equal(block.masks(group), masks[group][tokens])
            np.testing.assert_array_equal(block.values(group), values_of(group)[tokens])


def test_masks_differ_between_tokens_groups_and_packs(store: PackStore) -> None:
    first, second = store.create(SEED), store.create(SEED)
    rows = np.concatenate([pack.group_masks(0) for pack in (first, second)])
    assert len(np.unique(rows, axis=0)) == 2 * TOKENS
    assert np.isin(first.group_masks(1)[:, :4], first.group_masks(0)).mean() < 1e-3  # chance collisions only


def test_taking_a_block_erases_its_key_from_the_disk_first(store: PackStore) -> None:
    pack = prepared(store)
    before = (pack.folder / "keys").read_bytes()
    blocks = pack.take(2)
    after = (pack.folder / "keys").read_bytes()
    assert len(after) == len(before)
    for block in blocks:
        assert block.key in before
        assert block.key not in after
    assert reopened(store).next_block == 2
    assert reopened(store).tokens_left == TOKENS - 2 * BLOCK_TOKENS


def test_the_erasure_is_synced_before_the_block_is_given(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = prepared(store)
    synced = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(descriptor), real(descriptor))[1])
    pack.take(1)
    assert synced


def test_finishing_erases_the_encryption_seed(store: PackStore) -> None:
    pack = store.create(SEED)
    seed = pack.seed
    assert seed in (pack.folder / "keys").read_bytes()
    for group in range(2):
        pack.write_group(group, values_of(group))
    pack.finish()
    assert seed not in (pack.folder / "keys").read_bytes()
    with pytest.raises(PackCorrupted):
        _ = reopened(store).seed


def test_values_are_encrypted_at_rest(store: PackStore) -> None:
    pack = prepared(store)
    assert values_of(0)[:BLOCK_TOKENS].tobytes() not in (pack.folder / "masks.bin").read_bytes()


def test_a_pack_in_preparation_gives_no_masks(store: PackStore) -> None:
    with pytest.raises(PackCorrupted, match="finish"):
        store.create(SEED).take(1)


def test_burning_rounds_up_to_whole_blocks(store: PackStore) -> None:
    pack = prepared(store)
    assert pack.burn_to(0) == 0
    assert pack.burn_to(BLOCK_TOKENS + 1) == 2 * BLOCK_TOKENS
    assert pack.burn_to(BLOCK_TOKENS + 1) == 0
    assert pack.take(1)[0].index == 2
    assert pack.burn_to(10**6) == TOKENS - 3 * BLOCK_TOKENS
    assert pack.take(1) == []


def test_only_the_owner_can_read_keys(store: PackStore) -> None:
    pack = prepared(store)
    assert stat.S_IMODE((pack.folder / "keys").stat().st_mode) == 0o600
    assert stat.S_IMODE(pack.folder.stat().st_mode) == 0o700


def test_a_flipped_bit_is_found(store: PackStore) -> None:
    pack = prepared(store)
    path = pack.folder / "masks.bin"
    content = bytearray(path.read_bytes())
    content[5] ^= 1
    path.write_bytes(content)
    block = reopened(store).take(1)[0]
    with pytest.raises(PackCorrupted, match="prepare a new pack"):
        block.values(0)


@pytest.mark.parametrize("name", ["masks.bin", "keys", "pack.json"])
def test_a_truncated_file_is_found(store: PackStore, name: str) -> None:
    path = prepared(store).folder / name
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(PackCorrupted, match="prepare a new pack"):
        reopened(store).take(1)[0].values(1)


@pytest.mark.parametrize("name", ["masks.bin", "keys"])
@pytest.mark.parametrize("instead", [lambda path: None, lambda path: path.mkdir()], ids=["nothing", "folder"])
def test_a_missing_file_is_found(store: PackStore, name: str, instead: Callable[[Path], None]) -> None:
    path = prepared(store).folder / name
    path.unlink()
    instead(path)
    with pytest.raises(PackCorrupted):
        reopened(store).take(1)[0].values(0)


@pytest.mark.parametrize("content", [b"", b"x", b"-1", b"3", b"\xb2", b"9" * 5000])
def test_a_damaged_count_of_groups_is_found(store: PackStore, content: bytes) -> None:
    (store.create(SEED).folder / "groups-done").write_bytes(content)
    with pytest.raises(PackCorrupted):
        _ = reopened(store).groups_done


def test_a_deep_description_is_found(store: PackStore) -> None:
    (prepared(store).folder / "pack.json").write_bytes(b'{"x":' + b"[" * 100_000)
    with pytest.raises(PackCorrupted):
        reopened(store)


def test_a_description_of_a_pack_of_another_size_is_found(store: PackStore) -> None:
    path = prepared(store).folder / "pack.json"
    path.write_bytes(path.read_bytes().replace(b"4096", b"2048"))
    with pytest.raises(PackCorrupted):
        reopened(store)


def test_another_model_or_server_sees_no_packs(store: PackStore) -> None:
    prepared(store)
    assert store.packs(b"x" * 32) == []
    store.close()
    assert PackStore(store.folder, "cd" * 32, GROUPS).packs(SEED) == []


def test_a_second_process_gets_a_clear_error(store: PackStore) -> None:
    with pytest.raises(PackInUse, match="Another process"):
        PackStore(store.folder, MODEL, GROUPS)
    code = (
        "import sys, pathlib; from confide.hybrid.client.packs import PackStore; "
        "PackStore(pathlib.Path(sys.argv[1]), '', [])"
    )
    command = [sys.executable, "-c", code, str(store.folder)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "PackInUse" in run.stderr
    store.close()
    PackStore(store.folder, MODEL, GROUPS).close()


def test_a_fork_gets_a_clear_error(store: PackStore) -> None:
    pack = prepared(store)
    supply = MaskSupply(store, [pack], 2)
    list(supply.take(0, x(1), 100))
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            list(supply.take(0, x(1), 100))
            os.write(writing, b"took a mask")
        except PackInUse as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert "forked" in os.read(reading, 1000).decode()
    assert next(iter(supply.take(0, x(1), 100))).first == 1


def test_discarding_erases_keys_before_the_files_go(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pack = prepared(store)
    monkeypatch.setattr("shutil.rmtree", lambda folder: None)
    store.discard(pack)
    assert not any((pack.folder / "keys").read_bytes()[32:])


class TestSupply:
    def test_every_index_is_given_once_to_every_group(self, store: PackStore) -> None:
        supply = MaskSupply(store, [prepared(store)], 2)
        seen: dict[int, list[int]] = {0: [], 1: []}
        for tokens in (1, 15, 1, 40, 3, 16, 100):
            for group in (0, 1):
                for segment in supply.take(group, x(tokens), 64):
                    assert len(segment.masks) == len(segment.values) <= 64
                    indexes = range(segment.first, segment.first + len(segment.masks))
                    np.testing.assert_array_equal(segment.values, values_of(group)[indexes])
                    seen[group].extend(indexes)
        assert seen[0] == seen[1] == list(range(176))

    def test_looking_ahead_takes_no_mask_and_makes_those_that_come_next(
        self, store: PackStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        supply = MaskSupply(store, [prepared(store)], 2)
        supply.look_ahead(1, 5)  # nothing is taken yet
        first = supply.take(0, x(40), 64)[0]
        left = supply.tokens_left
        supply.look_ahead(1, 40)
        assert supply.tokens_left == left
        monkeypatch.setattr(MaskPack, "block_values", lambda *_: pytest.fail("made again"))
        second = supply.take(1, x(40), 64)[0]
        assert (second.first, len(second.masks)) == (first.first, 40)
        np.testing.assert_array_equal(second.values, values_of(1)[:40])

    def test_one_request_where_the_indexes_are_consecutive(self, store: PackStore) -> None:
        supply = MaskSupply(store, [prepared(store)], 2)
        list(supply.take(0, x(5), 1000))
        assert [len(segment.masks) for segment in supply.take(0, x(100), 1000)] == [100]

    def test_goes_on_with_the_next_pack(self, store: PackStore) -> None:
        packs = [prepared(store), prepared(store)]
        supply = MaskSupply(store, packs, 2)
        list(supply.take(0, x(TOKENS - 10), TOKENS))
        segments = list(supply.take(0, x(30), 1000))
        assert [(segment.pack, segment.first, len(segment.masks)) for segment in segments] == [
            (packs[0].id, TOKENS - 10, 10),
            (packs[1].id, 0, 20),
        ]
        list(supply.take(1, x(TOKENS + 5), TOKENS))
        assert supply.tokens_left == TOKENS - 20

    def test_exhaustion_is_an_error_or_a_refill(self, store: PackStore) -> None:
        pack = prepared(store)
        pack.burn_to(TOKENS - BLOCK_TOKENS)
        supply = MaskSupply(store, [pack], 2)
        list(supply.take(0, x(BLOCK_TOKENS), 100))
        with pytest.raises(PackExhausted, match="confide prepare"):
            list(supply.take(0, x(1), 100))
        refilled = MaskSupply(store, [], 2, refill=lambda: [prepared(store)])
        assert next(iter(refilled.take(0, x(3), 100))).first == 0

    def test_threads_never_share_a_mask(self, store: PackStore) -> None:
        supply = MaskSupply(store, [prepared(store)], 2)
        with ThreadPoolExecutor(8) as pool:
            taken = list(pool.map(lambda _: [s.first for s in supply.take(0, x(1), 1)], range(800)))
        assert sorted(first for firsts in taken for first in firsts) == list(range(800))

    def test_secrets_stay_out_of_repr(self, store: PackStore) -> None:
        pack = prepared(store)
        block = pack.take(1)[0]
        segment = next(iter(MaskSupply(store, [pack], 2).take(0, x(1), 1)))
        assert str(block.key) not in repr(block)
        assert "array" not in repr(segment)
