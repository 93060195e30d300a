"""Trainings: what is trained is what was said before, and both owners approved it; nothing but the adapter leaves."""

import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NoReturn

import msgspec
import pytest
import torch
from tests.certify.certificates import MODEL_KEY as KEY
from tests.owners import OWNER, STRANGER

from confide.attest.certificates import Role
from confide.attest.configuration import Build, Egress
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import ConfideVersion, NoEgress, Tdx
from confide.attest.simulated import SimulatedTee
from confide.attest.training import ADAPTER_FILES, Lora, Passed, TrainingCertificate, TrainingRun, adapter_digest
from confide.attest.verifier import Verifier
from confide.certify import train as training
from confide.certify.consent import Consent, consent_to, read_consent, read_training_run, write_consent, write_run
from confide.certify.dataset_checks import Duplicates, Size
from confide.certify.runs import Attester, fresh_nonce
from confide.certify.score import dataset_digest
from confide.certify.train import Recipe, Trained, describe_training, train
from confide.certify.verify import verify_certificate
from confide.enclave.configuration import build
from confide.enclave.egress import WaysOut
from confide.enclave.workload import Workload
from confide.errors import (
    ConfideError,
    InvalidCorpus,
    InvalidPackage,
    MalformedTraining,
    RunRefused,
    SubstitutedContent,
    SurplusFile,
    TrainingFailed,
    WrongModelKey,
)
from confide.packages.sealed.adapter import SealedAdapter
from confide.packages.sealed.data import SealedData, seal_data
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage

DATA_KEY, ADAPTER_KEY = (ModelKey(letter * 32) for letter in (b"d", b"a"))
WORDS = "It was the best of times, it was the worst of times, it was the age of wisdom. "
RECIPE = Recipe(1, 7, Lora(rank=4, dropout=0.1, epochs=2, batch=2, context=16), (Size(), Duplicates()))


def corpus_file(*texts: str) -> bytes:
    lines = ({"confide-corpus": 1, "name": "a book"}, *({"text": text, "licence": "CC0-1.0"} for text in texts))
    return b"\n".join(json.dumps(line).encode() for line in lines)


CORPUS = corpus_file(WORDS, WORDS + "It was the age of foolishness.")


class Services:
    """Key services that release to everybody, and note for which key and to whom."""

    def __init__(self, *keys: ModelKey) -> None:
        self.keys, self.asked = {key.id: key for key in keys}, list[tuple[str, Workload]]()

    def __call__(self, identity: str, workload: Workload) -> ModelKey:
        self.asked.append((identity, workload))
        return self.keys[identity]


def nobody(identity: str, workload: Workload) -> NoReturn:
    raise AssertionError("a key was asked for")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> SealedData:
    out = tmp_path_factory.mktemp("sealed") / "data"
    seal_data(CORPUS, out, key=DATA_KEY, owner=STRANGER)
    return SealedData.open(out, {STRANGER.public})


def described(here: Attester, package: SealedPackage, recipe: Recipe = RECIPE, data: bytes = CORPUS) -> TrainingRun:
    model, digest = package.manifest.model_digest, dataset_digest(data)
    return describe_training(here, model, digest, ADAPTER_KEY.id, recipe, fresh_nonce())


def consents(run: TrainingRun) -> tuple[Consent, Consent]:
    return consent_to(run, Role.MODEL, OWNER, KEY), consent_to(run, Role.DATA, STRANGER, DATA_KEY)


@pytest.fixture(scope="module")
def made(here: Attester, package: SealedPackage) -> Trained:
    """An adapter from the file in the clear."""
    return train(here, package, CORPUS, described(here, package), Services(KEY, ADAPTER_KEY))


# -- what comes out ----------------------------------------------------------------------------------------------------


def test_a_blind_training_is_certified(
    here: Attester, tee: SimulatedTee, package: SealedPackage, data: SealedData, made: Trained
) -> None:
    run = described(here, package)
    approved = [read_consent(write_consent(one)) for one in consents(read_training_run(write_run(run)))]
    keys, data_keys, ways = Services(KEY), Services(DATA_KEY, ADAPTER_KEY), WaysOut(closed=True)
    done = train(here, package, data, run, keys, fetch_data=data_keys, consents=approved, ways=ways)
    certificate = TrainingCertificate.read(done.certificate.write())

    policy = SimulatedPolicy(
        (Tdx(mrtd=run.measurement["tdx mrtd"]), ConfideVersion(sha256=(build().digest,)), NoEgress())
    )
    wanted = {
        "adapter": adapter_digest(done.files),
        "base": package.manifest.model_digest,
        "dataset": dataset_digest(CORPUS),
        "nonce": run.nonce,
    }
    now, verifier = datetime.now(UTC), Verifier(tee.roots())
    assert verify_certificate(certificate, verifier, policy, now, **wanted).verified
    for name in wanted:
        refused = verify_certificate(certificate, verifier, policy, now, **{name: "11" * 32})
        assert [check.code for check in refused.failures] == [f"training-{name}"]
    predicate = certificate.predicate
    assert (certificate.name, predicate.corpus, certificate.run) == ("demo", "a book", run)
    assert certificate.approved_by(Role.MODEL) == str(OWNER.public)
    assert certificate.approved_by(Role.DATA) == str(STRANGER.public)
    assert [one.check for one in predicate.passed] == ["size", "duplicates"]
    assert predicate.passed[1] == Passed("duplicates", {"duplicates": 0})
    assert (predicate.amount.texts, predicate.started <= predicate.finished <= now) == (2, True)
    assert predicate.amount.steps == 2 * -(-predicate.amount.tokens // 15 // 2)
    said = predicate.attested.statement.configuration
    assert said is not None
    assert said.engine is not None
    assert (said.engine.name, said.egress, said.options["run"]) == ("peft", Egress.NONE, run.digest)
    for secret in (b"best of times", b"foolish", KEY.raw, DATA_KEY.raw, ADAPTER_KEY.raw):
        assert secret not in certificate.payload

    # Owners are asked with evidence that names the base and the run.
    assert [identity for identity, _ in keys.asked + data_keys.asked] == [KEY.id, DATA_KEY.id, ADAPTER_KEY.id]
    for _, workload in keys.asked + data_keys.asked:
        statement = workload.attest("00" * 32).statement
        assert statement.model_digest == package.manifest.model_digest
        assert statement.configuration is not None
        assert statement.configuration.options == {"tee": "simulated", "run": run.digest}

    # The same on the file in the clear, another time, comes to the same bytes.
    assert done.files == made.files
    assert made.certificate.predicate.approvals == ()


def test_the_adapter_learns_its_data(package: SealedPackage, made: Trained, tmp_path: Path) -> None:
    from confide.evaluate.perplexity import measure_loss
    from confide.packages.sealed.load import load_model, load_tokenizer

    unlocked = package.unlock(KEY)
    tokenizer, model = load_tokenizer(unlocked), load_model(unlocked, dtype=torch.float32)
    assert tokenizer is not None
    ids = tokenizer(WORDS, add_special_tokens=False)["input_ids"]
    before = measure_loss(model, ids).nll
    made.seal(tmp_path / "adapter")
    adapter = SealedAdapter.open(tmp_path / "adapter").unlock(ADAPTER_KEY).read()
    assert adapter.digest == made.certificate.predicate.adapter
    assert measure_loss(adapter.merge_into(model), ids).nll < before - 1


def test_keys_are_closed_before_anything_is_opened(
    here: Attester, package: SealedPackage, monkeypatch: pytest.MonkeyPatch
) -> None:
    ways, closed = WaysOut(closed=True), list[str]()
    monkeypatch.setattr(ways, "close_keys", lambda: closed.append("keys"))

    def opened(*_: object) -> NoReturn:
        assert closed == ["keys"]
        raise InvalidCorpus("Enough.")

    monkeypatch.setattr(training, "read_corpus", opened)
    with pytest.raises(InvalidCorpus, match="Enough"):
        train(here, package, CORPUS, described(here, package), Services(KEY, ADAPTER_KEY), ways=ways)


# -- cheating: other data, another base, changed code, edited hyperparameters, another owner's adapter -----------------


@pytest.mark.parametrize(
    "change",
    [
        {"base": "11" * 32},
        {"dataset": "11" * 32},
        {"harness": Build("0.1.0", "11" * 32)},
        {"measurement": {"tdx mrtd": "11" * 48}},
    ],
    ids=["other base", "other data", "changed code", "other machine"],
)
def test_another_run_than_the_one_that_was_said(
    here: Attester, package: SealedPackage, data: SealedData, change: Mapping[str, Any]
) -> None:
    other = msgspec.structs.replace(described(here, package), **change)
    for content, approved in ((data, consents(other)), (CORPUS, ())):
        with pytest.raises(RunRefused, match=f"another {next(iter(change))}"):
            train(here, package, content, other, nobody, consents=approved)


@pytest.mark.parametrize(
    "change",
    [
        {"lora": Lora(rank=4, epochs=3)},
        {"seed": 8},
        {"checks": ()},
        {"key": "0b" * 16},
        {"nonce": "11" * 32},
    ],
    ids=["hyperparameters", "seed", "checks", "whose adapter", "replayed approval"],
)
def test_what_was_edited_after_it_was_approved(
    here: Attester, package: SealedPackage, data: SealedData, change: Mapping[str, Any]
) -> None:
    run = described(here, package)
    with pytest.raises(RunRefused, match="another run"):
        train(here, package, data, msgspec.structs.replace(run, **change), nobody, consents=consents(run))


def test_whoever_signs_the_ciphertext_of_others_is_not_their_owner(
    here: Attester, package: SealedPackage, data: SealedData
) -> None:
    run = described(here, package)
    forged = (consent_to(run, Role.MODEL, OWNER, KEY), consent_to(run, Role.DATA, STRANGER, ADAPTER_KEY))
    with pytest.raises(RunRefused, match="does not hold its key"):
        train(here, package, data, run, Services(KEY, DATA_KEY, ADAPTER_KEY), consents=forged)


def test_a_check_that_does_not_pass_trains_nothing(
    here: Attester, package: SealedPackage, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    twice = corpus_file(WORDS, WORDS.upper())
    run = described(here, package, data=twice)
    with pytest.raises(InvalidCorpus, match="`duplicates` found 1"):
        train(here, package, twice, run, Services(KEY, ADAPTER_KEY))
    seal_data(twice, tmp_path / "data", key=DATA_KEY, owner=STRANGER)
    sealed = SealedData.open(tmp_path / "data")
    with pytest.raises(RunRefused) as caught:
        train(here, package, sealed, run, Services(KEY, DATA_KEY, ADAPTER_KEY), consents=consents(run))
    assert "duplicates" not in str(caught.value)
    assert caught.value.__suppress_context__
    assert not caplog.records


def test_a_recipe_that_trains_nothing(here: Attester, package: SealedPackage, monkeypatch: pytest.MonkeyPatch) -> None:
    run = described(here, package, Recipe(1, 7, Lora(targets=("no_such_module",))))
    with pytest.raises(TrainingFailed, match="targets"):
        train(here, package, CORPUS, run, Services(KEY, ADAPTER_KEY))
    monkeypatch.setattr(
        "confide.certify.lora.window_loss", lambda model, window: sum(window) * torch.tensor(float("inf"))
    )
    with pytest.raises(TrainingFailed, match="not finite"):
        train(here, package, CORPUS, described(here, package), Services(KEY, ADAPTER_KEY))


# -- the adapter as it lies on disk ------------------------------------------------------------------------------------


def test_a_sealed_adapter_is_what_its_certificate_names(made: Trained, package: SealedPackage, tmp_path: Path) -> None:
    model = package.manifest.model_digest

    def sealed(name: str, trained: Trained = made) -> Path:
        trained.seal(tmp_path / name)
        return tmp_path / name

    folder = sealed("adapter")
    assert SealedAdapter.open(folder).unlock(ADAPTER_KEY).files() == made.files
    assert SealedAdapter.open(folder).unlock(ADAPTER_KEY).known_answers() is None
    stored = b"".join(path.read_bytes() for path in folder.iterdir())
    assert not any(made.files[name][8:40] in stored for name in ADAPTER_FILES)
    with pytest.raises(WrongModelKey):
        SealedAdapter.open(folder).unlock(KEY)
    with pytest.raises(InvalidPackage, match="give its base"):
        SealedAdapter.open(folder).require_base("11" * 32)
    with pytest.raises(ConfideError, match="exists already"):
        sealed("adapter")
    # Somebody with the key puts another adapter under the certificate, or another certificate over the adapter.
    config, weights = ADAPTER_FILES
    other = {config: made.files[config].replace(b'"r": 4', b'"r": 8'), weights: made.files[weights]}
    with pytest.raises(SubstitutedContent):
        SealedAdapter.open(sealed("other", replace(made, files=other))).unlock(ADAPTER_KEY).files()
    manifest = folder / "manifest.json"
    for change in ({"adapter": "11" * 32}, {"base": "11" * 32}):
        (name,) = change
        whole = json.loads(manifest.read_bytes())
        manifest.write_bytes(json.dumps(whole | change).encode())
        with pytest.raises(InvalidPackage, match="another adapter"):
            SealedAdapter.open(folder)
        manifest.write_bytes(json.dumps(whole).encode())
        assert name in whole
    SealedAdapter.open(folder).require_base(model)
    (folder / "certificate.json").write_bytes(b"{}")
    with pytest.raises(MalformedTraining):
        SealedAdapter.open(folder)
    (tmp_path / "other" / "more.json").touch()
    with pytest.raises(SurplusFile):
        SealedAdapter.open(tmp_path / "other")


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b" " * (1 << 17)], ids=range(5))
def test_other_files_are_no_runs_of_a_training(content: bytes) -> None:
    with pytest.raises(RunRefused):
        read_training_run(content)
