import stat
from pathlib import Path

import pytest

from confide.errors import PackCorrupted, ServerDistrusted
from confide.hybrid.client.refusals import FILE_NAME, Breach, RefusalList

SEED, MODEL = b"s" * 32, "ab" * 32
BREACH = Breach("h.3.mlp", ("h.3.mlp.up", "h.3.mlp.gate"), 17)


@pytest.fixture
def refused(tmp_path: Path) -> RefusalList:
    made = RefusalList(tmp_path)
    made.add("127.0.0.1:8470", SEED, MODEL, BREACH)
    return made


@pytest.mark.parametrize("server", ["127.0.0.1:8470", "ws://127.0.0.1:8470", "http://127.0.0.1:8470/"])
def test_a_server_is_known_by_its_address(refused: RefusalList, server: str) -> None:
    with pytest.raises(ServerDistrusted, match=r"h\.3\.mlp\.up, h\.3\.mlp\.gate\), token 17.*--clear"):
        refused.require_trusted(MODEL, server=server)
    refused.require_trusted(MODEL, server="127.0.0.1:8471")
    refused.require_trusted("cd" * 32, server=server)


def test_a_server_is_known_by_its_seed(refused: RefusalList) -> None:
    with pytest.raises(ServerDistrusted):
        refused.require_trusted(MODEL, seed=SEED)
    refused.require_trusted(MODEL, seed=b"t" * 32)


def test_the_list_outlives_the_process_and_is_private(refused: RefusalList, tmp_path: Path) -> None:
    refused.add("127.0.0.1:9", b"t" * 32, MODEL, BREACH)
    entries = RefusalList(tmp_path).entries()
    assert [entry.server_seed for entry in entries] == ["73" * 32, "74" * 32]
    assert entries[0].token == 17
    assert stat.S_IMODE((tmp_path / FILE_NAME).stat().st_mode) == 0o600


def test_clearing_forgives(refused: RefusalList) -> None:
    refused.clear()
    refused.clear()
    assert refused.entries() == []
    refused.require_trusted(MODEL, seed=SEED)


@pytest.mark.parametrize("content", [b"", b"[", b"[{}]", b"\xff", b'{"server": 1}'])
def test_a_damaged_list_forgives_nobody(refused: RefusalList, tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(PackCorrupted, match="confide distrust"):
        refused.require_trusted(MODEL, seed=b"t" * 32)
