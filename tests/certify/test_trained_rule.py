"""Policies about what lies over a model: adapters made from which data, as certificates say that are believed."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.certify.certificates import ADAPTER, DATASET, HARNESS, MEASURED, MODEL, Laboratory
from tests.client.workload import FakeWorkload, serving

import confide
from confide.attest.check import Check
from confide.attest.collateral import Collateral
from confide.attest.configuration import Build, Configuration, UpstreamUsed
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.policy_words import asked, left_open
from confide.attest.requirements import ByCertificate, NoEgress, Tdx, name_of
from confide.attest.scores import SCORES, ScoreCertificate
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.training import TRAINING, Lora, TrainingCertificate
from confide.attest.wire import Attested
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, InvalidPolicy

NOW = MEASURED + timedelta(days=5)
OTHER = "11" * 32
STATED = Configuration(HARNESS)


def judged(
    laboratory: Laboratory,
    rule: ByCertificate,
    *certificates: TrainingCertificate,
    model: str = MODEL,
    adapters: tuple[str, ...] = (ADAPTER,),
    configuration: Configuration | None = STATED,
    **sent: bytes,
) -> Check:
    """The check of a rule, for a served model under these adapters that shows these certificates."""
    if configuration is not None:
        configuration = msgspec.structs.replace(configuration, adapters=adapters)
    said = Statement("00" * 32, model, configuration=configuration)
    documents = {**laboratory.collateral.documents} | sent
    if certificates:
        documents[TRAINING] = TrainingCertificate.write_lines(certificates)
    evidence, policy = laboratory.tee.quote(said.digest()), SimulatedPolicy((rule,))
    result = laboratory.verifier.appraise(evidence, Collateral(documents), policy, NOW, statement=said)
    (found,) = [check for check in result.checks if check.code == name_of(rule)]
    assert found.clause
    assert result.trusted is found.passed
    return found


# -- what is asked for -------------------------------------------------------------------------------------------------


def test_what_lies_over_the_model_was_made_from_the_data(laboratory: Laboratory) -> None:
    found = judged(laboratory, laboratory.trained_on(base=MODEL), laboratory.training())
    assert (found.passed, found.seen) == (True, "a book, 2026-02-19 12:00 UTC")
    assert not judged(laboratory, laboratory.trained_on(), laboratory.training(), adapters=()).passed
    assert not judged(laboratory, laboratory.trained_on(dataset=OTHER), laboratory.training()).passed
    assert not judged(laboratory, laboratory.trained_on(base=OTHER), laboratory.training()).passed


def test_nothing_over_the_base_was_made_from_the_data(laboratory: Laboratory) -> None:
    rule = laboratory.not_trained_on()
    assert judged(laboratory, rule, laboratory.training()).passed
    found = judged(laboratory, laboratory.not_trained_on(dataset=DATASET), laboratory.training())
    assert (found.passed, found.seen) == (False, f"made from {DATASET}")


def test_the_base_alone_is_what_whoever_wrote_the_policy_says(laboratory: Laboratory) -> None:
    """No certificate says what a base was made from, so none is needed, and another base is refused."""
    rule = laboratory.not_trained_on()
    assert judged(laboratory, rule, adapters=()).seen == "the base alone"
    assert not judged(laboratory, rule, adapters=(), model=OTHER).passed
    with pytest.raises(TypeError):
        type(rule)(dataset=OTHER, signer=laboratory.signer)  # type: ignore[call-arg]


def test_one_adapter_of_two_that_nobody_knows_is_not_unknown_data(laboratory: Laboratory) -> None:
    both = (ADAPTER, OTHER)
    assert not judged(laboratory, laboratory.not_trained_on(), laboratory.training(), adapters=both).passed
    second = laboratory.training(adapter=OTHER)
    assert judged(laboratory, laboratory.not_trained_on(), laboratory.training(), second, adapters=both).passed
    assert judged(laboratory, laboratory.trained_on(), laboratory.training(), adapters=both).passed


def test_an_adapter_with_two_histories_has_both(laboratory: Laboratory) -> None:
    """Equal adapters of two files: the one that is not asked about excuses nothing."""
    innocent = laboratory.training(laboratory.training_run(dataset="22" * 32))
    assert judged(laboratory, laboratory.not_trained_on(dataset=DATASET), innocent).passed
    for two in ((innocent, laboratory.training()), (laboratory.training(), innocent)):
        assert not judged(laboratory, laboratory.not_trained_on(dataset=DATASET), *two).passed
        assert judged(laboratory, laboratory.trained_on(), *two).passed


@pytest.mark.parametrize("name", ["trained_on", "not_trained_on"])
def test_a_missing_certificate_is_a_refused_clause(laboratory: Laboratory, name: str) -> None:
    rule = getattr(laboratory, name)()
    assert judged(laboratory, rule).seen == "no certificate came with the evidence"
    assert not judged(laboratory, rule, training=b"\n").passed
    assert "malformed-training" in judged(laboratory, rule, training=b"{}").seen
    of_another = laboratory.training(adapter=OTHER)
    assert not judged(laboratory, rule, of_another).passed
    # Who does not say what lies over the model, or has another program run it, shows nothing.
    assert not judged(laboratory, rule, laboratory.training(), configuration=None).passed
    upstream = Configuration(HARNESS, upstream=UpstreamUsed("vllm", "http://127.0.0.1:8000"))
    assert "another program" in judged(laboratory, rule, laboratory.training(), configuration=upstream).seen


# -- cheating ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["trained_on", "not_trained_on"])
def test_whoever_cheats_is_not_believed(laboratory: Laboratory, name: str) -> None:
    """Other data, another base, changed code, a replayed certificate, edited hyperparameters, a key of one's own."""
    rule, run = getattr(laboratory, name)(), laboratory.training_run()

    def seen(certificate: TrainingCertificate) -> str:
        found = judged(laboratory, rule, certificate)
        assert not found.passed
        return found.seen

    genuine = laboratory.attested(run)
    for edited in (
        {"dataset": "22" * 32 if name == "not_trained_on" else DATASET, "nonce": OTHER},
        {"lora": Lora(rank=64)},
        {"seed": 8},
        {"checks": ()},
        {"key": "0b" * 16},
    ):
        assert "nonce" in seen(laboratory.training(laboratory.training_run(**edited), attested=genuine))
    assert "another model" in seen(laboratory.training(laboratory.training_run(base=OTHER)))
    assert "model" in seen(laboratory.training(attested=laboratory.attested(run, model=OTHER)))
    other = Build("0.1.0", OTHER)
    changed = laboratory.training_run(harness=other)
    assert "confide-digest" in seen(laboratory.training(changed, attested=laboratory.attested(changed, harness=other)))
    assert "training-harness" in seen(laboratory.training(attested=laboratory.attested(run, harness=other)))
    assert "training-measurement" in seen(laboratory.training(laboratory.training_run(measurement={})))
    assert "training-signature" in seen(laboratory.training(key=Ed25519PrivateKey.generate()))
    assert "training-time" in seen(laboratory.training(finished=NOW + timedelta(days=1)))
    # Evidence and key of a score say nothing about a training.
    score = laboratory.attested(laboratory.run())
    assert "nonce" in seen(laboratory.training(attested=score))


def test_a_certificate_is_as_old_as_it_says(laboratory: Laboratory) -> None:
    assert judged(laboratory, laboratory.trained_on(max_age="5d"), laboratory.training()).passed
    assert not judged(laboratory, laboratory.trained_on(max_age="4d"), laboratory.training()).passed


def test_a_score_of_the_base_is_none_of_what_lies_under_an_adapter(laboratory: Laboratory) -> None:
    """Nor the other way round: what is served has to be what was measured."""
    bare, adapted = laboratory.certificate(), laboratory.certificate(laboratory.run(adapter=ADAPTER))
    for certificate, adapters, ok in (
        (bare, (), True),
        (bare, (ADAPTER,), False),
        (adapted, (ADAPTER,), True),
        (adapted, (), False),
        (adapted, (OTHER,), False),
        (adapted, (ADAPTER, OTHER), False),
    ):
        documents = {SCORES: ScoreCertificate.write_lines([certificate])}
        assert judged(laboratory, laboratory.rule(), adapters=adapters, **documents).passed is ok
    assert not judged(
        laboratory, laboratory.rule(), configuration=None, **{SCORES: ScoreCertificate.write_lines([bare])}
    ).passed


# -- as policies are written -------------------------------------------------------------------------------------------


def test_a_rule_that_believes_anybody_is_none(laboratory: Laboratory) -> None:
    for change in (
        {"signer": ()},
        {"signer": (NoEgress(),)},
        {"signer": (*laboratory.signer, laboratory.rule())},
        {"dataset": "book"},
        {"base": "demo"},
        {"max_age": "soon"},
    ):
        for rule in (laboratory.trained_on, laboratory.not_trained_on):
            with pytest.raises(InvalidPolicy):
                rule(**change)


def test_it_is_written_as_a_table_of_its_own(laboratory: Laboratory) -> None:
    policy = SimulatedPolicy((laboratory.trained_on(), laboratory.not_trained_on(max_age="30d")))
    assert any_policy_from_toml(to_toml(policy)) == policy
    table = (
        'signer = [{{ require = "tdx", mrtd = "{mrtd}" }}, {{ require = "confide-version", sha256 = ["{sha256}"] }}]\n'
    ).format(mrtd=laboratory.code["tdx mrtd"], sha256=HARNESS.digest)
    short = (
        'confide-policy = 1\nkind = "simulated"\n'
        f'[[trained-on]]\ndataset = "{DATASET}"\n{table}'
        f'[[not-trained-on]]\ndataset = "{OTHER}"\nbase = "{MODEL}"\nmax_age = "30d"\n{table}'
    )
    assert any_policy_from_toml(short) == policy
    sentences = "; ".join(asked(policy))
    assert "made from" in sentences
    assert "what nobody knows" in sentences


def test_what_a_rule_leaves_open_is_said(laboratory: Laboratory) -> None:
    rule: dict[str, Any] = {"signer": (Tdx(mrtd=laboratory.code["tdx mrtd"]),)}
    said = list(left_open(Policy((laboratory.trained_on(**rule),))))
    assert "trained-on: no certificate by Intel's hardware passes until min-tcb-evaluation names a number" in said
    assert any(one.startswith("trained-on, who signed: tdx: mrtd is the firmware alone") for one in said)


@pytest.mark.parametrize("rule", ["trained_on", "not_trained_on"])
def test_connecting_needs_a_certificate_of_the_adapter(rule: str, tmp_path: Path) -> None:
    """As /attestation shows it, of the very adapter that the statement names."""
    tee = SimulatedTee.create(tmp_path / "tee", MEASURED)
    today = Laboratory(tee)
    today.collateral = tee.collateral()
    now = datetime.now(UTC)  # not before the collateral is issued
    times = {"started": now, "finished": now}
    policy, trusts = SimulatedPolicy((getattr(today, rule)(),)), {"simulated_root": tmp_path / "tee" / "root.pem"}
    stated = msgspec.structs.replace(STATED, adapters=(ADAPTER,))
    fake = FakeWorkload(Workload(tee, tee.collateral, model_digest=MODEL, configuration=stated))
    data = OTHER if rule == "trained_on" else today.not_trained_on().dataset
    other = today.training(today.training_run(dataset=data), **times)
    with serving(fake) as running:
        for shown in (None, other.write()):
            fake.workload.training = shown
            with pytest.raises(AttestationRefused) as caught:
                confide.connect(running.url, policy=policy, **trusts)
            assert caught.value.checks == (rule.replace("_", "-"),)
        fake.workload.training = today.training(**times).write()
        with confide.connect(running.url, policy=policy, **trusts) as session:
            assert session.result.trusted
        said = httpx.get(f"{running.url}/attestation", params={"nonce": "00" * 32})
        found = Attested.decode(said.content).collateral.documents[TRAINING]
        assert TrainingCertificate.read(found).predicate.adapter == ADAPTER
