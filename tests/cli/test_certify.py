"""`confide certify` as two owners, a host and a user run it, each with what it has."""

import io
import json
import subprocess
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.certify.certificates import MEASURED, Laboratory
from tests.certify.test_tasks import HEADERS, task_file
from tests.cli.command import run
from tests.enclave.serving import serving
from tests.owners import OWNER, STRANGER

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Tdx
from confide.attest.scores import Metric
from confide.attest.simulated import SimulatedTee
from confide.broker import store
from confide.broker.app import key_broker_app
from confide.broker.broker import Broker
from confide.broker.log import AuditLog
from confide.broker.store import Conditions, KeyStore
from confide.certify import lm_eval_tasks
from confide.cli import main, serve
from confide.enclave import egress
from confide.enclave.egress import WaysOut
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.data import SealedData
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model

KEY = ModelKey(b"k" * 32)
TASK = task_file({**HEADERS[Metric.PERPLEXITY], "context": 32}, {"text": "It was the best of times. " * 8})


Run = Callable[..., "subprocess.CompletedProcess[str]"]


def here(*words: object) -> "subprocess.CompletedProcess[str]":
    """The command in this process."""
    out = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out):
        patch.setattr("sys.argv", ["confide", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
    return subprocess.CompletedProcess(words, int(left.value.code or 0), out.getvalue(), "")


def answer(*words: object, code: int = 0, by: Run = here) -> dict[str, Any]:
    done = by("certify", *words, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated machine, a sealed model, keys of both owners, a task file, and a policy for whoever measures."""
    folder = tmp_path_factory.mktemp("certify")
    SimulatedTee.create(folder / "tee")
    seal_model(contents_of("demo"), folder / "model", key=KEY, owner=OWNER)
    KEY.write(folder / "model.key")
    OWNER.write(folder / "owner.key")
    STRANGER.write(folder / "data-owner.key")
    (folder / "task.jsonl").write_bytes(TASK)
    tee = Laboratory(SimulatedTee.create(folder / "another", MEASURED))
    policy = SimulatedPolicy((Tdx(mrtd=tee.code["tdx mrtd"]),))
    (folder / "policy.toml").write_text(to_toml(policy))
    return folder


@pytest.fixture(scope="module")
def broker(place: Path, sealed: SealedData) -> Iterator[str]:
    """Both owners' key service, which releases to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SCRYPT_COST", 16)
        keys = KeyStore.create(place / "keys", "correct horse")
        tee = SimulatedTee.open(place / "tee")
        (root,) = {*tee.roots().certificates.values()}
        conditions = Conditions(SealedPackage.open(place / "model").manifest.model_digest, SimulatedPolicy(), root)
        now = datetime.now(UTC)
        for key in (KEY, ModelKey.read(place / "data.key")):
            keys.add(key, conditions, now)
        with serving(key_broker_app(Broker(keys, AuditLog(place / "keys", now)))) as url:
            yield url


@pytest.fixture(scope="module")
def sealed(place: Path) -> SealedData:
    said = answer(
        "seal", place / "task.jsonl", "--out", place / "data", "--key", place / "data.key",
        "--owner", place / "data-owner.key",
    )  # fmt: skip
    data = SealedData.open(place / "data", {STRANGER.public})
    assert (said["dataset"], said["key"], said["task"], said["items"]) == (
        data.manifest.dataset, data.manifest.key, "a book", 1,
    )  # fmt: skip
    return data


def tee(place: Path) -> tuple[object, ...]:
    return ("--tee", "simulated", "--simulated-tee", place / "tee")


@pytest.mark.parametrize("by", [pytest.param(run, id="closed", marks=pytest.mark.slow), pytest.param(here, id="here")])
def test_two_owners_a_host_and_a_user(
    place: Path, sealed: SealedData, broker: str, tmp_path: Path, by: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """by: what runs the measurement; only a process of its own can close its ways out, and never opens them again."""
    if by is here:
        monkeypatch.setattr(egress, "close_egress", lambda **_: WaysOut(closed=True))
    described, certificate = tmp_path / "run.json", tmp_path / "certificates" / "demo.json"
    certificate.parent.mkdir()
    data = ("--task", place / "data")
    said = answer("run", place / "model", *data, "--metric", "perplexity", "--out", described, *tee(place))
    assert said["dataset"] == sealed.manifest.dataset
    for role, key in (("model", "owner.key"), ("data", "data-owner.key")):
        words = ("--package", place / role, "--key", place / f"{role}.key", "--owner", place / key)
        assert answer("approve", described, *words, "--out", tmp_path / role)["role"] == role
    approved = ("--run", described, "--approval", tmp_path / "model", "--approval", tmp_path / "data")
    services = ("--keys", broker, "--data-keys", broker.replace("127.0.0.1", "localhost"))
    made = answer("score", place / "model", *data, *services, *approved, *tee(place), "--out", certificate, by=by)
    assert made["approved_by"] == {"model": str(OWNER.public), "data": str(STRANGER.public)}
    assert 1 < made["score"]["low"] <= made["score"]["value"] <= made["score"]["high"]

    trusts = ("--policy", place / "policy.toml", "--simulated-root", place / "tee" / "root.pem")
    about = ("--package", place / "model", "--task", place / "task.jsonl", "--nonce", said["nonce"])
    seen = answer("verify", certificate, *trusts, *about)
    assert (seen["verified"], seen["simulated"], seen["score"]) == (True, True, made["score"])
    assert answer("verify", certificate, *trusts, "--nonce", "11" * 32, code=10)["verified"] is False
    assert answer("verify", certificate, *trusts, "--at", "2046-01-01", code=10)["verified"] is False

    shown = here("certify", "verify", certificate, *trusts)
    assert shown.returncode == 0, shown.stderr
    assert "SIMULATED" in shown.stdout
    assert "perplexity" in shown.stdout

    (certificate.parent / "damaged.json").write_bytes(b"{}")
    listed = answer("index", certificate.parent, *trusts, "--out", tmp_path / "site")
    assert (listed["listed"], listed["left_out"]) == (1, {"damaged.json": "malformed-score"})
    page = (tmp_path / "site" / "index.html").read_text()
    assert f"{made['score']['value']:g}" in page
    assert "approved by both owners" in page


def test_what_is_not_as_it_has_to_be_is_said(
    place: Path, sealed: SealedData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    described, out = tmp_path / "run.json", tmp_path / "out"
    about = ("--task", place / "data", "--keys", "http://127.0.0.1:9", "--out", out, *tee(place))
    for words, code, says in (
        (("run", place / "model", "--task", place / "data", "--out", described, *tee(place)), 2, "--metric"),
        (("run", place / "model", "--task", "lm-eval:", "--out", described, *tee(place)), 1, "lm-eval"),
        (("score", place / "model", *about), 2, "--run"),
        (("verify", place / "task.jsonl", "--policy", place / "policy.toml"), 20, "no score certificate"),
    ):
        assert says in answer(*words, code=code)["error"]["message"]
    nonce = ("--nonce", "00" * 32)
    answer("run", place / "model", "--task", place / "task.jsonl", "--out", described, *nonce, *tee(place))
    monkeypatch.setattr(egress, "close_egress", lambda **_: WaysOut(closed=True))
    refused = answer("score", place / "model", *about, "--run", described, code=1)
    assert refused["error"]["code"] == "run-refused"
    wrong = answer(
        "approve", described, "--package", place / "data", "--key", place / "model.key",
        "--owner", place / "data-owner.key", "--out", out, code=1,
    )  # fmt: skip
    assert wrong["error"]["code"] == "wrong-model-key"
    assert not out.exists()


def test_a_folder_that_is_not_there_does_not_empty_a_page(place: Path, tmp_path: Path) -> None:
    (tmp_path / "index.html").write_text("with scores")
    trusts = ("--policy", place / "policy.toml", "--simulated-root", place / "tee" / "root.pem")
    for folder in (tmp_path / "mistyped", tmp_path / "index.html"):
        said = answer("index", folder, *trusts, "--out", tmp_path, code=2)
        assert "no folder" in said["error"]["message"]
    assert (tmp_path / "index.html").read_text() == "with scores"


def test_a_server_shows_certificates_of_its_own_model_only(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serve, "log_to_standard_error", lambda _form: None)
    (tmp_path / "other.json").write_bytes(Laboratory(SimulatedTee.open(place / "another")).certificate().write())
    for file, code, says in (("other.json", 2, "another model"), ("policy.toml", 1, "no score certificate")):
        path = tmp_path / file if file == "other.json" else place / file
        done = here(
            "serve", place / "model", "--keys", "http://127.0.0.1:9", "--certificate", path, *tee(place), "--json"
        )
        assert done.returncode == code, done.stdout
        assert says in json.loads(done.stdout)["error"]["message"]


def test_a_task_of_lm_eval_is_measured_as_any_file(
    place: Path, broker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its certificate says what made the items, of what."""
    monkeypatch.setattr(egress, "close_egress", lambda **_: WaysOut(closed=True))
    prepared = {"harness": "lm-eval", "version": "0.4.13", "task": "pets", "measure": "acc"}
    prepared |= {"config": "ab" * 32, "data": "cd" * 32}
    header = {**HEADERS[Metric.ACCURACY], "name": "pets", "tokens": "together", "prepared": prepared}
    item = {"prompt": "It was the best of", "choices": [" times", " x! x!"], "answer": 0}
    content = task_file(header, item, item)
    asked: list[tuple[str, Path | None]] = []

    def prepare(spec: str, folder: Path | None = None) -> bytes:
        asked.append((spec, folder))
        return content

    monkeypatch.setattr(lm_eval_tasks, "prepare_task", prepare)
    spec, certificate = "lm-eval:pets", tmp_path / "certificate.json"
    said = answer("task", spec, "--lm-eval-tasks", tmp_path, "--out", tmp_path / "pets.jsonl")
    assert (tmp_path / "pets.jsonl").read_bytes() == content
    assert (said["items"], said["prepared"]) == (2, prepared)
    assert "lm-eval 0.4.13: pets, acc" in here("certify", "task", spec, "--out", tmp_path / "again").stdout
    made = answer("score", place / "model", "--task", spec, "--keys", broker, *tee(place), "--out", certificate)
    assert (made["task"], made["prepared"], made["run"]["dataset"]) == ("pets", prepared, said["dataset"])
    trusts = ("--policy", place / "policy.toml", "--simulated-root", place / "tee" / "root.pem")
    assert answer("verify", certificate, *trusts, "--task", spec)["verified"]
    assert asked == [(spec, tmp_path), (spec, None), (spec, None), (spec, None)]
    answer("index", tmp_path, *trusts, "--out", tmp_path / "site")
    assert "lm-eval 0.4.13, acc" in (tmp_path / "site" / "index.html").read_text()
    wrong = answer("verify", certificate, *trusts, "--task", certificate, "--lm-eval-tasks", tmp_path, code=2)
    assert "goes with" in wrong["error"]["message"]
