"""`confide keys` from the command line."""

import json
import os
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

import pytest
from tests.cli import command
from tests.owners import OWNER

from confide.attest.check import check
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.simulated import SimulatedTee
from confide.broker import store
from confide.broker.log import LOG_NAME, AuditLog, Entry
from confide.cli.app import main
from confide.disk.home import make_home
from confide.packages.owner import OwnerKey
from confide.packages.sealed.contents import Contents
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model
from confide.packages.trusted_owners import trust

MODEL = "ab" * 32

Run = Callable[..., "Done"]


class Done(NamedTuple):
    """What a command exited with and printed."""

    code: int
    out: str
    err: str


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `confide keys ARGUMENTS` in this process, with passphrases that cost little."""
    monkeypatch.setattr(store, "SCRYPT_COST", 16)
    monkeypatch.setenv("COLUMNS", "200")

    def call(*arguments: object) -> Done:
        monkeypatch.setattr(sys, "argv", ["confide", "keys", *map(str, arguments)])
        with pytest.raises(SystemExit) as stop:
            main()
        return Done(int(stop.value.code or 0), *capsys.readouterr())

    return call


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a model key, a simulated machine and two policies."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CONFIDE_KEYS_PASSPHRASE", "correct horse")
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    Path("model.key").write_bytes(os.urandom(32))
    Path("model.key").chmod(0o600)
    SimulatedTee.create("tee")
    Path("policy.toml").write_text(to_toml(Policy()))
    Path("simulated.toml").write_text(to_toml(SimulatedPolicy()))
    return tmp_path


def test_keys_are_added_listed_and_removed(files: Path, run: Run) -> None:
    key = ModelKey.read(files / "model.key")
    add = ("add", "model.key", "--model-digest", MODEL, "--json")
    refused = run(*add, "--policy", "simulated.toml")
    assert refused.code == 1
    assert json.loads(refused.out)["error"]["code"] == "invalid-policy"
    refused = run(*add, "--policy", "policy.toml", "--simulated-root", "tee/root.pem")
    assert json.loads(refused.out)["error"]["code"] == "invalid-policy"

    added = run(*add, "--policy", "simulated.toml", "--simulated-root", "tee/root.pem")
    assert added.code == 0, added.err
    assert json.loads(added.out)["key"] == key.id
    assert "SIMULATED" in added.err
    again = run(*add, "--policy", "policy.toml")
    assert json.loads(again.out)["error"]["code"] == "key-store"

    (listed,) = json.loads(run("list", "--json").out)["keys"]
    assert (listed["key"], listed["model_digest"], listed["simulated"]) == (key.id, MODEL, True)
    assert listed["policy"] == to_toml(SimulatedPolicy())
    shown = run("list").out
    assert key.id in shown
    assert "SIMULATED" in shown

    assert run("remove", key.id).code == 0
    assert json.loads(run("list", "--json").out)["keys"] == []
    assert key.raw.hex() not in added.out + added.err + shown


def test_a_policy_is_changed_and_the_log_says_so(files: Path, run: Run) -> None:
    key = ModelKey.read(files / "model.key")
    add = (
        "add",
        "model.key",
        "--model-digest",
        MODEL,
        "--policy",
        "simulated.toml",
        "--simulated-root",
        "tee/root.pem",
    )
    assert run(*add).code == 0
    Path("stricter.toml").write_text(to_toml(SimulatedPolicy(version="8")))
    changed = run("change", key.id, "--policy", "stricter.toml", "--json")
    assert changed.code == 0, changed.err
    told = json.loads(changed.out)
    assert told["policy"] == to_toml(SimulatedPolicy(version="8"))
    (listed,) = json.loads(run("list", "--json").out)["keys"]
    assert (listed["policy"], listed["simulated"], listed["model_digest"]) == (told["policy"], True, MODEL)
    (entry,) = json.loads(run("log", "show", "--json").out)["entries"]
    assert (entry["event"], entry["policy"], entry["replaced"]) == ("changed", told["policy_digest"], told["replaced"])
    assert f"policy {told['replaced'][:16]} to {told['policy_digest'][:16]}" in run("log", "show").out
    # From simulated to production: without the root.
    assert run("change", key.id, "--policy", "policy.toml").code == 0
    assert not json.loads(run("list", "--json").out)["keys"][0]["simulated"]
    for wrong in (("change", "0" * 32, "--policy", "policy.toml"), ("change", key.id, "--policy", "stricter.toml")):
        assert run(*wrong).code == 1
    assert len(json.loads(run("log", "show", "--json").out)["entries"]) == 2


def test_a_package_says_which_model_the_key_is_for(files: Path, run: Run) -> None:
    (files / "one.gguf").write_bytes(b"weights")
    contents = Contents("made-up", "none", WeightsFormat.GGUF, "f16", {"one.gguf": files / "one.gguf"})
    seal_model(contents, files / "package", key=ModelKey.read(files / "model.key"), owner=OWNER)
    add = ("add", "model.key", "--policy", "policy.toml", "--package", "package", "--json")
    assert json.loads(run(*add).out)["error"]["code"] == "untrusted-owner"

    make_home()
    trust(OWNER.public, "")
    digest = SealedPackage.open(files / "package").manifest.model_digest
    assert json.loads(run(*add).out)["model_digest"] == digest
    assert run(*add, "--model-digest", MODEL).code == 2
    assert run(*add[:4]).code == 2

    (files / "model.key").write_bytes(os.urandom(32))
    assert json.loads(run(*add).out)["error"]["code"] == "wrong-model-key"


def test_a_model_gets_another_key_and_keeps_its_digest(files: Path, run: Run) -> None:
    (files / "one.gguf").write_bytes(b"weights")
    contents = Contents("made-up", "none", WeightsFormat.GGUF, "f16", {"one.gguf": files / "one.gguf"})
    before = seal_model(contents, files / "package", key=ModelKey.read(files / "model.key"), owner=OWNER)
    rotate = ("rotate", "package", "--key", "model.key", "--new-key", "new.key", "--out", "again", "--json")
    stranger = run(*rotate)
    assert json.loads(stranger.out)["error"]["code"] == "untrusted-owner"
    assert not (files / "new.key").exists()
    make_home()
    trust(OWNER.public, "")
    rotated = run(*rotate)
    assert rotated.code == 0, rotated.err
    told, key = json.loads(rotated.out), ModelKey.read(files / "new.key")
    assert (told["replaced"], told["key"], told["model_digest"]) == (before.key, key.id, before.model_digest)
    again = SealedPackage.open(files / "again")
    assert str(again.owner) == told["owner"] == str(OwnerKey.read(files / "home" / "owner.key").public)
    assert bytes(again.unlock(key).file("one.gguf").read()) == b"weights"
    assert json.loads(run(*rotate).out)["error"]["message"].startswith("again exists already")


def test_the_log_is_verified_and_shown(files: Path, run: Run) -> None:
    folder = files / "keys"
    folder.mkdir()
    verify = ("log", "verify", "--folder", folder, "--json")
    missing = run(*verify)
    assert missing.code == 1
    assert json.loads(missing.out)["error"]["code"] == "audit-log-unavailable"

    log = AuditLog(folder, datetime.now(UTC))
    for number in range(3):
        failed = check("model", MODEL, "\x1b[2J", ok=False)  # strangers write what they like
        log.append(Entry(datetime.now(UTC), "refused", key=f"{number:032x}", peer="192.0.2.7", failed=(failed,)))
    log.close()
    whole = json.loads(run(*verify).out)
    assert whole == {"intact": True, "entries": 3, "head": log.head, "torn_bytes": 0}
    shown = run("log", "show", "--folder", folder, "--last", "2")
    assert shown.out.count("192.0.2.7") == 2
    assert "\x1b[2J" not in shown.out
    assert "\N{REPLACEMENT CHARACTER}[2J" in shown.out

    lines = (folder / LOG_NAME).read_bytes().splitlines(keepends=True)
    (folder / LOG_NAME).write_bytes(b"".join(lines[:2]))
    assert run(*verify).code == 0
    cut = run(*verify, "--head", log.head)
    assert cut.code == 1
    assert json.loads(cut.out)["error"]["code"] == "audit-log-corrupted"
    (folder / LOG_NAME).write_bytes(b"".join(lines[1:]))
    assert run(*verify).code == 1


@pytest.mark.parametrize(
    ("options", "code"),
    [
        (("--host", "0.0.0.0"), "insecure-connection"),  # noqa: S104 - which is what is refused
        (("--policy", "model.key"), "invalid-policy"),
        ((), "key-store"),
    ],
)
@pytest.mark.usefixtures("files")
def test_serving_needs_tls_a_policy_and_keys(run: Run, options: tuple[str, ...], code: str) -> None:
    done = run("serve", "--port", "0", "--json", *options)
    assert done.code == 1
    assert json.loads(done.out)["error"]["code"] == code


def test_no_passphrase(files: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CONFIDE_KEYS_PASSPHRASE")
    done = run("add", "model.key", "--policy", "policy.toml", "--model-digest", MODEL)
    assert done.code == 1
    assert "CONFIDE_KEYS_PASSPHRASE" in done.err
    assert not (files / "home" / "keys").exists()


@pytest.mark.usefixtures("files")
def test_passphrases_at_their_full_cost(monkeypatch: pytest.MonkeyPatch) -> None:
    add = ("keys", "add", "model.key", "--policy", "policy.toml", "--model-digest", MODEL)
    assert command.run(*add).returncode == 0
    monkeypatch.setenv("CONFIDE_KEYS_PASSPHRASE", "battery staple")
    listed = command.run("keys", "list", "--json")
    assert listed.returncode == 1
    assert json.loads(listed.stdout)["error"]["code"] == "key-store"
