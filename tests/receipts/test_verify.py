"""What verifying a receipt finds, with everything at hand, with something missing, and with something wrong."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec
import pytest
from tests.receipts import vectors

from confide.attest.bundle import Bundle, freeze
from confide.attest.check import Outcome
from confide.attest.collateral import Collateral
from confide.attest.configuration import Build, Configuration, EngineUsed, SamplingDefaults, WeightsHeld
from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.errors import MalformedReceipt
from confide.receipts.documents import digest_of
from confide.receipts.events import chain_event, sampling_event, stated_events
from confide.receipts.keyset import Keyset, make_keyset, report_data
from confide.receipts.receipt import Receipt, ReceiptKey
from confide.receipts.report import Report, write_report
from confide.receipts.session import AttestedSession
from confide.receipts.verify import (
    Grounds,
    ReceiptResult,
    grounds_of_bundle,
    grounds_of_report,
    no_grounds,
    verify_receipt,
)

NOW = datetime.now(UTC) + timedelta(hours=6)  # later than whatever is made for these tests, long after this was read
SERVED = int(NOW.timestamp())
REQUEST, RESPONSE = b'{"model":"m","prompt":"p","temperature":0.5}', b'{"id":"1"}'
CONFIGURATION = Configuration(
    Build("0.1.0", "ee" * 32),
    EngineUsed("fake", "1", {}),
    WeightsHeld("11" * 32, "q8_0", "f32"),
    sampling=SamplingDefaults(1.0, 1.0, 0, 10),
)


class Scene:
    """A simulated workload, a bundle for it, and receipts that it signs."""

    def __init__(self, folder: Path) -> None:
        self.tee = SimulatedTee.create(folder)
        self.verifier = Verifier(self.tee.roots())
        self.key = ReceiptKey()
        self.keyset = make_keyset(self.key.id, self.key.public, SERVED + 1000)
        self.statement = Statement(
            "ab" * 32, "cd" * 32, channel_keys={"aci-keyset": self.keyset.canonical.hex()}, configuration=CONFIGURATION
        )
        self.bundle = self.freeze(self.statement)

    def freeze(self, said: Statement | None, signed: Statement | None = None) -> Bundle:
        evidence = self.tee.read((signed or said or self.statement).digest())
        return freeze(self.verifier, evidence, self.tee.collateral(), SimulatedPolicy(), NOW, statement=said)

    def grounds(self) -> Grounds:
        return grounds_of_bundle(self.bundle, self.verifier)

    def receipt(self, **changes: Any) -> Receipt:
        sampled = sampling_event(REQUEST, SamplingDefaults(1.0, 1.0, 0, 10))
        events = [
            {"type": "request.received", "body_hash": digest_of(REQUEST)},
            {"type": "request.forwarded", "body_hash": digest_of(REQUEST)},
            *([sampled] if sampled else []),
            *stated_events(CONFIGURATION, "cd" * 32),
            chain_event(1, None),
            {"type": "response.returned", "body_hash": digest_of(RESPONSE)},
        ]
        return self.key.sign(
            **{
                "receipt_id": "r",
                "chat_id": None,
                "model": "m",
                "keyset_digest": self.keyset.digest,
                "endpoint": "/v1/completions",
                "method": "POST",
                "served_at": SERVED,
                "events": events,
                **changes,
            }
        )


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("scene") / "tee")


def outcome(result: ReceiptResult, code: str) -> Outcome | None:
    return next((one.outcome for one in result.checks if one.code == code), None)


def failed(result: ReceiptResult) -> set[str]:
    return {one.code for one in result.failures}


def test_everything_at_hand(scene: Scene) -> None:
    first = scene.receipt()
    chained = [*first.fields.event_log[:-2], chain_event(2, first.digest), first.fields.event_log[-1]]
    second = scene.receipt(receipt_id="s", events=chained)
    result = verify_receipt(second, scene.grounds(), request=REQUEST, response=RESPONSE, previous=first)
    assert {one.outcome for one in result.checks} == {Outcome.PASS}
    assert result.verified
    assert result.simulated
    assert result.verdict().startswith("SIMULATED")
    codes = {one.code for one in result.checks}
    assert codes >= {"receipt-weights", "receipt-engine", "receipt-build", "receipt-model", "receipt-sampling"}
    assert all(one.clause for one in result.checks)


def test_what_is_missing_is_skipped_and_never_passed(scene: Scene) -> None:
    result = verify_receipt(scene.receipt(), scene.grounds())
    for code in ("receipt-request", "receipt-response", "receipt-sampling", "receipt-chain"):
        assert outcome(result, code) is Outcome.SKIPPED
    assert result.verified
    bare = verify_receipt(scene.receipt(), no_grounds(), request=REQUEST, response=RESPONSE)
    for code in ("receipt-attestation", "receipt-binding", "receipt-keyset", "receipt-signature", "receipt-weights"):
        assert outcome(bare, code) is Outcome.SKIPPED
    assert not bare.failures
    assert not bare.verified
    assert bare.verdict().startswith("not verified")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"keyset_digest": "sha256:" + "00" * 32}, "receipt-keyset"),
        ({"served_at": SERVED + 1000}, "receipt-expiry"),
        ({"events": []}, "receipt-events"),
    ],
)
def test_what_a_signed_receipt_may_say_wrongly(scene: Scene, change: dict[str, Any], code: str) -> None:
    result = verify_receipt(scene.receipt(**change), scene.grounds())
    assert code in failed(result)
    assert not result.verified


@pytest.mark.parametrize("kind", ["build", "engine", "weights", "model", "adapters", "sampling"])
def test_an_event_that_the_statement_does_not_confirm(scene: Scene, kind: str) -> None:
    events = [
        {name: "other" if name != "type" else value for name, value in event.items()}
        if event["type"] == f"confide.{kind}"
        else event
        for event in scene.receipt().fields.event_log
    ]
    if kind == "adapters":
        events.insert(2, {"type": "confide.adapters", "names": ["spy"]})
    result = verify_receipt(scene.receipt(events=events), scene.grounds(), request=REQUEST)
    assert failed(result) == {f"receipt-{kind}"}


def test_an_event_left_out(scene: Scene) -> None:
    events = [event for event in scene.receipt().fields.event_log if event["type"] != "confide.weights"]
    assert failed(verify_receipt(scene.receipt(events=events), scene.grounds())) == {"receipt-weights"}


def test_another_key(scene: Scene) -> None:
    other = ReceiptKey()
    document = dict(scene.receipt().document)
    forged = other.sign(
        receipt_id="r",
        chat_id=None,
        model="m",
        keyset_digest=scene.keyset.digest,
        endpoint="/v1/completions",
        method="POST",
        served_at=SERVED,
        events=document["event_log"],
    )
    assert failed(verify_receipt(forged, scene.grounds())) == {"receipt-signature"}
    named = Receipt.of(dict(forged.document) | {"key_id": scene.key.id})
    assert failed(verify_receipt(named, scene.grounds())) == {"receipt-signature"}


def test_other_bytes(scene: Scene) -> None:
    result = verify_receipt(scene.receipt(), scene.grounds(), request=REQUEST + b" ", response=RESPONSE[:-1])
    assert {"receipt-request", "receipt-response"} <= failed(result)
    two = [*scene.receipt().fields.event_log, {"type": "response.returned", "body_hash": digest_of(b"x")}]
    result = verify_receipt(scene.receipt(events=two), scene.grounds(), response=RESPONSE)
    assert {"receipt-response", "receipt-events"} <= failed(result)


def test_a_statement_that_the_hardware_did_not_sign_says_nothing(scene: Scene) -> None:
    forger = ReceiptKey()
    keys = {"aci-keyset": make_keyset(forger.id, forger.public, SERVED + 1000).canonical.hex()}
    bundle = scene.freeze(msgspec.structs.replace(scene.statement, channel_keys=keys), signed=scene.statement)
    grounds = grounds_of_bundle(bundle, scene.verifier)
    assert grounds.keyset is None
    assert grounds.statement is None
    result = verify_receipt(scene.receipt(), grounds)
    assert "receipt-binding" in failed(result)
    assert outcome(result, "receipt-signature") is Outcome.SKIPPED


def test_evidence_that_is_refused(scene: Scene, tmp_path: Path) -> None:
    other = Verifier(SimulatedTee.create(tmp_path / "other").roots())
    result = verify_receipt(scene.receipt(), grounds_of_bundle(scene.bundle, other))
    assert {"receipt-attestation", "receipt-binding"} <= failed(result)
    late = grounds_of_bundle(scene.bundle, scene.verifier, now=datetime(2050, 1, 1, tzinfo=UTC))
    assert "receipt-attestation" in failed(verify_receipt(scene.receipt(), late))


def test_a_bundle_of_a_workload_without_receipts(scene: Scene) -> None:
    for said in (Statement("ab" * 32), None):
        grounds = grounds_of_bundle(scene.freeze(said), scene.verifier)
        assert failed(verify_receipt(scene.receipt(), grounds)) == {"receipt-binding"}
    odd = scene.freeze(Statement("ab" * 32, channel_keys={"aci-keyset": "00"}))
    with pytest.raises(MalformedReceipt):
        grounds_of_bundle(odd, scene.verifier)


# -- reports -----------------------------------------------------------------------------------------------------

NONCE = "ab" * 32


def report_of(
    scene: Scene, change: Callable[[dict[str, Any]], None] = lambda _: None, nonce: str | None = NONCE
) -> Report:
    data = report_data(scene.keyset.digest, nonce)
    document = json.loads(write_report(scene.keyset, data, scene.tee.read(data), scene.tee.collateral()))
    change(document)
    return Report.read(json.dumps(document).encode())


def by_report(scene: Scene, report: Report, **more: Any) -> ReceiptResult:
    grounds = grounds_of_report(
        report, scene.verifier, SimulatedPolicy(), NOW, **{"nonce": NONCE, "collateral": scene.tee.collateral(), **more}
    )
    return verify_receipt(scene.receipt(), grounds, request=REQUEST, response=RESPONSE)


def test_a_report(scene: Scene) -> None:
    assert by_report(scene, report_of(scene)).verified
    assert by_report(scene, report_of(scene, nonce=None), nonce=None).verified
    own = by_report(scene, report_of(scene), collateral=None)  # collateral of the workload's choice may be an old one
    assert failed(own) == {"receipt-attestation"}
    attested = next(one for one in own.checks if one.code == "receipt-attestation")
    assert "tcb-evaluation" in attested.seen


def _keyset(report: dict[str, Any]) -> None:
    report["attestation"]["workload_keyset"]["not_after"] += 1


def _digest(report: dict[str, Any]) -> None:
    report["workload_keyset_digest"] = "sha256:" + "00" * 32


def _data(report: dict[str, Any]) -> None:
    report["attestation"]["report_data"] = "00" * 32


def _quote_alone(report: dict[str, Any]) -> None:
    del report["attestation"]["evidence"]["confide"]


def _nothing(report: dict[str, Any]) -> None:
    report["attestation"]["evidence"] = {"quote": "x"}


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (_keyset, {"receipt-attestation", "receipt-binding", "receipt-report", "receipt-keyset"}),
        (_digest, {"receipt-report"}),
        (_data, {"receipt-binding"}),
    ],
)
def test_a_report_that_was_changed(scene: Scene, change: Callable[[dict[str, Any]], None], codes: set[str]) -> None:
    assert failed(by_report(scene, report_of(scene, change))) == codes


def test_a_report_for_another_nonce(scene: Scene) -> None:
    assert failed(by_report(scene, report_of(scene), nonce="cd" * 32)) == {"receipt-attestation", "receipt-binding"}
    assert failed(by_report(scene, report_of(scene), nonce=None)) == {"receipt-attestation", "receipt-binding"}


def test_a_quote_as_other_gateways_send_it(scene: Scene) -> None:
    report = report_of(scene, _quote_alone)
    assert by_report(scene, report).verified
    assert "receipt-attestation" in failed(by_report(scene, report, collateral=Collateral()))
    result = by_report(scene, report_of(scene, _nothing))
    assert outcome(result, "receipt-attestation") is Outcome.SKIPPED
    assert not result.verified


# -- other gateways ----------------------------------------------------------------------------------------------


def of_gateway(pinned: str = vectors.KEYSET_DIGEST, **more: Any) -> ReceiptResult:
    keyset = Keyset.read(json.dumps(vectors.KEYSET).encode())
    receipt = Receipt.read(json.dumps(vectors.RECEIPT | more.pop("receipt", {})).encode())
    grounds = Grounds(keyset, no_grounds().checks, pinned=pinned, aggregator=True)
    return verify_receipt(receipt, grounds, **{"request": vectors.REQUEST, "response": vectors.RESPONSE, **more})


def test_a_gateways_receipt() -> None:
    session = AttestedSession.read(json.dumps(vectors.SESSION).encode())
    assert session.id == vectors.SESSION_ID
    result = of_gateway(session=session)
    assert result.verified
    assert outcome(result, "receipt-session") is Outcome.PASS
    assert outcome(result, "receipt-session-evidence") is Outcome.SKIPPED
    assert not of_gateway("").verified
    assert failed(of_gateway("sha256:" + "00" * 32)) == {"receipt-keyset"}


def test_a_gateways_receipt_without_its_upstream() -> None:
    events = [event for event in vectors.RECEIPT["event_log"] if event["type"] != "upstream.verified"]  # type: ignore[attr-defined]
    assert "receipt-upstream" in failed(of_gateway(receipt={"event_log": events}))
    for change in ({"result": "failed"}, {"required": False}, {"required": 1}):
        events = [event | change if "result" in event else event for event in vectors.RECEIPT["event_log"]]  # type: ignore[attr-defined]
        assert "receipt-upstream" in failed(of_gateway(receipt={"event_log": events}))


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"upstream_name": "other"}, "receipt-session"),
        ({"expires_at": 1}, "receipt-session-time"),
        ({"claims": {}}, "receipt-session-tee"),
        ({"claims": {"tee_attested": {"status": "asserted", "source": "operator_asserted"}}}, "receipt-session-tee"),
    ],
)
def test_another_session(change: dict[str, Any], code: str) -> None:
    session = AttestedSession.read(json.dumps(vectors.SESSION | change).encode())
    assert {code, "receipt-session"} <= failed(of_gateway(session=session))


def test_a_session_with_other_evidence() -> None:
    evidence = {"digest": "sha256:" + "00" * 32, "data": "data:text/plain;base64,ZXhhbXBsZS1ldmlkZW5jZQ=="}
    for change in (evidence, {"digest": evidence["digest"], "data": "data:text/plain;base64,!"}):
        with pytest.raises(MalformedReceipt):
            AttestedSession.read(json.dumps(vectors.SESSION | {"evidence": change}).encode())


def test_a_rewrite_is_shown_and_left_to_whoever_asks() -> None:
    events = [dict(event) for event in vectors.RECEIPT["event_log"]]  # type: ignore[attr-defined]
    events[1]["body_hash"] = vectors.RESPONSE_HASH
    assert outcome(of_gateway(receipt={"event_log": events}), "receipt-rewrite") is Outcome.SKIPPED
