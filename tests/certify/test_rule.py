"""A policy that requires a score of the model served: who is believed, for which model, on which task."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.attest.made_up import tdx_claims
from tests.certify.certificates import DATASET, HARNESS, MEASURED, MODEL, Laboratory
from tests.certify.test_certificates import approvals
from tests.client.workload import FakeWorkload, serving
from tests.owners import OWNER, STRANGER

import confide
from confide.attest.appraise import appraise_certificate
from confide.attest.bundle import Bundle, freeze
from confide.attest.certificates import MAX_CERTIFICATES
from confide.attest.check import Check
from confide.attest.collateral import Collateral
from confide.attest.collateral_cache import CollateralCache
from confide.attest.collateral_lookup import VendorCollateral
from confide.attest.configuration import Build, Configuration
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Evidence, Family
from confide.attest.evidence_files import read_collateral
from confide.attest.policy import Policy, SimulatedPolicy, appraise
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.policy_words import asked, left_open
from confide.attest.requirements import NoEgress, NotDebug, ScoreAtLeast, Snp, Tdx, all_of, any_of
from confide.attest.result import AttestationResult
from confide.attest.scores import SCORES, Metric, ScoreCertificate
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.attest.statement import Statement
from confide.enclave.workload import Workload
from confide.errors import AttestationRefused, InvalidPolicy, MalformedScore

NOW = MEASURED + timedelta(days=5)
OTHER = "11" * 32


def judged(
    laboratory: Laboratory, rule: ScoreAtLeast, *certificates: ScoreCertificate, model: str = MODEL, **sent: bytes
) -> Check:
    """The check of a rule, for a served model that shows these certificates."""
    said = Statement("00" * 32, model, configuration=Configuration(HARNESS))
    documents = {**laboratory.collateral.documents, SCORES: ScoreCertificate.write_lines(certificates)} | sent
    if not certificates and SCORES not in sent:
        del documents[SCORES]
    evidence = laboratory.tee.quote(said.digest())
    policy = SimulatedPolicy((rule,))
    result = laboratory.verifier.appraise(evidence, Collateral(documents), policy, NOW, statement=said)
    (found,) = [check for check in result.checks if check.code == "score-at-least"]
    assert found.clause
    assert result.trusted is found.passed
    return found


def test_a_model_with_the_score_is_served(laboratory: Laboratory) -> None:
    found = judged(laboratory, laboratory.rule(), laboratory.certificate(value=60))
    assert found.passed
    assert "60 (59 to 61), 2026-02-19" in found.seen


def test_a_missing_certificate_is_a_refused_clause(laboratory: Laboratory) -> None:
    found = judged(laboratory, laboratory.rule())
    assert not found.passed
    assert "no certificate came" in found.seen
    assert not judged(laboratory, laboratory.rule(), scores=b"\n").passed
    assert "malformed-score" in judged(laboratory, laboratory.rule(), scores=b"{}").seen


def test_one_that_satisfies_among_others_is_enough(laboratory: Laboratory) -> None:
    worse, of_another = laboratory.certificate(value=61), laboratory.certificate(laboratory.run(model=OTHER))
    assert judged(laboratory, laboratory.rule(), worse, of_another, laboratory.certificate()).passed
    found = judged(laboratory, laboratory.rule(), worse, of_another)
    assert not found.passed
    assert found.seen == f"61; of another model, {OTHER[:16]}..."


# -- cheating: other weights, other data, a changed harness, a replayed score ------------------------------------------


def test_other_weights_are_refused(laboratory: Laboratory) -> None:
    """A good model was measured, and another one is served."""
    assert not judged(laboratory, laboratory.rule(), laboratory.certificate(), model=OTHER).passed
    measured_other = laboratory.certificate(laboratory.run(model=OTHER))
    assert not judged(laboratory, laboratory.rule(), measured_other).passed
    says_so = laboratory.certificate(attested=laboratory.attested(laboratory.run(), model=OTHER))
    assert "model" in judged(laboratory, laboratory.rule(), says_so).seen


def test_other_data_are_refused(laboratory: Laboratory) -> None:
    """An easier dataset, under the name of the one that is asked for, or with its digest for a name."""
    easier = laboratory.run(dataset=OTHER)
    assert not judged(laboratory, laboratory.rule(), laboratory.certificate(easier)).passed
    assert not judged(laboratory, laboratory.rule(), laboratory.certificate(easier, task=DATASET)).passed
    named = laboratory.rule(task="a book", data_owner=str(STRANGER.public))
    assert not judged(laboratory, named, laboratory.certificate(easier)).passed
    own = approvals(laboratory, dataset=OTHER)
    assert judged(laboratory, named, laboratory.certificate(easier, approvals=own)).passed
    for wrong in (approvals(laboratory), own[:1], own[::-1][1:]):
        assert not judged(laboratory, named, laboratory.certificate(easier, approvals=wrong)).passed
    by_another = laboratory.rule(task="a book", data_owner=str(OWNER.public))
    assert not judged(laboratory, by_another, laboratory.certificate(easier, approvals=own)).passed
    renamed = laboratory.certificate(easier, approvals=own, task="another book")
    assert not judged(laboratory, named, renamed).passed


def test_a_changed_harness_is_refused(laboratory: Laboratory) -> None:
    other = Build("0.1.0", OTHER)
    run = laboratory.run(harness=other)
    honest = laboratory.certificate(run, attested=laboratory.attested(run, harness=other))
    assert "confide-digest" in judged(laboratory, laboratory.rule(), honest).seen
    lies = laboratory.certificate(attested=laboratory.attested(laboratory.run(), harness=other))
    assert "score-harness" in judged(laboratory, laboratory.rule(), lies).seen
    elsewhere = laboratory.rule(signer=(Tdx(mrtd="11" * 48),))
    assert "mrtd" in judged(laboratory, elsewhere, laboratory.certificate()).seen


def test_a_replayed_score_is_refused(laboratory: Laboratory) -> None:
    """Genuine evidence for another run, another model's or another time's, under a score that was not measured then."""
    for other in ({"nonce": OTHER}, {"model": OTHER}, {"dataset": OTHER}):
        replayed = laboratory.certificate(attested=laboratory.attested(laboratory.run(**other)))
        assert "nonce" in judged(laboratory, laboratory.rule(), replayed).seen
    assert (
        "score-signature"
        in judged(laboratory, laboratory.rule(), laboratory.certificate(key=Ed25519PrivateKey.generate())).seen
    )
    assert judged(laboratory, laboratory.rule(max_age="5d"), laboratory.certificate()).passed
    assert not judged(laboratory, laboratory.rule(max_age="4d"), laboratory.certificate()).passed
    tomorrow = laboratory.certificate(finished=NOW + timedelta(days=1))
    assert "score-time" in judged(laboratory, laboratory.rule(max_age="4d"), tomorrow).seen


# -- who is believed ---------------------------------------------------------------------------------------------------


def test_another_machine_s_certificate_is_refused(laboratory: Laboratory, tmp_path: Path) -> None:
    """By its own root, which is not the one that counts here."""
    stranger = Laboratory(SimulatedTee.create(tmp_path / "tee", MEASURED))
    assert stranger.code == laboratory.code
    assert not judged(laboratory, laboratory.rule(), stranger.certificate()).passed


def test_whoever_measured_on_a_machine_that_is_out_of_date_is_refused(laboratory: Laboratory) -> None:
    outdated = Laboratory(laboratory.tee)
    outdated.collateral = laboratory.tee.collateral(Listing(MEASURED, status="OutOfDate"))
    assert "tcb-status" in judged(laboratory, laboratory.rule(), outdated.certificate()).seen


def test_without_somebody_who_appraises_no_certificate_counts(laboratory: Laboratory) -> None:
    said = Statement("00" * 32, MODEL, configuration=Configuration(HARNESS))
    claims = tdx_claims(report_data=said.digest())
    scores = ScoreCertificate.write_lines([laboratory.certificate()])
    found = appraise(claims, Policy((laboratory.rule(),)), NOW, statement=said, scores=scores)
    (check,) = [one for one in found.checks if one.code == "score-at-least"]
    assert not check.passed
    assert "nobody here appraises" in check.seen


def test_a_statement_that_the_hardware_did_not_sign_has_no_model(laboratory: Laboratory) -> None:
    said = Statement("00" * 32, MODEL)
    documents = {**laboratory.collateral.documents, SCORES: ScoreCertificate.write_lines([laboratory.certificate()])}
    for statement in (said, None):
        result = laboratory.verifier.appraise(
            laboratory.tee.quote(bytes(64)), Collateral(documents), SimulatedPolicy((laboratory.rule(),)), NOW,
            statement=statement,
        )  # fmt: skip
        assert "score-at-least" in {check.code for check in result.failures}


# -- metrics and limits ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("value", "passes"), [(0.5, False), (0.75, True), (0.9, True)])
def test_more_is_better_for_shares(laboratory: Laboratory, value: float, passes: bool) -> None:
    rule = laboratory.rule(metric=Metric.ACCURACY, at_most=None, at_least=0.75)
    run = laboratory.run(metric=Metric.ACCURACY)
    certificate = laboratory.certificate(run, value=value, attested=laboratory.attested(run))
    assert judged(laboratory, rule, certificate).passed is passes
    assert not judged(laboratory, rule, laboratory.certificate()).passed  # of perplexity


@pytest.mark.parametrize(
    "changes",
    [
        {"at_most": None},
        {"at_least": 1.0},
        {"at_most": float("nan")},
        {"at_most": float("inf")},
        {"at_most": -1.0},
        {"metric": Metric.ACCURACY},
        {"metric": Metric.AGREEMENT, "at_least": 0.5},
        {"task": ""},
        {"task": "a book"},
        {"task": DATASET.upper()},
        {"data_owner": "11" * 31},
        {"max_age": "soon"},
        {"signer": ()},
        {"signer": (NoEgress(),)},
        {"signer": (Tdx(),)},
        {"signer": (Snp(vmpl=0),)},
        {"signer": (any_of(Tdx(mrtd="11" * 48), NoEgress()),)},
    ],
    ids=str,
)
def test_a_rule_that_believes_anybody_or_asks_for_nothing_is_none(
    laboratory: Laboratory, changes: dict[str, Any]
) -> None:
    with pytest.raises(InvalidPolicy):
        laboratory.rule(**changes)


def test_whoever_measures_needs_no_score(laboratory: Laboratory) -> None:
    nested = all_of(Tdx(mrtd="11" * 48), laboratory.rule())
    with pytest.raises(InvalidPolicy, match="leave it out of score-at-least"):
        laboratory.rule(signer=(nested,))


def test_what_contradicts_an_exception_is_found_in_the_policy(laboratory: Laboratory) -> None:
    strict = laboratory.rule(signer=(Tdx(mrtd="11" * 48), NotDebug()))
    assert SimulatedPolicy((strict,))
    for rules in ((strict,), (any_of(strict, NoEgress()),)):
        with pytest.raises(InvalidPolicy, match="allow-debug"):
            SimulatedPolicy(rules, exceptions=Exceptions(allow_debug=True))


# -- as a file, and in words -------------------------------------------------------------------------------------------

TOML = """confide-policy = 1
kind = "{kind}"

[[score-at-least]]
task = "{task}"
metric = "perplexity"
at_most = 60

  [[score-at-least.signer]]
  require = "tdx"
  mrtd = "{mrtd}"
"""


def test_the_table_of_a_file_is_a_requirement(laboratory: Laboratory) -> None:
    mrtd = laboratory.code["tdx mrtd"]
    policy = any_policy_from_toml(TOML.format(kind="simulated", task=DATASET, mrtd=mrtd))
    assert policy == SimulatedPolicy((laboratory.rule(signer=(Tdx(mrtd=mrtd),)),))
    assert any_policy_from_toml(to_toml(policy)) == policy
    in_a_choice = SimulatedPolicy((any_of(laboratory.rule(), NoEgress()),))
    assert any_policy_from_toml(to_toml(in_a_choice)) == in_a_choice


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("at_most = 60", 'at_most = "60"'),
        ("at_most = 60", "at_most = 60\nat-most = 50"),
        ("at_most = 60", "at_most = nan"),
        ("at_most", "at_least"),
        ('metric = "perplexity"', 'metric = "bleu"'),
        ('metric = "perplexity"\n', ""),
        ('require = "tdx"', 'require = "score-at-least"'),
        ("[[score-at-least]]", "[score-at-least]"),
    ],
    ids=str,
)
def test_a_table_that_is_not_understood_is_no_policy(old: str, new: str) -> None:
    text = TOML.format(kind="production", task=DATASET, mrtd="11" * 48)
    assert any_policy_from_toml(text)
    with pytest.raises(InvalidPolicy):
        any_policy_from_toml(text.replace(old, new))


def test_what_it_asks_for_and_leaves_open_is_said(laboratory: Laboratory) -> None:
    rule = laboratory.rule(signer=(Tdx(mrtd="11" * 48),), data_owner=str(OWNER.public), max_age="90d")
    (sentence,) = [one for one in asked(Policy((rule,))) if "perplexity" in one]
    for words in ("at most 60", DATASET, "90d", str(OWNER.public)[:16], "tdx with this mrtd"):
        assert words in sentence
    opened = [one for one in left_open(Policy((rule,))) if one.startswith("score-at-least")]
    assert any("name rtmrs" in one for one in opened)
    assert any("min-tcb-evaluation" in one for one in opened)
    assert not any("min-tcb-evaluation" in one for one in left_open(SimulatedPolicy((rule,))))


# -- on the way to the user --------------------------------------------------------------------------------------------


def test_certificates_go_along_with_evidence_and_stay_in_a_bundle(laboratory: Laboratory) -> None:
    policy = SimulatedPolicy((laboratory.rule(),))
    scores = ScoreCertificate.write_lines([laboratory.certificate()])
    workload = Workload(laboratory.tee, lambda: laboratory.collateral, model_digest=MODEL, scores=scores)
    shown = workload.attest("00" * 32)
    evidence, collateral = shown.evidence.thaw(), shown.collateral.thaw()
    bundle = freeze(laboratory.verifier, evidence, collateral, policy, NOW, statement=shown.statement)
    assert Bundle.read(bundle.write()).reverify(laboratory.verifier).trusted
    without = replace(collateral, documents=laboratory.collateral.documents)
    assert not freeze(laboratory.verifier, evidence, without, policy, NOW, statement=shown.statement).result.trusted


def test_files_of_certificates_are_told_from_other_collateral(laboratory: Laboratory) -> None:
    one, two = laboratory.certificate(), laboratory.certificate(value=40)
    found = read_collateral([one.write(), laboratory.collateral.documents["dcap"], two.write()])
    assert found.documents[SCORES] == ScoreCertificate.write_lines([one, two])
    assert set(found.documents) == {"dcap", SCORES}


def test_a_verifier_that_fetches_its_own_collateral_keeps_what_is_the_workload_s(tmp_path: Path) -> None:
    source = VendorCollateral(CollateralCache(tmp_path, None))
    sent = Collateral({SCORES: b"scores", "ak": b"a key"})
    found = source.find(Evidence(Family.NITRO, b""), sent)
    assert found.documents == {SCORES: b"scores"}


def test_connecting_needs_a_certificate(laboratory: Laboratory, tmp_path: Path) -> None:
    tee = SimulatedTee.create(tmp_path / "tee", MEASURED)
    today = Laboratory(tee)
    today.collateral = tee.collateral()
    now = datetime.now(UTC)  # not before the collateral is issued
    policy = SimulatedPolicy((today.rule(),))
    times = {"started": now, "finished": now}
    fake = FakeWorkload(Workload(tee, tee.collateral, model_digest=MODEL))
    with serving(fake) as running:
        for scores in (
            None,
            ScoreCertificate.write_lines([laboratory.certificate()]),
            ScoreCertificate.write_lines([today.certificate(value=61, **times)]),
        ):
            fake.workload.scores = scores
            with pytest.raises(AttestationRefused) as caught:
                confide.connect(running.url, policy=policy, simulated_root=tmp_path / "tee" / "root.pem")
            assert caught.value.checks == ("score-at-least",)
            assert not fake.prompts
        fake.workload.scores = ScoreCertificate.write_lines([today.certificate(**times)])
        with confide.connect(running.url, policy=policy, simulated_root=tmp_path / "tee" / "root.pem") as session:
            assert session.result.trusted


def test_only_a_certificate_that_would_do_costs_a_verification(
    laboratory: Laboratory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the model, the task, the time and the score; a host may send as many of others as there is room for."""
    verified: list[ScoreCertificate] = []

    def appraised(*about: Any) -> AttestationResult:
        verified.append(about[2])
        return appraise_certificate(*about)

    monkeypatch.setattr("confide.attest.appraise.appraise_certificate", appraised)
    long_ago = MEASURED - timedelta(days=10)
    others = [
        laboratory.certificate(laboratory.run(model=OTHER)),
        laboratory.certificate(laboratory.run(dataset=OTHER)),
        laboratory.certificate(laboratory.run(metric=Metric.ACCURACY)),
        laboratory.certificate(value=61),
        laboratory.certificate(started=long_ago, finished=long_ago),
    ]
    rule = laboratory.rule(max_age="9d")
    assert not judged(laboratory, rule, *others).passed
    assert verified == []
    assert judged(laboratory, rule, *others, laboratory.certificate()).passed
    assert len(verified) == 1


def test_there_are_no_more_certificates_than_the_most(laboratory: Laboratory) -> None:
    line = laboratory.certificate().write()
    assert len(ScoreCertificate.read_lines(line * MAX_CERTIFICATES)) == MAX_CERTIFICATES
    for document in (line * (MAX_CERTIFICATES + 1), (line * (MAX_CERTIFICATES + 1))[:-1]):
        with pytest.raises(MalformedScore, match="At most"):
            ScoreCertificate.read_lines(document)
