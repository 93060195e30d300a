"""Damaged files, full disks and folders put back: each a clear error, after which nothing is lost or used twice."""

import errno
import os
import resource
import shutil
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch

from confide.errors import LedgerCopied, LedgerCorrupted, PackCorrupted, PackError, PackUnavailable, ServerChanged
from confide.hybrid.client import packs as packs_module
from confide.hybrid.client.packs import BLOCK_TOKENS, MaskPack, PackStore
from confide.hybrid.client.padding import NO_PADDING
from confide.hybrid.server.ledger import Ledger
from confide.hybrid.server.ledger.backup import restore
from confide.hybrid.server.service import LayerService

from .small import activations, exact, running, small_service, small_weights, twin_client
from .test_kill import Log
from .test_packs import SEED, prepared, reopened, store, values_of  # noqa: F401
from .test_prepare import check_products

Damage = Callable[[Path], object]


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _zero(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:128] + bytes(len(content) - 192) + content[-64:])


DAMAGES: dict[str, Damage] = {
    "cut": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "bit flipped": _flip,
    "empty": lambda path: path.write_bytes(b""),
    "gone": lambda path: path.unlink(),
    "zeroed in the middle": _zero,
}


def _use_all(pack: MaskPack) -> None:
    for block in pack.take(pack.blocks):
        for group in range(2):
            np.testing.assert_array_equal(block.values(group), values_of(group)[block.first_token :][:BLOCK_TOKENS])


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("name", ["masks.bin", "keys", "pack.json"])
def test_a_damaged_pack_is_a_clear_error(store: PackStore, name: str, damage: Damage) -> None:  # noqa: F811
    damage(prepared(store).folder / name)
    with pytest.raises(PackCorrupted, match="prepare a new pack"):
        _use_all(reopened(store))


def test_a_group_that_was_never_written_is_found_before_its_masks_are_used(store: PackStore) -> None:  # noqa: F811
    pack = store.create(SEED)
    pack.write_group(0, values_of(0))
    (pack.folder / "groups-done").write_bytes(b"2")
    pack.finish()
    with pytest.raises(PackCorrupted):
        _use_all(reopened(store))


def test_masks_are_never_made_from_a_key_that_was_lost(store: PackStore) -> None:  # noqa: F811
    pack = store.create(SEED)
    path = pack.folder / "keys"
    content = path.read_bytes()
    path.write_bytes(content[:96] + bytes(32) + content[128:])
    with pytest.raises(PackCorrupted, match="lost keys"):
        reopened(store).group_masks(0)


def test_a_file_cut_while_in_use_is_an_error_and_no_signal(store: PackStore) -> None:  # noqa: F811
    pack = prepared(store)
    first, second = pack.take(2)
    first.values(1)
    os.truncate(pack.folder / "masks.bin", 0)
    with pytest.raises(PackCorrupted, match="cut"):
        second.values(1)


def test_a_damaged_pack_can_be_discarded(store: PackStore) -> None:  # noqa: F811
    pack = prepared(store)
    (pack.folder / "keys").write_bytes(b"")
    store.discard(reopened(store))
    assert store.packs(SEED) == []


@pytest.mark.parametrize("moment", ["making", "deleting"])
def test_what_a_crash_leaves_of_a_pack_is_cleaned_up(
    store: PackStore,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
    moment: str,
) -> None:
    pack = prepared(store)
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", _interrupt)
        if moment == "making":
            patch.setattr(packs_module, "replace_file", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            store.create(SEED) if moment == "making" else store.discard(pack)
    assert len(store.packs(SEED)) == (moment == "making")
    assert list(store.folder.glob("scrap-*"))
    store.close()
    with PackStore(store.folder, store._model_digest, store._groups) as again:
        assert not list(store.folder.glob("scrap-*"))
        assert len(again.packs(SEED)) == (moment == "making")


def _interrupt(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


# -- a full disk -----------------------------------------------------------------------------------------------


def _full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("call", ["pwrite", "fsync", "posix_fallocate", "rename"])
def test_a_disk_that_is_full_while_preparing(
    shell: Path, server: tuple[str, LayerService], monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    with twin_client(shell, server[0]) as client:
        with monkeypatch.context() as patch:
            patch.setattr(*((Path, "rename") if call == "rename" else (os, call)), _full)
            with pytest.raises(PackUnavailable, match=r"No space left.*make room"):
                client.prepare(1)
        client.prepare(1)
        assert len(list(client.store.folder.glob("pack-*"))) == 1
        assert not list(client.store.folder.glob("scrap-*"))
        check_products(client)


def test_a_file_that_may_not_grow_is_the_same_clear_error(shell: Path, server: tuple[str, LayerService]) -> None:
    """The kernel itself refuses."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with twin_client(shell, server[0]) as client:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 17, before[1]))
        try:
            with pytest.raises(PackUnavailable, match="File too large"):
                client.prepare(1)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        check_products(client)


@pytest.mark.parametrize("call", ["pwrite", "fsync"])
def test_a_disk_that_is_full_while_masks_are_taken(
    shell: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    log = Log()
    service = small_service(tmp_path / "state", observer=log)
    with running(service) as url, twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        x = activations(client.parameters[0], 5)
        left = product.tokens_left
        with monkeypatch.context() as patch:
            patch.setattr(os, call, _full)
            with pytest.raises(PackUnavailable, match="no mask is lost"):
                product(0, x)
        assert log.seen == {}
        assert product.tokens_left == left
        assert torch.equal(product(0, x), exact(small_weights()[0], x))
        assert product.tokens_left == left - 5
        product.close()


def test_a_key_is_given_only_once_all_of_it_is_erased(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    """A disk that fills up in the middle of a write takes only a part of it, without an error."""
    pack = prepared(store)
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, place: real(file, data[:5], place))
    keys = [block.key for block in pack.take(2)]
    content = (pack.folder / "keys").read_bytes()
    assert not any(key[place : place + 8] in content for key in keys for place in range(24))


# -- the server's record ---------------------------------------------------------------------------------------


def test_a_damaged_page_of_the_ledger_is_refused(tmp_path: Path) -> None:
    Ledger(tmp_path).close()
    path = tmp_path / "ledger.sqlite"
    content = bytearray(path.read_bytes())
    content[4096:8192] = os.urandom(4096)
    with path.open("r+b") as file:
        file.write(content)
    with pytest.raises(LedgerCorrupted, match="confide ledger restore"):
        Ledger(tmp_path)


def _use(shell: Path, url: str, tokens: int) -> None:
    with twin_client(shell, url) as client:
        product = client.product(padding=NO_PADDING)
        for group in range(2):
            x = activations(client.parameters[group], tokens)
            assert torch.equal(product(group, x), exact(small_weights()[group], x))
        product.close()


def _overwrite(source: Path, target: Path) -> None:
    """What `rsync --inplace --delete` does: the same inodes, the old content."""
    for path in target.iterdir():
        if not (source / path.name).exists():
            path.unlink()
    for path in source.iterdir():
        with (target / path.name).open("wb") as file:
            file.write(path.read_bytes())


def _used_copied_and_used_again(shell: Path, tmp_path: Path) -> tuple[Path, Path]:
    """A state folder, and a copy of it that has missed ten tokens."""
    state, copy = tmp_path / "state", tmp_path / "copy"
    with running(small_service(state)) as url:
        _use(shell, url, 10)
    shutil.copytree(state, copy)
    with running(small_service(state)) as url:
        _use(shell, url, 10)
    return state, copy


def test_a_copied_back_ledger_is_refused_and_after_a_restore_clients_get_fresh_packs(
    shell: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state, copy = _used_copied_and_used_again(shell, tmp_path)
    shutil.rmtree(state)
    shutil.copytree(copy, state)
    with pytest.raises(LedgerCopied, match="confide ledger restore"):
        small_service(state)
    assert restore(state).tokens_used == 10
    caplog.clear()
    with running(small_service(state)) as url:
        _use(shell, url, 10)
    assert "of no use with this server" in caplog.text
    assert "preparing another pack" in caplog.text


def test_a_client_that_was_connected_through_a_restore_is_told_so(shell: Path, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with running(small_service(state)) as url, twin_client(shell, url) as client:
        client.prepare(1)
        product = client.product(padding=NO_PADDING)
        port = int(url.rpartition(":")[2])
    restore(state)
    with running(small_service(state), port=port):
        with pytest.raises(ServerChanged, match="restored"):
            product(0, activations(client.parameters[0], 1))


def test_an_old_state_put_back_in_place_is_noticed_by_the_client(
    shell: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The server cannot tell: every file is the one it was, only older."""
    state, copy = _used_copied_and_used_again(shell, tmp_path)
    _overwrite(copy, state)
    log = Log()
    with closing(Ledger(state)):
        pass  # it opens, although it has forgotten ten tokens
    caplog.clear()
    with running(small_service(state, observer=log)) as url:
        _use(shell, url, 10)
    assert "older than this client's" in caplog.text
    assert min(index for _, _, index in log.seen) == 0, "the old pack was used"


def test_a_client_that_was_killed_says_nothing_against_an_honest_server(
    shell: Path, server: tuple[str, LayerService], caplog: pytest.LogCaptureFixture
) -> None:
    """Masks taken and never sent are no sign of an old record."""
    with twin_client(shell, server[0]) as client:
        (pack,) = client.prepare(1)
        pack.take(10)
    _use(shell, server[0], 3)
    _use(shell, server[0], 3)
    assert "older" not in caplog.text


def test_every_error_of_a_pack_folder_is_of_one_kind() -> None:
    assert issubclass(PackUnavailable, PackError)
    assert issubclass(PackCorrupted, PackError)
