"""Packages fetched from a folder, a web server and object storage: verified, and taken up where it broke."""

import http.server
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.objects import Storage, storage

from confide.client import package_fetch
from confide.client.hint_fetch import fetch_hint
from confide.client.package_fetch import Progress, fetch_package
from confide.errors import (
    ConfideError,
    ConnectionLost,
    DamagedFile,
    InsecureConnection,
    InvalidPackage,
    UntrustedOwner,
)
from confide.models.split import SplitSummary
from confide.packages.guard import sign_rules
from confide.packages.hint import Hint
from confide.packages.manifest import PackageKind
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.data import SealedData, seal_data
from confide.packages.sealed.key import ModelKey
from confide.packages.server_package import ServerPackage
from confide.packages.signing import open_package, require_files
from owners import OWNER, STRANGER

KEY = ModelKey(b"k" * 32)
RULES = 'confide-guard = 1\nname = "g"\nrefusal = "No."\nphrases = ["bomb"]\n'


@pytest.fixture(autouse=True)
def no_pause(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package_fetch.time, "sleep", lambda seconds: None)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its one file has 3 MB."""
    folder = tmp_path_factory.mktemp("made") / "corpus"
    chunks = [Chunk("a.txt", None, f"{number} " * 3000) for number in range(1000)][:180]
    seal_corpus(chunks, folder, name="sea", key=KEY, owner=OWNER)
    return folder


@pytest.fixture
def stored(corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    source = Path(shutil.copytree(corpus, tmp_path / "stored"))
    with storage(source, monkeypatch) as made:
        yield made


def fetched(stored: Storage, out: Path, **options: Any) -> Any:
    return fetch_package(stored.address, out, endpoint=stored.endpoint, **options)


def tree(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def web(folder: Path, *, ranges: bool = True) -> Iterator[tuple[str, list[str]]]:
    """A plain web server, and what was asked. ranges: whether it has parts of files."""
    asked: list[str] = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers.get('Range', '')}".strip())
            start = int(self.headers.get("Range", "bytes=0-")[6:-1]) if ranges else 0
            content = Path(self.translate_path(self.path)).read_bytes()[start:]
            self.send_response(206 if start else 200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=folder))
    thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


def test_a_package_of_every_kind_comes_whole_from_object_storage(
    llama_halves: SplitSummary, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seal_data(b"{}", tmp_path / "data", key=KEY, owner=OWNER)
    sign_rules(RULES, tmp_path / "guard", OWNER)
    sources = {
        PackageKind.SHELL: Path(llama_halves.client),
        PackageKind.SERVER: Path(llama_halves.server),
        PackageKind.CORPUS: corpus,
        PackageKind.DATA: tmp_path / "data",
        PackageKind.GUARD: tmp_path / "guard",
    }
    for kind, source in sources.items():
        out = tmp_path / f"out-{kind}"
        with storage(source, monkeypatch) as stored:
            listing = fetched(stored, out, trusted={OWNER.public})
        assert (listing.kind, listing.owner) == (kind, OWNER.public)
        assert tree(out) == {name: content for name, content in tree(source).items() if name != "checks.msgpack"}
    shell = open_package(tmp_path / f"out-{PackageKind.SHELL}", PackageKind.SHELL).manifest
    require_files(tmp_path / f"out-{PackageKind.SHELL}", shell)
    Hint.open(tmp_path / f"out-{PackageKind.SHELL}", shell)
    ServerPackage.open(tmp_path / f"out-{PackageKind.SERVER}").load()
    SealedCorpus.open(tmp_path / f"out-{PackageKind.CORPUS}").unlock(KEY).chunks()
    assert SealedData.open(tmp_path / f"out-{PackageKind.DATA}").read(KEY) == b"{}"


@pytest.mark.parametrize("way", ["folder", "web", "web without ranges"])
def test_other_places_give_the_same(corpus: Path, tmp_path: Path, way: str) -> None:
    if way == "folder":
        fetch_package(str(corpus), tmp_path / "out")
    else:
        with web(corpus, ranges="without" not in way) as (url, _):
            fetch_package(url, tmp_path / "out")
    assert tree(tmp_path / "out") == tree(corpus)


def test_a_shard_gets_the_files_of_its_groups_alone(
    llama_halves: SplitSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with storage(Path(llama_halves.server), monkeypatch) as stored:
        fetched(stored, tmp_path / "out", groups=[0, 2])
        with pytest.raises(InvalidPackage, match="no layer group 99"):
            fetched(stored, tmp_path / "other", groups=[0, 99])
    package = ServerPackage.open(tmp_path / "out")
    for number in (0, 2):
        assert package.group(number).weights.shape[0]
    files = {name for name in tree(tmp_path / "out") if name.startswith("group")}
    assert files == {"group-00000.safetensors", "group-00002.safetensors"}


def test_layer_groups_are_a_servers(stored: Storage, tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage, match="no layer groups"):
        fetched(stored, tmp_path / "out", groups=[0])


def test_a_broken_connection_is_gone_on_with(stored: Storage, tmp_path: Path, corpus: Path) -> None:
    stored.breaks = [1_000_000, 500_000]
    done: list[int] = []
    fetched(stored, tmp_path / "out", progress=Progress(on_bytes=done.append))
    assert tree(tmp_path / "out") == tree(corpus)
    assert sum(done) == (corpus / "chunks.jsonl.sealed").stat().st_size
    assert stored.breaks == []


def test_an_interrupted_run_is_taken_up(
    stored: Storage, tmp_path: Path, corpus: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = 0

    def interrupt(count: int) -> None:
        nonlocal seen
        seen += count
        if seen > 500_000:
            raise KeyboardInterrupt

    monkeypatch.setattr("confide.client.objects.CHUNK", 1 << 16)
    with pytest.raises(KeyboardInterrupt):
        fetched(stored, tmp_path / "out", progress=Progress(on_bytes=interrupt))
    assert not (tmp_path / "out").exists()
    begun = (tmp_path / "out.unfinished-fetch" / "chunks.jsonl.sealed.part").stat().st_size
    stored.asked.clear()
    fetched(stored, tmp_path / "out")
    assert ("chunks.jsonl.sealed", begun) in stored.asked
    assert 0 < begun < (corpus / "chunks.jsonl.sealed").stat().st_size
    assert tree(tmp_path / "out") == tree(corpus)
    assert not (tmp_path / "out.unfinished-fetch").exists()


def test_what_is_whole_is_not_asked_for_again(stored: Storage, tmp_path: Path, corpus: Path) -> None:
    draft = Path(shutil.copytree(corpus, tmp_path / "out.unfinished-fetch"))
    (draft / "of-another-package").write_text("x")
    fetched(stored, tmp_path / "out")
    assert {name for name, _ in stored.asked} == {"manifest.json", "signature.json"}
    assert tree(tmp_path / "out") == tree(corpus)


def test_what_was_begun_of_another_file_is_begun_anew(stored: Storage, tmp_path: Path, corpus: Path) -> None:
    draft = tmp_path / "out.unfinished-fetch"
    draft.mkdir()
    for size in (1000, 10 << 20):
        (draft / "chunks.jsonl.sealed.part").write_bytes(b"x" * size)
        fetched(stored, tmp_path / "out")
        assert tree(tmp_path / "out") == tree(corpus)
        (tmp_path / "out").rename(draft)
        (draft / "chunks.jsonl.sealed").unlink()


def test_links_that_wait_there_are_not_written_through(stored: Storage, tmp_path: Path, corpus: Path) -> None:
    draft = tmp_path / "out.unfinished-fetch"
    draft.mkdir()
    (tmp_path / "victim").write_text("mine")
    (draft / "chunks.jsonl.sealed.part").symlink_to(tmp_path / "victim")
    (draft / "chunks.jsonl.sealed").symlink_to(corpus / "chunks.jsonl.sealed")
    fetched(stored, tmp_path / "out")
    assert (tmp_path / "victim").read_text() == "mine"
    assert not (tmp_path / "out" / "chunks.jsonl.sealed").is_symlink()


def test_a_draft_of_somebody_else_is_refused(stored: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out.unfinished-fetch").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfideError, match="not yours"):
        fetched(stored, tmp_path / "out")
    (tmp_path / "out.unfinished-fetch").unlink()
    (tmp_path / "out.unfinished-fetch").mkdir()
    monkeypatch.setattr(os, "geteuid", lambda: 12345)
    with pytest.raises(ConfideError, match="not yours"):
        fetched(stored, tmp_path / "out")


@pytest.mark.parametrize("damage", ["changed", "cut", "longer", "manifest", "signature", "endless manifest"])
def test_what_was_not_signed_is_not_taken(stored: Storage, tmp_path: Path, damage: str) -> None:
    path = stored.folder / {"manifest": "manifest.json", "signature": "signature.json"}.get(
        damage, "manifest.json" if "manifest" in damage else "chunks.jsonl.sealed"
    )
    content = path.read_bytes()
    if damage == "endless manifest":
        path.write_bytes(content + b" " * (17 << 20))
    elif damage in ("changed", "manifest", "signature"):
        path.write_bytes(content[:100] + bytes([content[100] ^ 1]) + content[101:])
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content + b"x")
    with pytest.raises((DamagedFile, InvalidPackage)) as raised:
        fetched(stored, tmp_path / "out")
    assert ("larger than one is" in str(raised.value)) == (damage == "endless manifest")
    assert not (tmp_path / "out").exists()
    assert not list(tmp_path.rglob("*.part"))


def test_another_owners_package_is_not_fetched(stored: Storage, tmp_path: Path) -> None:
    with pytest.raises(UntrustedOwner):
        fetched(stored, tmp_path / "out", trusted={STRANGER.public})
    assert {name for name, _ in stored.asked} == {"manifest.json", "signature.json"}


@pytest.mark.parametrize("status", [403, 404, 500])
def test_storage_that_gives_nothing_is_said_to(stored: Storage, tmp_path: Path, status: int) -> None:
    stored.status = status
    with pytest.raises(ConnectionLost, match=r"has no manifest|does not give manifest"):
        fetched(stored, tmp_path / "out")


@pytest.mark.parametrize("address", ["s3://", "s3:///x", "ftp://x/y", "s4://bucket/x", "gs://"], ids=range(5))
def test_an_address_that_is_none_is_refused(tmp_path: Path, address: str) -> None:
    with pytest.raises(ConfideError):
        fetch_package(address, tmp_path / "out")


def test_an_endpoint_beyond_this_machine_takes_tls(tmp_path: Path) -> None:
    with pytest.raises(InsecureConnection):
        fetch_package("s3://bucket/x", tmp_path / "out", endpoint="http://storage.example")


def test_what_is_there_is_never_replaced(stored: Storage, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with pytest.raises(ConfideError, match="exists already"):
        fetched(stored, tmp_path / "out")
    assert stored.asked == []


def test_one_process_fetches_at_a_time(stored: Storage, tmp_path: Path) -> None:
    def again(_: str) -> None:
        with pytest.raises(ConfideError, match="Another process"):
            fetched(stored, tmp_path / "out")

    fetched(stored, tmp_path / "out", progress=Progress(on_file=again))
    assert (tmp_path / "out").is_dir()


def test_a_hint_comes_from_object_storage(
    llama_halves: SplitSummary, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    client = Path(shutil.copytree(llama_halves.client, tmp_path / "client"))
    manifest = open_package(client, PackageKind.SHELL).manifest
    shutil.rmtree(client / "hint")
    with storage(Path(llama_halves.client), monkeypatch) as stored:
        stored.breaks = [1000]
        fetch_hint(client, manifest, stored.address, endpoint=stored.endpoint)
    Hint.open(client, manifest)


def test_memory_holds_no_file(stored: Storage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at once is a part, however large the file."""
    monkeypatch.setattr("confide.client.objects.CHUNK", 1 << 16)
    parts: list[int] = []
    fetched(stored, tmp_path / "out", progress=Progress(on_bytes=parts.append))
    assert sum(parts) > 1 << 20
    assert max(parts) < 1 << 20
