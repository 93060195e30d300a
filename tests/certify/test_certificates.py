"""Certificates as they travel, and the verdict on them: what is signed, by whom, when, and for which run."""

import base64
import json
from datetime import UTC, datetime, timedelta
from typing import Any

import msgspec
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from securesystemslib.dsse import Envelope
from securesystemslib.signer import SSlibKey
from tests.certify.certificates import ADAPTER, DATASET, HARNESS, KEY, MEASURED, MODEL, NONCE, Laboratory
from tests.owners import OWNER, STRANGER

from confide.attest.certificates import MAX_CERTIFICATE_BYTES, MAX_CERTIFICATES, AnyCertificate, Approval, Role
from confide.attest.collateral_files import gather
from confide.attest.configuration import Build
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.requirements import AnyOf, NoEgress, Sgx, Tdx
from confide.attest.scores import (
    SCORES,
    Metric,
    ScoreCertificate,
)
from confide.attest.training import TRAINING, Lora, TrainingCertificate
from confide.certify.verify import verify_certificate
from confide.errors import InvalidPolicy, MalformedScore, MalformedTraining

LATER = MEASURED + timedelta(days=20 * 365)


def failed(laboratory: Laboratory, certificate: AnyCertificate, **options: Any) -> list[str]:
    """The codes of the checks that fail, for whoever accepts this laboratory."""
    result = verify_certificate(certificate, laboratory.verifier, laboratory.policy, LATER, **options)
    assert result.verified is not bool(result.failures)
    return [check.code for check in result.failures]


def test_a_certificate_verifies_years_after_its_collateral_has_expired(laboratory: Laboratory) -> None:
    certificate = ScoreCertificate.read(laboratory.certificate().write())
    result = verify_certificate(
        certificate, laboratory.verifier, laboratory.policy, LATER, model=MODEL, dataset=DATASET, nonce=NONCE
    )
    assert result.verified
    assert result.simulated
    assert "SIMULATED" in result.verdict()
    assert {"nonce", "model", "mrtd", "score-signature", "score-nonce"} <= {check.code for check in result.checks}
    assert all(check.clause for check in result.checks if check.code.startswith("score-"))


def test_for_another_time_the_evidence_has_to_hold_then(laboratory: Laboratory) -> None:
    certificate = laboratory.certificate()
    assert failed(laboratory, certificate, at=MEASURED + timedelta(days=10)) == []
    assert failed(laboratory, certificate, at=LATER)[0] == "outside-validity"


def test_a_time_that_the_evidence_cannot_be_of_is_refused(laboratory: Laboratory) -> None:
    """Whoever signs says when; the collateral's validity bounds it, and nobody has measured tomorrow."""
    for finished in (MEASURED - timedelta(days=3), MEASURED + timedelta(days=60)):
        certificate = laboratory.certificate(started=finished, finished=finished)
        assert failed(laboratory, certificate)[0] == "outside-validity"
    early = verify_certificate(
        laboratory.certificate(), laboratory.verifier, laboratory.policy, MEASURED - timedelta(hours=1)
    )
    assert [check.code for check in early.failures] == ["score-time"]
    assert failed(laboratory, laboratory.certificate(started=MEASURED + timedelta(seconds=1))) == ["score-time"]


# -- who may have signed -----------------------------------------------------------------------------------------------


def test_a_key_that_the_evidence_does_not_name_signs_nothing(laboratory: Laboratory) -> None:
    forged = laboratory.certificate(key=Ed25519PrivateKey.generate())
    assert failed(laboratory, forged) == ["score-signature"]


def test_one_changed_byte_breaks_the_signature(laboratory: Laboratory) -> None:
    envelope = json.loads(laboratory.certificate().write())
    payload = base64.b64decode(envelope["payload"]).replace(b'"value":50.0', b'"value":10.0')
    changed = ScoreCertificate.read(json.dumps(envelope | {"payload": base64.b64encode(payload).decode()}).encode())
    assert changed.predicate.score.value == 10
    assert failed(laboratory, changed) == ["score-signature"]


def test_a_statement_that_the_hardware_did_not_sign_names_no_key(laboratory: Laboratory) -> None:
    """The host's own key in a copy of genuine evidence."""
    own = Ed25519PrivateKey.generate()
    genuine = laboratory.attested(laboratory.run())
    said = laboratory.attested(laboratory.run(), key=own).statement
    copied = msgspec.structs.replace(genuine, statement=said)
    assert "nonce" in failed(laboratory, laboratory.certificate(key=own, attested=copied))


def test_nobody_is_believed_by_their_own_word(laboratory: Laboratory) -> None:
    certificate = laboratory.certificate()
    mine = Tdx(mrtd=laboratory.code["tdx mrtd"])
    for policy in (SimulatedPolicy(), SimulatedPolicy((NoEgress(),)), SimulatedPolicy((AnyOf((mine, NoEgress())),))):
        with pytest.raises(InvalidPolicy, match="name its measurements"):
            verify_certificate(certificate, laboratory.verifier, policy, LATER)
    asks = SimulatedPolicy((mine, laboratory.rule()))
    with pytest.raises(InvalidPolicy, match="served"):
        verify_certificate(certificate, laboratory.verifier, asks, LATER)
    for other in (Tdx(mrtd="11" * 48), Sgx(mrenclave="11" * 32)):
        result = verify_certificate(certificate, laboratory.verifier, SimulatedPolicy((other,)), LATER)
        assert {check.code for check in result.failures} <= {"mrtd", "family"}
        assert not result.verified


def test_a_simulated_machine_satisfies_no_policy_for_production(laboratory: Laboratory) -> None:
    result = verify_certificate(laboratory.certificate(), laboratory.verifier, Policy(laboratory.signer), LATER)
    assert "root" in {check.code for check in result.failures}


def test_collateral_that_whoever_measured_chose_is_no_newest_one(laboratory: Laboratory) -> None:
    """On real hardware a policy names the evaluation; else old collateral could call an old platform current."""
    result = verify_certificate(laboratory.certificate(), laboratory.verifier, Policy(laboratory.signer), LATER)
    assert "tcb-evaluation" in {check.code for check in result.failures}


# -- for what ----------------------------------------------------------------------------------------------------------


def test_evidence_of_another_run_is_refused(laboratory: Laboratory) -> None:
    """A score that is replayed: genuine evidence, and a key that signs what it was not made for."""
    for other in ({"model": "11" * 32}, {"dataset": "11" * 32}, {"nonce": "11" * 32}, {"metric": Metric.ACCURACY}):
        replayed = laboratory.certificate(laboratory.run(**other), attested=laboratory.attested(laboratory.run()))
        assert "nonce" in failed(laboratory, replayed)


def test_a_certificate_for_another_order_is_refused(laboratory: Laboratory) -> None:
    certificate = laboratory.certificate()
    for name, code in (("model", "score-model"), ("dataset", "score-dataset"), ("nonce", "score-nonce")):
        assert failed(laboratory, certificate, **{name: "11" * 32}) == [code]


def test_the_model_stands_in_the_attested_statement_too(laboratory: Laboratory) -> None:
    attested = laboratory.attested(laboratory.run(), model="11" * 32)
    assert failed(laboratory, laboratory.certificate(attested=attested)) == ["model"]


def test_a_changed_harness_is_refused(laboratory: Laboratory) -> None:
    other = Build("0.1.0", "11" * 32)
    run = laboratory.run(harness=other)
    says_the_old = laboratory.certificate(attested=laboratory.attested(laboratory.run(), harness=other))
    assert failed(laboratory, says_the_old) == ["confide-digest", "score-harness"]
    lies_inside = laboratory.certificate(run, attested=laboratory.attested(run, harness=HARNESS))
    assert failed(laboratory, lies_inside) == ["score-harness"]
    honest = laboratory.certificate(run, attested=laboratory.attested(run, harness=other))
    assert failed(laboratory, honest) == ["confide-digest"]


def test_the_measurement_that_was_approved_is_the_hardware_s(laboratory: Laboratory) -> None:
    run = laboratory.run(measurement={**laboratory.code, "tdx rtmr1": "11" * 48})
    assert failed(laboratory, laboratory.certificate(run)) == ["score-measurement"]
    assert failed(laboratory, laboratory.certificate(laboratory.run(measurement={}))) == ["score-measurement"]


# -- approvals ---------------------------------------------------------------------------------------------------------


def approvals(laboratory: Laboratory, **changes: Any) -> tuple[Approval, ...]:
    run = laboratory.run(**changes)
    signers = ((Role.MODEL, OWNER), (Role.DATA, STRANGER))
    return tuple(Approval(role, str(one.public), one.sign(run.approval(role)).hex()) for role, one in signers)


def test_approvals_are_both_owners_and_of_this_run(laboratory: Laboratory) -> None:
    both = approvals(laboratory)
    blind = laboratory.certificate(approvals=both)
    assert failed(laboratory, blind) == []
    assert blind.approved_by(Role.DATA) == str(STRANGER.public)
    swapped = tuple(
        msgspec.structs.replace(one, role=other.role) for one, other in zip(both, reversed(both), strict=True)
    )
    for some in (both[:1], both[1:], (both[0], both[0]), swapped, approvals(laboratory, nonce="11" * 32)):
        assert failed(laboratory, laboratory.certificate(approvals=some)) == ["score-approvals"]
    assert laboratory.certificate(approvals=swapped).approved_by(Role.DATA) is None
    assert laboratory.certificate().approved_by(Role.DATA) is None


# -- the form ----------------------------------------------------------------------------------------------------------


def test_it_is_an_envelope_and_a_statement_as_others_read_them(laboratory: Laboratory) -> None:
    """securesystemslib, the in-toto project's own library, finds the same bytes signed and the signature good."""
    written = laboratory.certificate().write()
    envelope = Envelope.from_dict(json.loads(written))
    key_id = json.loads(written)["signatures"][0]["keyid"]
    public = {"public": KEY.public_key().public_bytes_raw().hex()}
    key = SSlibKey(key_id, "ed25519", "ed25519", public)
    assert envelope.verify([key], 1) == {key_id: key}
    statement = json.loads(envelope.payload)
    assert envelope.payload_type == "application/vnd.in-toto+json"
    assert statement["_type"] == "https://in-toto.io/Statement/v1"
    assert statement["subject"] == [{"name": "demo", "digest": {"confideModel": MODEL}}]
    assert statement["predicateType"] == "urn:confide:score:v1"


def test_members_that_in_toto_may_add_are_left_alone(laboratory: Laboratory) -> None:
    envelope = json.loads(laboratory.certificate().write()) | {"new": 1}
    payload = json.loads(base64.b64decode(envelope["payload"])) | {"new": 1}
    payload["subject"][0]["digest"]["sha256"] = "11" * 32
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    assert ScoreCertificate.read(json.dumps(envelope).encode()).predicate.run.model == MODEL


def changed(laboratory: Laboratory, **members: Any) -> bytes:
    envelope = json.loads(laboratory.certificate().write())
    payload = json.loads(base64.b64decode(envelope["payload"])) | members
    return json.dumps(envelope | {"payload": base64.b64encode(json.dumps(payload).encode()).decode()}).encode()


@pytest.mark.parametrize(
    "members",
    [
        {"_type": "https://in-toto.io/Statement/v0.1"},
        {"predicateType": "https://slsa.dev/provenance/v1"},
        {"predicate": {}},
        {"subject": []},
        {"subject": [{"name": "demo", "digest": {"sha256": MODEL}}]},
        {"subject": [{"name": "demo", "digest": {"confideModel": "11" * 32}}]},
        {"subject": [{"name": "demo", "digest": {"confideModel": MODEL}}] * 2},
    ],
)
def test_other_statements_are_none(laboratory: Laboratory, members: dict[str, Any]) -> None:
    with pytest.raises(MalformedScore):
        ScoreCertificate.read(changed(laboratory, **members))


@pytest.mark.parametrize(
    "members",
    [
        {"payloadType": "application/json"},
        {"signatures": []},
        {"signatures": [{"keyid": "", "sig": "QUFB"}]},
        {"payload": "no base64!"},
        {"payload": base64.b64encode(b"[" * 100_000).decode()},
    ],
)
def test_other_envelopes_are_none(laboratory: Laboratory, members: dict[str, Any]) -> None:
    with pytest.raises(MalformedScore):
        ScoreCertificate.read(json.dumps(json.loads(laboratory.certificate().write()) | members).encode())


@pytest.mark.parametrize("data", [b"", b"{}", b"null", b"[" * 100_000, b" " * (MAX_CERTIFICATE_BYTES + 1), b"\xff"])
def test_other_bytes_are_none(data: bytes) -> None:
    with pytest.raises(MalformedScore):
        ScoreCertificate.read(data)


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+14:00", "9999-12-31T23:59:59-14:00", "1999-12-31T23:59:59Z"])
@pytest.mark.parametrize("name", ["started", "finished"])
def test_times_that_lead_beyond_the_calendar_are_none(laboratory: Laboratory, name: str, time: str) -> None:
    made = laboratory.certificate(**{name: datetime.fromisoformat(time)})
    with pytest.raises(MalformedScore, match="time"):
        ScoreCertificate.read(made.write())


def test_a_document_holds_several_one_to_a_line(laboratory: Laboratory) -> None:
    two = (laboratory.certificate(), laboratory.certificate(value=40))
    document = ScoreCertificate.write_lines(two)
    assert document.count(b"\n") == 2
    assert [one.predicate.score.value for one in ScoreCertificate.read_lines(document)] == [50, 40]
    assert ScoreCertificate.read_lines(b"\n") == ()
    for bad in (document + b"{}\n", document.replace(b"\n", b"\n\n") * MAX_CERTIFICATES, document * MAX_CERTIFICATES):
        with pytest.raises(MalformedScore):
            ScoreCertificate.read_lines(bad)
    with pytest.raises(MalformedScore):
        ScoreCertificate.write_lines([two[0]] * (MAX_CERTIFICATES + 1))


def test_a_run_is_known_by_all_of_it(laboratory: Laboratory) -> None:
    digests = {
        laboratory.run(**change).digest
        for change in (
            {},
            {"model": "11" * 32},
            {"dataset": "11" * 32},
            {"metric": Metric.ACCURACY},
            {"harness": Build("0.1.1", HARNESS.digest)},
            {"measurement": {}},
            {"nonce": "11" * 32},
        )
    }
    assert len(digests) == 7
    assert laboratory.run().approval(Role.MODEL) != laboratory.run().approval(Role.DATA)


def test_the_present_is_given(laboratory: Laboratory) -> None:
    assert verify_certificate(
        laboratory.certificate(), laboratory.verifier, laboratory.policy, datetime.now(UTC)
    ).verified


# -- certificates of trainings, in the same form -----------------------------------------------------------------------


def test_the_files_of_an_adapter_are_subjects_as_others_name_them(laboratory: Laboratory) -> None:
    """By name and SHA-256, as in-toto has it; only the first is ours."""
    made = laboratory.training()
    statement = json.loads(base64.b64decode(json.loads(made.write())["payload"]))
    assert statement["subject"] == [
        {"name": "demo", "digest": {"confideAdapter": ADAPTER}},
        {"name": "adapter_config.json", "digest": {"sha256": "fe" * 32}},
        {"name": "adapter_model.safetensors", "digest": {"sha256": "fe" * 32}},
    ]
    assert statement["predicateType"] == "urn:confide:training:v1"
    read = TrainingCertificate.read(made.write())
    assert (read, read.files) == (made, made.files)
    assert failed(laboratory, made, base=MODEL, dataset=DATASET, adapter=ADAPTER, nonce=NONCE) == []


def test_a_training_that_contradicts_itself_is_none(laboratory: Laboratory) -> None:
    envelope = json.loads(laboratory.training().write())
    statement = json.loads(base64.b64decode(envelope["payload"]))
    adapter, config, weights = statement["subject"]
    for members in (
        {"subject": [adapter, config]},
        {"subject": [adapter, config, config]},
        {"subject": [config, adapter, weights]},
        {"subject": [{"name": "demo", "digest": {"confideAdapter": "11" * 32}}, config, weights]},
        {"subject": [{"name": "demo", "digest": {"sha256": ADAPTER}}, config, weights]},
        {"subject": [adapter, config, {"name": weights["name"], "digest": {"sha512": "fe" * 32}}]},
        {"predicate": statement["predicate"] | {"passed": []}},
        {"predicate": statement["predicate"] | {"passed": [{"check": "size"}]}},
        {"predicateType": "urn:confide:score:v1"},
    ):
        payload = base64.b64encode(json.dumps(statement | members).encode()).decode()
        with pytest.raises(MalformedTraining):
            TrainingCertificate.read(json.dumps(envelope | {"payload": payload}).encode())
    for other in (laboratory.certificate().write(), b"", b"{}", b"[" * 100_000, b" " * (MAX_CERTIFICATE_BYTES + 1)):
        with pytest.raises(MalformedTraining):
            TrainingCertificate.read(other)
    with pytest.raises(MalformedScore):
        ScoreCertificate.read(laboratory.training().write())


def test_a_training_run_is_known_by_all_of_it(laboratory: Laboratory) -> None:
    changes: tuple[dict[str, Any], ...] = (
        {},
        {"base": "11" * 32},
        {"dataset": "11" * 32},
        {"key": "0b" * 16},
        {"lora": Lora(rank=9)},
        {"seed": 8},
        {"checks": ()},
        {"harness": Build("0.1.1", HARNESS.digest)},
        {"measurement": {}},
        {"nonce": "11" * 32},
    )
    assert len({laboratory.training_run(**change).digest for change in changes}) == len(changes)
    run = laboratory.training_run()
    assert run.approval(Role.DATA) not in (run.approval(Role.MODEL), laboratory.run().approval(Role.DATA))


def test_files_of_collateral_may_be_certificates_of_both_kinds(laboratory: Laboratory) -> None:
    both = [laboratory.certificate().write(), laboratory.training().write()]
    found = gather(both).documents
    assert (found[SCORES], found[TRAINING]) == (both[0], both[1])


def test_members_that_in_toto_may_add_to_a_training_are_left_alone(laboratory: Laboratory) -> None:
    envelope = json.loads(laboratory.training().write()) | {"new": 1}
    payload = json.loads(base64.b64decode(envelope["payload"])) | {"new": 1}
    for subject in payload["subject"]:
        subject["digest"]["sha512"] = "11" * 64
    envelope["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    assert TrainingCertificate.read(json.dumps(envelope).encode()).predicate.adapter == ADAPTER
