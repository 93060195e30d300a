"""Trainings that are killed: what they leave is sealed, and whoever takes it up comes to the same and says so."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.certify.certificates import MEASURED, MODEL_KEY, Laboratory
from tests.certify.test_certificates import LATER
from tests.certify.test_train import ADAPTER_KEY, CORPUS, RECIPE, Services, described

from confide.attest.certificates import AnyCertificate
from confide.attest.configuration import Build, Configuration
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Environment, Tdx
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.training import CHECKPOINT_PURPOSE, MAX_EARLIER, EarlierPart, Lora, TrainingCertificate, TrainingRun
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.certify.checkpoint import Checkpoints
from confide.certify.lora import Training
from confide.certify.runs import Attester
from confide.certify.train import Trained, train
from confide.certify.verify import verify_certificate
from confide.errors import MalformedTraining, TrainingFailed
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.package import SealedPackage

SIGNER = Ed25519PrivateKey.from_private_bytes(b"c" * 32)


class Killed(BaseException):
    """What ends a process between two steps."""


def trained(here: Attester, package: SealedPackage, run: TrainingRun, **options: Any) -> Trained:
    return train(here, package, CORPUS, run, Services(MODEL_KEY, ADAPTER_KEY), **options)


def killed_at(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training is killed before this step."""
    go_on = Training.step

    def step_or_die(self: Training) -> None:
        if self.done == step:
            monkeypatch.setattr(Training, "step", go_on)
            raise Killed
        go_on(self)

    monkeypatch.setattr(Training, "step", step_or_die)


def test_a_killed_run_is_taken_up_and_comes_to_the_same(
    here: Attester, tee: SimulatedTee, package: SealedPackage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, left = described(here, package), tmp_path / "left"
    killed_at(3, monkeypatch)
    with pytest.raises(Killed):
        trained(here, package, run, checkpoint=left, every=2)
    assert [path.name for path in tmp_path.iterdir()] == ["left"]
    read = Checkpoints(left, run, ADAPTER_KEY).read()
    assert read is not None
    assert read.steps == 2
    stored = left.read_bytes()
    assert not any(read.state[place : place + 64] in stored for place in range(4096, len(read.state) - 64, 4096))

    done = trained(here, package, run, checkpoint=left, every=2)
    whole = trained(here, package, run)
    assert done.files == whole.files
    certificate = TrainingCertificate.read(done.certificate.write())
    earlier = certificate.predicate.earlier
    assert [part.steps for part in earlier] == [2]
    assert certificate.predicate.started == earlier[0].started < certificate.predicate.finished
    assert whole.certificate.predicate.earlier == ()
    assert len(certificate.testimonies) == 2
    policy = SimulatedPolicy((Tdx(mrtd=run.measurement["tdx mrtd"]),))
    assert verify_certificate(certificate, Verifier(tee.roots()), policy, datetime.now(UTC)).verified


@pytest.fixture
def left(laboratory: Laboratory, tmp_path: Path) -> tuple[Checkpoints, EarlierPart]:
    """A checkpoint of a run that nobody makes, as a process of it leaves one."""
    part, run = earlier(laboratory), laboratory.training_run()
    checkpoints = Checkpoints(tmp_path / "left", run, ADAPTER_KEY)
    checkpoints.write((part,), 2, b"state", SIGNER)
    return checkpoints, part


def earlier(laboratory: Laboratory, run: TrainingRun | None = None, **statement: Any) -> EarlierPart:
    run = run or laboratory.training_run()
    public = {CHECKPOINT_PURPOSE: SIGNER.public_key().public_bytes_raw().hex()}
    said = Statement(run.digest, run.base, "", public, Configuration(run.harness))
    said = msgspec.structs.replace(said, **statement)
    attested = Attested.make(laboratory.tee.quote(said.digest()), said, laboratory.collateral)
    return EarlierPart(attested, MEASURED - timedelta(minutes=9), 2)


def test_only_what_a_process_of_the_run_left_is_taken_up(left: tuple[Checkpoints, EarlierPart]) -> None:
    checkpoints, part = left
    found = checkpoints.read()
    assert found is not None
    assert (found.parts, found.steps, found.state) == ((part,), 2, b"state")
    whole = checkpoints.path.read_bytes()

    def refused(says: str, of: Checkpoints = checkpoints) -> None:
        with pytest.raises(TrainingFailed, match=says):
            of.read()

    refused("no checkpoint of this run", Checkpoints(checkpoints.path, checkpoints.run, ModelKey(b"o" * 32)))
    edited = msgspec.structs.replace(checkpoints.run, lora=Lora(rank=64))
    refused("no checkpoint of this run", Checkpoints(checkpoints.path, edited, ADAPTER_KEY))
    for content in (b"", whole[:-1], whole[:40], whole[:-1] + bytes([whole[-1] ^ 1]), b"x" + whole):
        checkpoints.path.write_bytes(content)
        refused("no checkpoint of this run")
    # The adapter's owner has its key, and no key that evidence names.
    checkpoints.write((part,), 2, b"weights from elsewhere", Ed25519PrivateKey.generate())
    refused("made by others")
    checkpoints.write((part,) * (MAX_EARLIER + 1), 2, b"state", SIGNER)
    refused(f"more than {MAX_EARLIER} times")
    checkpoints.path.unlink()
    assert checkpoints.read() is None
    checkpoints.path.mkdir()
    refused("cannot be read")


def failed(laboratory: Laboratory, certificate: AnyCertificate, policy: SimulatedPolicy | None = None) -> set[str]:
    result = verify_certificate(certificate, laboratory.verifier, policy or laboratory.policy, LATER)
    return {check.code for check in result.failures}


def test_each_process_of_a_run_is_held_to_the_policy(laboratory: Laboratory) -> None:
    """Whoever takes up what was left believes no evidence; whoever verifies the certificate looks at all of it."""

    def of(*parts: EarlierPart) -> TrainingCertificate:
        return TrainingCertificate.read(laboratory.training(earlier=parts).write())

    assert failed(laboratory, of(earlier(laboratory))) == set()
    another = earlier(laboratory, laboratory.training_run(dataset="22" * 32))
    assert "nonce" in failed(laboratory, of(earlier(laboratory), another))
    assert "model" in failed(laboratory, of(earlier(laboratory, model_digest="11" * 32)))
    changed = Configuration(Build("0.1.0", "11" * 32))
    assert {"training-harness", "confide-digest"} <= failed(laboratory, of(earlier(laboratory, configuration=changed)))
    preloaded = Configuration(laboratory.training_run().harness, environment={"LD_PRELOAD": "evil.so"})
    strict = SimulatedPolicy((*laboratory.signer, Environment(allowed={})))
    assert failed(laboratory, of(earlier(laboratory)), strict) == set()
    assert failed(laboratory, of(earlier(laboratory, configuration=preloaded)), strict) != set()
    long_ago = msgspec.structs.replace(earlier(laboratory), started=MEASURED - timedelta(days=300))
    assert "outside-validity" in failed(laboratory, of(long_ago))


def test_a_certificate_of_parts_that_do_not_follow_is_none(laboratory: Laboratory) -> None:
    part = earlier(laboratory)
    beyond = msgspec.structs.replace(part, steps=11)
    nameless = earlier(laboratory, channel_keys={})
    for parts in ((beyond,), (part, msgspec.structs.replace(part, steps=1)), (nameless,), (part,) * (MAX_EARLIER + 1)):
        with pytest.raises(MalformedTraining):
            TrainingCertificate.read(laboratory.training(earlier=parts).write())


def test_the_state_of_another_training_is_not_taken_up(here: Attester, package: SealedPackage, tmp_path: Path) -> None:
    from confide.packages.sealed.load import load_model

    model = load_model(package.unlock(MODEL_KEY))
    training = Training(model, [[1, 2, 3]] * 3, RECIPE.lora, 7)
    state = training.state()
    training.resume(state, 2)
    assert (training.done, training.state()) == (2, state)
    for other, done in ((b"", 1), (state[:-1], 1), (state, training.steps + 1)):
        with pytest.raises(TrainingFailed):
            training.resume(other, done)
