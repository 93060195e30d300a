"""A shell's hint: made once and the same again, interrupted and gone on with, fetched from anywhere, never believed."""

import functools
import http.server
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from confide.client.hint_fetch import fetch_hint
from confide.errors import ConfideError, ConnectionLost, InsecureConnection, InvalidPackage, StaleHint, UntrustedOwner
from confide.models.source import Source
from confide.models.split import SplitSummary, split
from confide.packages import hint_writer
from confide.packages.hint import Hint, hint_bytes, hint_size
from confide.packages.hint_writer import add_hint
from confide.packages.manifest import Manifest, PackageKind, hint_name, read_manifest
from confide.packages.server_package import ServerPackage
from confide.packages.signing import open_package
from confide.rlwe.hint import HintMaker, HintTile
from confide.rlwe.online import GroupMatrix
from confide.rlwe.pads import mask, unmask
from confide.rlwe.parameters import Profile
from confide.rlwe.public import PublicSeed
from confide.rlwe.tokens import TokenSecrets
from owners import OWNER, STRANGER


@pytest.fixture
def client(llama_halves: SplitSummary, tmp_path: Path) -> Path:
    """A copy of a shell with its hint that a test may damage."""
    return Path(shutil.copytree(llama_halves.client, tmp_path / "client"))


@pytest.fixture
def bare(tiny_llama: Source, tmp_path: Path) -> SplitSummary:
    """The same split without its hint."""
    return split(tiny_llama, tmp_path / "bare", owner=OWNER, hint=False)


def contents(shell: Path) -> list[bytes]:
    return [(shell / name).read_bytes() for name in sorted(read_manifest(shell).hint)]


def test_both_tables_have_its_digests_and_it_fits_them(llama_halves: SplitSummary) -> None:
    shell = open_package(llama_halves.client, PackageKind.SHELL).manifest
    assert shell.hint == read_manifest(llama_halves.server).hint
    assert sorted(path.name for path in (llama_halves.client / "hint").iterdir()) == [
        Path(name).name for name in sorted(shell.hint)
    ]
    done: list[int] = []
    hint = Hint.open(llama_halves.client, shell, done.append)
    assert sum(done) == hint_size(shell) == llama_halves.hint_bytes
    for index, group in enumerate(shell.groups):
        rows = hint.rows(index)
        assert isinstance(rows, np.ndarray)
        assert rows.shape == (group.rows, 5, 2048)
        assert rows.dtype == np.int8
        rows[0, 0, 0] ^= 1  # which stays in this process
    assert Hint.open(llama_halves.client, shell).rows(0)[0, 0, 0] == hint.rows(0)[0, 0, 0] ^ 1


def test_it_takes_the_pads_off_the_servers_answers(llama_halves: SplitSummary) -> None:
    """What the two folders hold fits together, through the arithmetic of a client and of a server."""
    package = ServerPackage.open(llama_halves.server)
    shell = open_package(llama_halves.client, PackageKind.SHELL).manifest
    hint = Hint.open(llama_halves.client, shell)
    secrets = TokenSecrets(PublicSeed(bytes.fromhex(shell.model_digest), shell.epoch), 3)
    for index, group in enumerate(shell.groups):
        parameters = group.parameters(shell.profile)
        bound = parameters.max_activation
        x = np.random.default_rng(index).integers(-bound, bound + 1, (3, group.columns), dtype=np.int32)
        stored = package.group(index)
        server = GroupMatrix(stored.weights, stored.u)
        planes = mask(x, secrets.pads(index, parameters), parameters)
        answer = server.answer(planes, server.ahead(secrets.p0))
        y = unmask(answer, secrets.values(hint.rows(index), parameters), parameters)
        assert np.array_equal(y, x.astype(np.int64) @ stored.weights.numpy().astype(np.int64).T)


def test_made_twice_it_is_the_same(llama_halves: SplitSummary, tiny_llama: Source, tmp_path: Path) -> None:
    """Two independent draws under one public polynomial would give the weights away."""
    again = split(tiny_llama, tmp_path, owner=OWNER)
    assert contents(again.client) == contents(llama_halves.client)
    for one, other in zip(
        ServerPackage.open(again.server).load(), ServerPackage.open(llama_halves.server).load(), strict=True
    ):
        assert one.u is not None
        assert other.u is not None
        assert one.u.equal(other.u)


@pytest.mark.parametrize("other", ["owner", "epoch", "weights"])
def test_u_has_nothing_in_common_with_that_of_another(
    llama_halves: SplitSummary, tiny_llama: Source, tmp_path: Path, other: str
) -> None:
    from confide.models.precision import Recipe

    options: dict[str, Any] = {
        "owner": {"owner": STRANGER},
        "epoch": {"owner": OWNER, "epoch": 1},
        "weights": {"owner": OWNER, "recipe": Recipe.parse(["7"], [])},
    }[other]
    made = split(tiny_llama, tmp_path, hint=False, **options)
    for one, given in zip(
        ServerPackage.open(made.server).load(), ServerPackage.open(llama_halves.server).load(), strict=True
    ):
        assert one.u is not None
        assert given.u is not None
        assert (one.u == given.u).double().mean() < 0.03


def test_it_can_be_made_later(bare: SplitSummary, llama_halves: SplitSummary) -> None:
    with pytest.raises(InvalidPackage, match="confide hint make"):
        Hint.open(bare.client, read_manifest(bare.client))
    steps: list[tuple[int, int]] = []
    add_hint(bare.client, bare.server, OWNER, lambda *step: steps.append(step))
    total = hint_size(read_manifest(bare.client))
    assert steps[-1] == (total, total)
    assert contents(bare.client) == contents(llama_halves.client)
    Hint.open(bare.client, open_package(bare.client, PackageKind.SHELL, {OWNER.public}).manifest)
    ServerPackage.open(bare.server).load()
    assert not list(bare.client.parent.glob(".unfinished*"))


def test_only_its_owner_makes_it(bare: SplitSummary, llama_halves: SplitSummary) -> None:
    with pytest.raises(UntrustedOwner):
        add_hint(bare.client, bare.server, STRANGER)
    with pytest.raises(InvalidPackage, match="same split"):
        add_hint(bare.client, split_of_mlp(bare).server, OWNER)
    with pytest.raises(InvalidPackage, match="exists already"):
        add_hint(llama_halves.client, llama_halves.server, OWNER)


def split_of_mlp(bare: SplitSummary) -> SplitSummary:
    from confide.models.source import open_model
    from families import FAMILIES, save_random

    model = save_random(FAMILIES["llama"], bare.client.parent / "model")
    return split(open_model(str(model)), bare.client.parent / "other", owner=OWNER, protect="mlp", hint=False)


def test_an_interrupted_making_goes_on(
    tiny_llama: Source, tmp_path: Path, llama_halves: SplitSummary, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whole groups are not made again; the rest comes out the same."""
    made: list[HintMaker] = []
    tile = HintMaker.tile

    def watched(maker: HintMaker, first: int) -> HintTile:
        if first == 0:
            made.append(maker)
            if len(made) == 4:
                raise KeyboardInterrupt
        return tile(maker, first)

    monkeypatch.setattr(HintMaker, "tile", watched)
    with pytest.raises(KeyboardInterrupt):
        split(tiny_llama, tmp_path / "out", owner=OWNER)
    left = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(left) == 1
    assert left[0].startswith(".unfinished-hint-")
    damaged = next((tmp_path / "out" / left[0]).glob("group-00001.bin"))
    damaged.write_bytes(bytes(damaged.stat().st_size))
    summary = split(tiny_llama, tmp_path / "out", owner=OWNER)
    assert len(made) == 4 + 1 + summary.groups - 3
    assert contents(summary.client) == contents(llama_halves.client)
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["client", "server"]
    assert all(path.suffix == ".bin" for path in (summary.client / "hint").iterdir())


def test_two_at_once_are_refused(bare: SplitSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hint_writer, "hold_folder", lambda folder: None)
    with pytest.raises(ConfideError, match="Another process"):
        add_hint(bare.client, bare.server, OWNER)


def test_noise_that_does_not_fit_is_refused(bare: SplitSummary, monkeypatch: pytest.MonkeyPatch) -> None:
    from confide.errors import InsecureParameters

    def refuse(*_: object, **__: object) -> None:
        raise InsecureParameters("The noise does not fit; split the columns.")

    monkeypatch.setattr(hint_writer, "require_noise_fits", refuse)
    with pytest.raises(InsecureParameters):
        add_hint(bare.client, bare.server, OWNER)
    assert read_manifest(bare.client).hint == {}
    assert not (bare.client / "hint").exists()


def test_open_weights_need_none(tiny_llama: Source, tmp_path: Path) -> None:
    made = split(tiny_llama, tmp_path, owner=OWNER, profile=Profile.OPEN_WEIGHTS)
    assert made.hint_bytes == 0
    assert not (made.client / "hint").exists()
    with pytest.raises(InvalidPackage, match="open weights"):
        add_hint(made.client, made.server, OWNER)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", ["first byte", "last byte", "cut", "longer", "empty", "swapped", "a folder"])
def test_a_wrong_hint_is_refused_by_name(client: Path, damage: str) -> None:
    manifest = read_manifest(client)
    path = client / hint_name(1)
    content = path.read_bytes()
    match damage:
        case "first byte" | "last byte":
            flip(path, 0 if damage == "first byte" else -1)
        case "cut":
            path.write_bytes(content[:-1])
        case "longer":
            path.write_bytes(content + b"\0")
        case "empty":
            path.write_bytes(b"")
        case "swapped":
            same = next(
                index
                for index, group in enumerate(manifest.groups)
                if index != 1 and group.rows == manifest.groups[1].rows
            )
            shutil.copy(client / hint_name(same), path)
        case "a folder":
            path.unlink()
            path.mkdir()
    with pytest.raises(StaleHint, match=r"group-00001\.bin is not the hint") as caught:
        Hint.open(client, manifest)
    assert caught.value.code == "stale-hint"


def test_the_hint_of_another_epoch_is_refused(client: Path, tiny_llama: Source, tmp_path: Path) -> None:
    other = split(tiny_llama, tmp_path / "other", owner=OWNER, epoch=1)
    shutil.rmtree(client / "hint")
    shutil.copytree(other.client / "hint", client / "hint")
    with pytest.raises(StaleHint):
        Hint.open(client, read_manifest(client))


def test_a_missing_file_says_how_to_get_it(client: Path) -> None:
    (client / hint_name(2)).unlink()
    with pytest.raises(InvalidPackage, match="confide hint fetch"):
        Hint.open(client, read_manifest(client))


def test_what_is_read_is_what_was_verified(client: Path) -> None:
    """A file that takes the place of a verified one changes nothing for who has it open."""
    hint = Hint.open(client, read_manifest(client))
    before = hint.rows(0).copy()
    (client / "evil").write_bytes(bytes(before.size))
    (client / "evil").rename(client / hint_name(0))
    assert np.array_equal(hint.rows(0), before)


@contextmanager
def published(folder: Path, handler: type[http.server.SimpleHTTPRequestHandler]) -> Iterator[str]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(handler, directory=str(folder)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class Quiet(http.server.SimpleHTTPRequestHandler):
    asked: list[str]

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked.append(self.path)
        super().do_GET()


@pytest.fixture
def manifest(client: Path) -> Manifest:
    manifest = read_manifest(client)
    shutil.rmtree(client / "hint")
    return manifest


@pytest.mark.parametrize("way", ["http", "a shell", "its folder"])
def test_it_is_fetched_and_verified(client: Path, manifest: Manifest, llama_halves: SplitSummary, way: str) -> None:
    done: list[int] = []
    if way == "http":
        Quiet.asked = []
        with published(llama_halves.client, Quiet) as url:
            fetch_hint(client, manifest, url, on_bytes=done.append)
            assert Quiet.asked == [f"/{name}" for name in sorted(manifest.hint)]
            fetch_hint(client, manifest, url)  # all there
        assert len(Quiet.asked) == len(manifest.hint)
    else:
        fetch_hint(
            client,
            manifest,
            str(llama_halves.client / ("hint" if way == "its folder" else "")),
            on_bytes=done.append,
        )
    assert sum(done) == hint_size(manifest)
    Hint.open(client, manifest)


def test_only_what_is_missing_or_wrong_is_fetched(client: Path, manifest: Manifest, llama_halves: SplitSummary) -> None:
    fetch_hint(client, manifest, str(llama_halves.client))
    flip(client / hint_name(3), 5)
    (client / hint_name(4)).unlink()
    Quiet.asked = []
    with published(llama_halves.client, Quiet) as url:
        fetch_hint(client, manifest, url)
    assert Quiet.asked == [f"/{hint_name(3)}", f"/{hint_name(4)}"]
    Hint.open(client, manifest)


@pytest.mark.parametrize("damage", ["changed", "cut", "endless"])
def test_what_is_fetched_is_not_believed(
    client: Path, manifest: Manifest, llama_halves: SplitSummary, tmp_path: Path, damage: str
) -> None:
    source = Path(shutil.copytree(llama_halves.client, tmp_path / "source"))
    path = source / hint_name(0)
    if damage == "changed":
        flip(path, 100)
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.unlink()
        path.symlink_to("/dev/zero")
    if damage == "endless":
        with pytest.raises(InvalidPackage):
            fetch_hint(client, manifest, str(source))
    else:
        with pytest.raises(StaleHint, match="not the hint that was signed"):
            fetch_hint(client, manifest, str(source))
    assert list((client / "hint").iterdir()) == []


class Endless(Quiet):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()
        try:
            while True:
                self.wfile.write(bytes(1 << 16))
        except OSError:
            pass


class Lost(Quiet):
    def do_GET(self) -> None:
        self.send_response(404)
        self.end_headers()


def test_a_server_that_never_ends_fills_no_disk(client: Path, manifest: Manifest) -> None:
    done: list[int] = []
    with published(client, Endless) as url, pytest.raises(StaleHint):
        fetch_hint(client, manifest, url, on_bytes=done.append)
    assert sum(done) <= hint_bytes(manifest.groups[0])
    assert list((client / "hint").iterdir()) == []


def test_a_server_without_it_is_named(client: Path, manifest: Manifest) -> None:
    with published(client, Lost) as url, pytest.raises(ConnectionLost, match="404"):
        fetch_hint(client, manifest, url)
    with pytest.raises(ConnectionLost):
        fetch_hint(client, manifest, "http://127.0.0.1:1")
    with pytest.raises(InsecureConnection):
        fetch_hint(client, manifest, "http://models.example")
    with pytest.raises(InvalidPackage, match="give the folder"):
        fetch_hint(client, manifest, str(client / "nowhere"))


def test_a_link_where_a_file_is_written_is_not_followed(
    client: Path, manifest: Manifest, llama_halves: SplitSummary, tmp_path: Path
) -> None:
    (tmp_path / "mine").write_text("keep")
    (client / "hint").mkdir()
    (client / "hint" / "group-00000.part").symlink_to(tmp_path / "mine")
    fetch_hint(client, manifest, str(llama_halves.client))
    assert (tmp_path / "mine").read_text() == "keep"
