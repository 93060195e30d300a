"""`confide train` as two owners, a host and a user run it, each with what it has."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.certify.certificates import MEASURED, Laboratory
from tests.certify.test_tasks import HEADERS, task_file
from tests.certify.test_train import WORDS, corpus_file
from tests.cli.command import run
from tests.cli.test_certify import Run, here, tee
from tests.enclave.serving import serving
from tests.owners import OWNER, STRANGER

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Tdx
from confide.attest.scores import Metric
from confide.attest.simulated import SimulatedTee
from confide.attest.training import ADAPTER_FILES
from confide.broker import store
from confide.broker.app import key_broker_app
from confide.broker.broker import Broker
from confide.broker.log import AuditLog
from confide.broker.store import Conditions, KeyStore
from confide.cli import serve
from confide.enclave import egress
from confide.enclave.egress import WaysOut
from confide.packages.sealed.adapter import seal_adapter
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage
from confide.packages.sealed.write import seal_model

KEY = ModelKey(b"k" * 32)
RECIPE = """
confide-training = 1
seed = 7

[lora]
rank = 4
epochs = 2
batch = 2
context = 16

[[check]]
check = "licences"
allowed = ["CC0-1.0"]

[[check]]
check = "words"
words = ["unmentionable"]
"""


def answer(*words: object, code: int = 0, by: Run = here, verb: str = "train") -> dict[str, Any]:
    done = by(verb, *words, "--json")
    assert done.returncode == code, done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A simulated machine, a sealed model and corpus, keys of both owners, and a policy for whoever trains."""
    folder = tmp_path_factory.mktemp("train")
    SimulatedTee.create(folder / "tee")
    seal_model(contents_of("demo"), folder / "model", key=KEY, owner=OWNER)
    KEY.write(folder / "model.key")
    OWNER.write(folder / "owner.key")
    STRANGER.write(folder / "data-owner.key")
    (folder / "corpus.jsonl").write_bytes(corpus_file(WORDS, WORDS + "It was the age of foolishness."))
    (folder / "task.jsonl").write_bytes(task_file({**HEADERS[Metric.PERPLEXITY], "context": 32}, {"text": WORDS * 3}))
    (folder / "recipe.toml").write_text(RECIPE)
    code = Laboratory(SimulatedTee.create(folder / "another", MEASURED)).code
    (folder / "policy.toml").write_text(to_toml(SimulatedPolicy((Tdx(mrtd=code["tdx mrtd"]),))))
    sealed = ("--out", folder / "data", "--key", folder / "data.key", "--owner", folder / "data-owner.key")
    assert answer("seal", folder / "corpus.jsonl", *sealed)["texts"] == 2
    return folder


@pytest.fixture(scope="module")
def adapter_key(place: Path) -> str:
    made = answer("key", place / "adapter.key")
    assert answer("key", place / "adapter.key") == made
    return str(made["key"])


@pytest.fixture(scope="module")
def broker(place: Path, adapter_key: str) -> Iterator[str]:
    """Both owners' key service, which releases to this machine."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "SCRYPT_COST", 16)
        keys = KeyStore.create(place / "keys", "correct horse")
        (root,) = {*SimulatedTee.open(place / "tee").roots().certificates.values()}
        conditions = Conditions(SealedPackage.open(place / "model").manifest.model_digest, SimulatedPolicy(), root)
        now = datetime.now(UTC)
        for name in ("model", "data", "adapter"):
            keys.add(ModelKey.read(place / f"{name}.key"), conditions, now)
        with serving(key_broker_app(Broker(keys, AuditLog(place / "keys", now)))) as url:
            yield url


@pytest.mark.parametrize("by", [pytest.param(run, id="closed", marks=pytest.mark.slow), pytest.param(here, id="here")])
def test_two_owners_a_host_and_a_user(
    place: Path, adapter_key: str, broker: str, tmp_path: Path, by: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """by: what trains and measures; only a process of its own can close its ways out, and never opens them again."""
    if by is here:
        monkeypatch.setattr(egress, "close_egress", lambda **_: WaysOut(closed=True))
    recipe, services = ("--recipe", place / "recipe.toml"), ("--keys", broker, *tee(place))
    checked = answer("check", place / "corpus.jsonl", *recipe)
    assert [one["check"] for one in checked["passed"]] == ["licences", "words"]

    described, adapter = tmp_path / "run.json", tmp_path / "adapter"
    asked = ("--data", place / "data", "--adapter-key", adapter_key, *recipe)
    said = answer("run", place / "model", *asked, "--out", described, *tee(place))
    for role, key in (("model", "owner.key"), ("data", "data-owner.key")):
        words = ("--package", place / role, "--key", place / f"{role}.key", "--owner", place / key)
        assert answer("approve", described, *words, "--out", tmp_path / role)["role"] == role
    approved = ("--run", described, "--approval", tmp_path / "model", "--approval", tmp_path / "data")
    made = answer("lora", place / "model", "--data", place / "data", *services, *approved, "--out", adapter, by=by)
    assert made["approved_by"] == {"model": str(OWNER.public), "data": str(STRANGER.public)}
    assert made["amount"]["texts"] == 2
    assert made["run"]["seed"] == 7

    trusts = ("--policy", place / "policy.toml", "--simulated-root", place / "tee" / "root.pem")
    about = ("--package", place / "model", "--data", place / "corpus.jsonl", "--nonce", said["nonce"])
    seen = answer("verify", adapter, *trusts, *about, "--adapter", made["adapter_digest"])
    assert (seen["verified"], seen["simulated"], seen["corpus"]) == (True, True, "a book")
    assert answer("verify", adapter / "certificate.json", *trusts, "--adapter", "11" * 32, code=10)["verified"] is False
    assert answer("verify", adapter, *trusts, "--at", "2046-01-01", code=10)["verified"] is False
    shown = here("train", "verify", adapter, *trusts)
    assert shown.returncode == 0, shown.stderr
    for words in ("SIMULATED", "a book", "seed 7", "0 listed-words"):
        assert words in shown.stdout

    opened = answer("open", adapter, "--key", place / "adapter.key", "--out", tmp_path / "opened")
    assert opened["adapter"] == made["adapter_digest"]
    assert json.loads((tmp_path / "opened" / "adapter_config.json").read_bytes())["r"] == 4

    # What it did to the model is certified as well.
    scores = []
    for name, over in (("before", ()), ("after", ("--adapter", adapter))):
        words = (place / "model", "--task", place / "task.jsonl", *services, *over, "--out", tmp_path / name)
        scores.append(answer("score", *words, by=by, verb="certify"))
        assert answer("verify", tmp_path / name, *trusts, verb="certify")["verified"]
    before, after = scores
    assert after["score"]["value"] < before["score"]["value"]
    assert after["run"]["adapter"] == made["adapter_digest"]
    assert "adapter" not in before["run"]


def test_what_is_not_as_it_has_to_be_is_said(
    place: Path, adapter_key: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(egress, "close_egress", lambda **_: WaysOut(closed=True))
    described, out, recipe = tmp_path / "run.json", tmp_path / "out", tmp_path / "recipe.toml"
    recipe.write_text("confide-training = 1\n[lora]\nranks = 4")
    (tmp_path / "strict.toml").write_text(RECIPE.replace("unmentionable", "foolishness"))
    data, where = ("--data", place / "data"), ("--keys", "http://127.0.0.1:9", "--out", out, *tee(place))
    key = ("--adapter-key", adapter_key)
    for words, code, says in (
        (("run", place / "model", *data, "--adapter-key", "mine", "--out", described, *tee(place)), 2, "--adapter-key"),
        (("run", place / "model", *data, *key, "--recipe", recipe, "--out", described, *tee(place)), 1, "ranks"),
        (("check", place / "corpus.jsonl", "--recipe", tmp_path / "strict.toml"), 1, "`words` found 1"),
        (("seal", place / "task.jsonl", "--key", tmp_path / "key", "--out", out), 1, "Line 1"),
        (("lora", place / "model", *data, *where, *key), 2, "--run"),
        (("lora", place / "model", "--data", place / "corpus.jsonl", *where), 2, "--adapter-key"),
        (("verify", place / "task.jsonl", "--policy", place / "policy.toml"), 20, "no training certificate"),
    ):
        assert says in answer(*words, code=code)["error"]["message"]
    answer("run", place / "model", "--data", place / "corpus.jsonl", *key, "--out", described, *tee(place))
    refused = answer("lora", place / "model", *data, *where, "--run", described, code=1)
    assert refused["error"]["code"] == "run-refused"
    both = answer("lora", place / "model", *data, *where, "--run", described, *key, code=2)
    assert "leave those options out" in both["error"]["message"]
    assert not out.exists()


def test_a_server_shows_scores_of_what_it_serves(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not those of the base alone, where an adapter lies over it; and no key is asked for."""
    monkeypatch.setattr(serve, "log_to_standard_error", lambda _form: None)
    model = SealedPackage.open(place / "model").manifest.model_digest
    laboratory = Laboratory(SimulatedTee.open(place / "another"))
    certificate = laboratory.training(laboratory.training_run(base=model))
    seal_adapter(dict.fromkeys(ADAPTER_FILES, b"{}"), certificate, tmp_path / "adapter", key=KEY)
    (tmp_path / "bare.json").write_bytes(laboratory.certificate(laboratory.run(model=model)).write())
    over, bare = ("--adapter", tmp_path / "adapter"), ("--certificate", tmp_path / "bare.json")
    for options, says in (
        ((*over, *bare), "another model than the one that is served"),
        (("--adapter-keys", "http://127.0.0.1:9"), "goes with --adapter"),
    ):
        done = here("serve", place / "model", "--keys", "http://127.0.0.1:9", *options, *tee(place), "--json")
        assert done.returncode == 2, done.stdout
        assert says in json.loads(done.stdout)["error"]["message"]
