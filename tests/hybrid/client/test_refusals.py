"""The list of servers that gave wrong answers: it outlives the process, and a damaged one is not an empty one."""

from pathlib import Path

import pytest

from confide.errors import RefusalListDamaged, ServerDistrusted
from confide.hybrid.client.refusals import FILE_NAME, Breach, RefusalList

MODEL, OTHER = "ab" * 32, "cd" * 32
BREACH = Breach("group 3", ("layer 3",), 7)


def test_a_server_that_cheated_is_refused_from_then_on(tmp_path: Path) -> None:
    RefusalList(tmp_path).add("ws://127.0.0.1:8470", MODEL, BREACH)
    for address in ("ws://127.0.0.1:8470", "127.0.0.1:8470", "http://127.0.0.1:8470/"):
        with pytest.raises(ServerDistrusted, match=r"group 3 \(layer 3\), token 7"):
            RefusalList(tmp_path).require_trusted(address, MODEL)
    # The same server by the name of the model is no other server.
    with pytest.raises(ServerDistrusted):
        RefusalList(tmp_path).require_trusted("ws://127.0.0.1:8470/name", MODEL)
    RefusalList(tmp_path).require_trusted("ws://127.0.0.1:8471", MODEL)
    RefusalList(tmp_path).require_trusted("ws://127.0.0.1:8470", OTHER)


def test_forgiving_is_of_all(tmp_path: Path) -> None:
    refused = RefusalList(tmp_path)
    refused.add("ws://127.0.0.1:8470", MODEL, BREACH)
    refused.add("ws://127.0.0.1:8471", MODEL, BREACH)
    assert len(refused.entries()) == 2
    refused.clear()
    refused.clear()
    refused.require_trusted("ws://127.0.0.1:8470", MODEL)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]", b"[" * 100_000, b" " * (1 << 20) + b"[]", b"\xff"])
def test_a_damaged_list_refuses_everybody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE_NAME).write_bytes(content)
    with pytest.raises(RefusalListDamaged, match="distrust --clear"):
        RefusalList(tmp_path).require_trusted("ws://127.0.0.1:8470", MODEL)
