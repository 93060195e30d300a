"""`confide seal` and `confide open` as a person or a script runs them."""

import json
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .command import run


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == check, done.stderr
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("home") / "confide"))
        yield


@pytest.fixture(scope="module")
def sealed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("sealed")
    key = folder / "model.key"
    return answer("seal", "demo", "--out", folder / "package", "--key", key) | {"key_file": key}


def test_sealing_makes_a_key_and_says_what_it_sealed(sealed: dict[str, Any]) -> None:
    assert stat.S_IMODE(sealed["key_file"].stat().st_mode) == 0o600
    assert (sealed["name"], sealed["architecture"], sealed["weights"]) == ("demo", "gpt2", "safetensors")


def test_opening_says_the_same_with_and_without_the_key(sealed: dict[str, Any]) -> None:
    plain = answer("open", sealed["package"])
    assert {name: plain[name] for name in ("model_digest", "key", "owner", "bytes")} == {
        name: sealed[name] for name in ("model_digest", "key", "owner", "bytes")
    }
    assert (plain["verified"], plain["decrypted"]) == (False, False)
    assert answer("open", sealed["package"], "--verify")["verified"]
    assert answer("open", "--verify", sealed["package"], "--key", sealed["key_file"])["decrypted"]


def test_people_read_what_was_checked(sealed: dict[str, Any]) -> None:
    for words, verdict in (
        ((), "not checked"),
        (("--verify",), "ciphertext is what its owner signed"),
        (("--verify", "--key", sealed["key_file"]), "every chunk decrypts"),
    ):
        done = run("open", sealed["package"], *words)
        assert done.returncode == 0, done.stderr
        assert verdict in " ".join(done.stdout.split())
        assert sealed["model_digest"] in done.stdout
        assert "(own key)" in done.stdout


def test_refusals_are_typed(sealed: dict[str, Any], tmp_path: Path) -> None:
    other = tmp_path / "other.key"
    other.write_bytes(b"o" * 32)
    other.chmod(0o600)
    package = sealed["package"]
    for words, code in (
        (("open", "--verify", package, "--key", other), "wrong-model-key"),
        (("open", "--verify", package, "--key", tmp_path / "none"), "model-key"),
        (("open", package, "--owner", "ab" * 32), "untrusted-owner"),
        (("seal", "demo", "--out", package, "--key", other), "error"),
    ):
        assert answer(*words, check=1)["error"]["code"] == code
    assert run("open", package, "--key", other).returncode == 2


def test_a_key_is_not_made_for_a_model_that_is_not_there(tmp_path: Path) -> None:
    assert answer("seal", "nothing", "--out", tmp_path / "p", "--key", tmp_path / "k", check=1)["error"]
    assert list(tmp_path.iterdir()) == []
