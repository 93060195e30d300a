"""An owner changes keys: what users of both see, from the command line, on a server."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from confide.errors import UntrustedOwner
from confide.hybrid.model import HybridModel
from families import FAMILIES, save_random
from hybrid.client.fake import serving

from .command import run


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == check, done.stderr + done.stdout
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An owner's folder: key, split, a new key and what is published about it."""
    folder = tmp_path_factory.mktemp("owner")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(folder / "home"))
        model = save_random(FAMILIES["llama"], folder / "model")
        answer("split", model, "--out", folder / "split")
        shutil.copytree(folder / "split", folder / "renewed")
        answer("owner", "rotate", "--out", folder / "new.key", "--statements", folder / "said.json")
        for half in ("client", "server"):
            answer("owner", "sign", folder / "renewed" / half, "--owner", folder / "new.key")
    return folder


@pytest.fixture
def keys(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Public keys, for a user who trusts the old one."""
    found = {
        "old": answer("owner", "show", "--owner", made / "home" / "owner.key")["owner"],
        "new": answer("owner", "show", "--owner", made / "new.key")["owner"],
    }
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "user"))
    answer("owner", "trust", found["old"], "--name", "Ada")
    return found


def opened(made: Path, shell: str, server: str, **options: Any) -> None:
    with serving(made / server / "server") as one:
        HybridModel.from_shell(made / shell / "client", server=one.url, progress=False, patience=0, **options).close()


@pytest.mark.usefixtures("keys")
def test_an_old_shell_and_a_server_with_a_new_signature(made: Path) -> None:
    with pytest.raises(UntrustedOwner, match="use a server that serves this owner's package"):
        opened(made, "split", "renewed")
    with pytest.raises(UntrustedOwner, match="you do not trust"):
        opened(made, "renewed", "renewed")
    assert [one["kind"] for one in answer("owner", "accept", made / "said.json")["accepted"]] == ["succession"]
    for shell, server in (("split", "renewed"), ("renewed", "renewed"), ("renewed", "split")):
        opened(made, shell, server)


def test_one_key_that_is_asked_for_is_that_key_only(made: Path, keys: dict[str, str]) -> None:
    answer("owner", "accept", made / "said.json")
    with pytest.raises(UntrustedOwner):
        opened(made, "split", "renewed", owner=keys["old"])


def test_a_withdrawn_key_opens_nothing_any_more(made: Path, keys: dict[str, str], tmp_path: Path) -> None:
    said = Path(shutil.copy(made / "said.json", tmp_path / "said.json"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(shutil.copytree(made / "home", tmp_path / "owner")))
        refused = answer("owner", "withdraw", keys["new"], check=1)
        assert "did not take the place" in refused["error"]["message"]
        answer("owner", "withdraw", keys["old"], "--owner", made / "new.key", "--statements", said)
    assert len(answer("owner", "accept", said)["accepted"]) == 2
    listed = answer("owner", "list")
    assert [one["owner"] for one in listed["owners"]] == [keys["new"]]
    assert listed["withdrawn"] == [keys["old"]]
    for shell, server in (("split", "split"), ("renewed", "split")):
        with pytest.raises(UntrustedOwner):
            opened(made, shell, server)
    # Check vectors that the old key signed could be a thief's: new ones come from the owner.
    with pytest.raises(UntrustedOwner, match="check vectors"):
        opened(made, "renewed", "renewed")
    checks = tmp_path / "checks.msgpack"
    answer("checks", made / "renewed" / "server", "--out", checks, "--owner", made / "new.key")
    opened(made, "renewed", "renewed", checks=checks)
    assert "withdrawn" in answer("owner", "trust", keys["old"], check=1)["error"]["message"]


def test_distrust(made: Path, keys: dict[str, str]) -> None:
    answer("owner", "distrust", "Ada")
    assert answer("owner", "accept", made / "said.json")["accepted"] == []
    listed = answer("owner", "list")
    assert (listed["owners"], listed["distrusted"]) == ([], [keys["old"]])
    with pytest.raises(UntrustedOwner):
        opened(made, "split", "split")
    assert "distrusted" in run("owner", "list").stdout


def test_what_is_signed_again_was_whole_and_of_the_same_owner(made: Path, tmp_path: Path) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(made / "home"))
        changed = Path(shutil.copytree(made / "split" / "server", tmp_path / "server"))
        file = next(changed.glob("group-*.safetensors"))
        file.write_bytes(file.read_bytes()[:-1] + b"\x55")
        assert (
            "changed after"
            in answer("owner", "sign", changed, "--owner", made / "new.key", check=1)["error"]["message"]
        )
        answer("owner", "init", "--out", tmp_path / "another.key")
        other = answer("owner", "sign", made / "split" / "server", "--owner", tmp_path / "another.key", check=1)
        assert other["error"]["code"] == "untrusted-owner"
        twice = answer("owner", "rotate", "--out", tmp_path / "third.key", check=1)
        assert "rotate the latest key" in twice["error"]["message"]
        assert not (tmp_path / "third.key").exists()
