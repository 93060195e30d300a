"""`confide hint`, `confide checks` and `confide split --no-hint` as an owner and a user run them."""

import json
import shutil
from pathlib import Path

import pytest

from confide.packages.manifest import hint_name, read_manifest
from families import FAMILIES, save_random

from .command import run


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A split with its hint and the same one without, by the same owner."""
    folder = tmp_path_factory.mktemp("folders")
    model = save_random(FAMILIES["llama"], folder / "model")
    for name, options in (("full", ()), ("bare", ("--no-hint",))):
        done = run("split", model, "--out", folder / name, "--owner", key(folder), "--json", *options)
        assert done.returncode == 0, done.stderr
    return folder


def key(folder: Path) -> Path:
    path = folder / "owner.key"
    if not path.exists():
        run("owner", "init", "--out", path)
    return path


def test_a_split_says_how_large_the_hint_is(folders: Path) -> None:
    sizes = [
        sum(path.stat().st_size for path in (folders / name / "client" / "hint").glob("*")) for name in ("full", "bare")
    ]
    assert sizes[0] > 0
    assert sizes[1] == 0
    done = run("split", folders / "model", "--out", folders / "third", "--owner", key(folders), "--no-hint")
    assert "confide hint make" in " ".join(done.stdout.split())


def test_make_fetch_verify(folders: Path, tmp_path: Path) -> None:
    bare = Path(shutil.copytree(folders / "bare", tmp_path / "bare"))
    made = run("hint", "make", bare / "client", bare / "server", "--owner", key(folders), "--json")
    assert made.returncode == 0, made.stderr
    size = json.loads(made.stdout)["hint_bytes"]
    assert size == sum(path.stat().st_size for path in (bare / "client" / "hint").iterdir())
    shutil.rmtree(bare / "client" / "hint")
    missing = run("hint", "verify", bare / "client", "--json")
    assert missing.returncode == 1
    assert json.loads(missing.stdout)["error"]["code"] == "invalid-package"
    fetched = run("hint", "fetch", bare / "client", folders / "full" / "client", "--json")
    assert fetched.returncode == 0, fetched.stderr
    shown = run("hint", "verify", bare / "client")
    assert shown.returncode == 0, shown.stderr
    assert "Verified the hint" in shown.stdout


def test_a_stale_hint_is_named(folders: Path, tmp_path: Path) -> None:
    client = Path(shutil.copytree(folders / "full" / "client", tmp_path / "client"))
    shutil.copy(client / hint_name(0), client / hint_name(4))
    done = run("hint", "verify", client, "--json")
    assert done.returncode == 1
    assert json.loads(done.stdout)["error"]["code"] == "stale-hint"


def test_only_the_owner_makes_hints_and_checks(folders: Path, tmp_path: Path) -> None:
    run("owner", "init", "--out", tmp_path / "other.key")
    bare = folders / "bare"
    for arguments in (
        ("hint", "make", bare / "client", bare / "server"),
        ("checks", bare / "server", "--out", tmp_path / "set"),
    ):
        done = run(*arguments, "--owner", tmp_path / "other.key", "--json")
        assert json.loads(done.stdout)["error"]["code"] == "untrusted-owner"
    assert read_manifest(bare / "client").hint == {}
    assert not (tmp_path / "set").exists()


def test_checks_are_for_a_licence(folders: Path, tmp_path: Path) -> None:
    path = tmp_path / "alice"
    arguments = ("--out", path, "--licence", "alice", "--serial", 2, "--owner", key(folders), "--json")
    done = run("checks", folders / "full" / "server", *arguments)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert (report["licence"], report["serial"]) == ("alice", 2)
    assert report["bytes"] == path.stat().st_size
