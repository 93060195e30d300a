"""A model that is served under an adapter: what it says of it, shows for it, and answers."""

import asyncio
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import msgspec
import pytest
from tests.certify.certificates import MODEL_KEY
from tests.certify.test_score import TASK
from tests.certify.test_train import ADAPTER_KEY, CORPUS, Services, described, nobody

from confide.attest.appraise import appraise
from confide.attest.check import Check
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import ByCertificate, NotTrainedOn, ScoreAtLeast, Tdx, TrainedOn
from confide.attest.scores import Metric, ScoreCertificate
from confide.attest.simulated import SimulatedTee
from confide.attest.training import Lora
from confide.attest.verifier import Verifier
from confide.certify.runs import Attester, fresh_nonce
from confide.certify.score import dataset_digest, describe, score
from confide.certify.train import Recipe, Trained, train
from confide.enclave.boot import Loaded, Upstream, examine, load_engine
from confide.enclave.engines.engine import Dtype, EngineSettings
from confide.enclave.workload import Workload
from confide.errors import EngineError, InvalidPackage, SelfTestFailed, SelfTestMissing
from confide.models.adapter import Adapter
from confide.packages.sealed.adapter import SealedAdapter
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.known_answers import KnownAnswers
from confide.packages.sealed.package import SealedPackage, UnlockedPackage

PROMPTS = ("It was the best of times, it was the", "It was the worst of times, it was the age")
LEARNT = Recipe(1, 7, Lora(rank=8, alpha=32, epochs=12, batch=2, context=64, learning_rate=1e-2))
"""Until it knows the text by heart, so that its answers are none of the base's."""


@pytest.fixture(scope="module")
def trained(here: Attester, package: SealedPackage) -> Trained:
    """With known answers: what it learnt."""

    def ask(unlocked: UnlockedPackage, *, adapter: Adapter) -> KnownAnswers | None:
        return examine(unlocked, PROMPTS, adapter)

    run, keys = described(here, package, LEARNT), Services(MODEL_KEY, ADAPTER_KEY)
    return train(here, package, CORPUS, run, keys, examine=ask)


@pytest.fixture(scope="module")
def adapter(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> SealedAdapter:
    out = tmp_path_factory.mktemp("adapter") / "adapter"
    trained.seal(out)
    return SealedAdapter.open(out)


Judge = Callable[[Workload, ByCertificate], Check]


@pytest.fixture
def judge(tee: SimulatedTee) -> Judge:
    """A relying party's check of what a workload shows."""

    def judged(workload: Workload, rule: ByCertificate) -> Check:
        attested = workload.attest("00" * 32)
        collateral, said = attested.collateral.thaw(), attested.statement
        policy, now = SimulatedPolicy((rule,)), datetime.now(UTC)
        evidence = attested.evidence.thaw()
        result = appraise(Verifier(tee.roots()), evidence, collateral, policy, now, statement=said)
        return result.checks[-1]

    return judged


def loaded(package: SealedPackage, adapter: SealedAdapter, workload: Workload) -> Loaded:
    return load_engine(
        package,
        workload,
        Services(MODEL_KEY),
        adapter=adapter,
        fetch_adapter=Services(ADAPTER_KEY),
        settings=EngineSettings(dtype=Dtype.F32),
    )


def test_what_is_served_under_an_adapter_shows_what_it_was_made_from(
    here: Attester, tee: SimulatedTee, package: SealedPackage, adapter: SealedAdapter, judge: Judge
) -> None:
    model, digest = package.manifest.model_digest, adapter.manifest.adapter
    certified = describe(here, model, dataset_digest(TASK), Metric.PERPLEXITY, fresh_nonce(), adapter=digest)
    keys = {"fetch_data": Services(ADAPTER_KEY)}
    of_both = score(here, package, TASK, certified, Services(MODEL_KEY), adapter=adapter, **keys)

    workload = Workload(
        tee, tee.collateral, training=adapter.certificate.write(), scores=ScoreCertificate.write_lines([of_both])
    )
    serving = loaded(package, adapter, workload)
    assert serving.engine.facts.adapters == workload.configuration.adapters == (digest,)
    assert serving.self_test is not None
    asyncio.run(serving.self_test.run())
    assert workload.configuration.self_test.outcome == "passed"

    signer = (Tdx(mrtd=certified.measurement["tdx mrtd"]),)
    own, other = dataset_digest(CORPUS), "11" * 32
    assert judge(workload, TrainedOn(own, signer, base=model)).passed
    assert not judge(workload, TrainedOn(other, signer)).passed
    assert judge(workload, NotTrainedOn(other, model, signer)).passed
    assert not judge(workload, NotTrainedOn(own, model, signer)).passed
    limit = ScoreAtLeast(dataset_digest(TASK), Metric.PERPLEXITY, signer, at_most=1e4)
    assert judge(workload, limit).passed
    # What is served without it is another thing.
    workload.training = None
    assert not judge(workload, TrainedOn(own, signer)).passed
    assert not judge(workload, NotTrainedOn(other, model, signer)).passed


def test_the_base_does_not_give_the_answers_of_the_adapter(
    tee: SimulatedTee, package: SealedPackage, adapter: SealedAdapter, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.models.adapter.Adapter.merge_into", lambda self, model: model)
    workload = Workload(tee, tee.collateral)
    serving = loaded(package, adapter, workload)
    assert serving.self_test is not None
    with pytest.raises(SelfTestFailed):
        asyncio.run(serving.self_test.run())


def test_owners_see_what_will_be_laid_over_before_a_key_leaves(
    tee: SimulatedTee, package: SealedPackage, adapter: SealedAdapter
) -> None:
    seen: list[tuple[str, ...]] = []

    class Looks(Services):
        def __call__(self, identity: str, workload: Workload) -> ModelKey:
            seen.append(workload.configuration.adapters)
            return super().__call__(identity, workload)

    load_engine(
        package, Workload(tee, tee.collateral), Looks(MODEL_KEY), adapter=adapter, fetch_adapter=Looks(ADAPTER_KEY)
    )
    assert seen == [(adapter.manifest.adapter,)] * 2


def test_what_is_not_laid_over_is_said_before_a_key_is_asked_for(
    here: Attester, tee: SimulatedTee, package: SealedPackage, adapter: SealedAdapter, trained: Trained, tmp_path: Path
) -> None:
    workload = Workload(tee, tee.collateral)
    unexamined = replace(trained, known_answers=None)
    unexamined.seal(tmp_path / "unexamined")
    with pytest.raises(SelfTestMissing):
        load_engine(package, workload, nobody, adapter=SealedAdapter.open(tmp_path / "unexamined"))
    with pytest.raises(EngineError, match="Another program"):
        load_engine(package, workload, nobody, adapter=adapter, upstream=Upstream("http://127.0.0.1:8000", "m", 64))
    elsewhere = replace(adapter, manifest=msgspec.structs.replace(adapter.manifest, base="11" * 32))
    with pytest.raises(InvalidPackage, match="give its base"):
        load_engine(package, workload, nobody, adapter=elsewhere)
