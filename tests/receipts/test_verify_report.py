"""A gateway's attestation report: ACI's byte vectors, simulated evidence, and everything that may be wrong with one."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.receipts import vectors
from tests.receipts.test_verify import NONCE, NOW, Scene

from confide.attest.check import Outcome
from confide.attest.collateral import Collateral
from confide.attest.policy import SimulatedPolicy
from confide.attest.strict import strict_policy
from confide.attest.verifier import Verifier
from confide.errors import MalformedReceipt
from confide.receipts.keyset import make_keyset, report_data
from confide.receipts.report import Report, write_report
from confide.receipts.verify_report import MOST_DAYS, Channel, ReportResult, verify_report

SPKI = "c0" * 32


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    scene = Scene(tmp_path_factory.mktemp("scene") / "tee")
    scene.keyset = make_keyset(scene.key.id, scene.key.public, int(NOW.timestamp()) + 1000, SPKI)
    return scene


@pytest.fixture(scope="module")
def measured(scene: Scene) -> SimulatedPolicy:
    """A policy that names the code which the simulated machine runs."""
    claims = scene.verifier.verify(scene.tee.read(bytes(64)), scene.tee.collateral(), NOW)
    policy = strict_policy(claims)
    assert isinstance(policy, SimulatedPolicy)
    return policy


def report_of(
    scene: Scene, nonce: str | None = NONCE, change: Callable[[dict[str, Any]], None] = lambda _: None
) -> Report:
    data = report_data(scene.keyset.digest, nonce)
    document = json.loads(write_report(scene.keyset, data, scene.tee.read(data), scene.tee.collateral()))
    change(document)
    return Report.read(json.dumps(document).encode())


def verified(scene: Scene, report: Report, policy: SimulatedPolicy, **more: Any) -> ReportResult:
    given: dict[str, Any] = {"nonce": NONCE, "collateral": scene.tee.collateral(), "now": NOW, **more}
    now = given.pop("now")
    return verify_report(report, scene.verifier, policy, now, **given)


def outcomes(result: ReportResult) -> dict[str, Outcome]:
    return {one.code: one.outcome for one in result.checks}


def failed(result: ReportResult) -> set[str]:
    return {one.code for one in result.failures}


def test_everything_at_hand(scene: Scene, measured: SimulatedPolicy) -> None:
    result = verified(scene, report_of(scene), measured, channel=Channel("models.example", SPKI))
    assert result.verified, result.verdict()
    assert {code for code, outcome in outcomes(result).items() if outcome is not Outcome.PASS} == {"aci-custody"}
    assert result.verdict().startswith("SIMULATED")
    assert all(one.clause.startswith("ACI aci/1, ") for one in result.checks)
    assert result.evidence is not None
    assert result.evidence.checks


def test_what_is_missing_is_skipped_and_never_passed(scene: Scene, measured: SimulatedPolicy) -> None:
    plain = verified(scene, report_of(scene), measured)
    assert plain.verified
    assert outcomes(plain)["aci-channel"] is Outcome.SKIPPED
    stale = verified(scene, report_of(scene, None), measured, nonce=None)
    assert outcomes(stale)["aci-nonce"] is Outcome.SKIPPED
    assert outcomes(stale)["aci-binding"] is Outcome.PASS
    assert not stale.verified
    assert not stale.failures
    anybodys = verified(scene, report_of(scene), SimulatedPolicy())
    assert outcomes(anybodys)["aci-provenance"] is Outcome.SKIPPED
    assert not anybodys.verified
    bare = verified(scene, report_of(scene, change=lambda said: said["attestation"].update(evidence={})), measured)
    assert outcomes(bare)["aci-hardware"] is Outcome.SKIPPED
    assert not bare.verified


def _keyset(said: dict[str, Any]) -> None:
    said["attestation"]["workload_keyset"]["not_after"] += 1


def _key(said: dict[str, Any]) -> None:
    said["attestation"]["workload_keyset"]["receipt_signing_keys"][0]["public_key"] = "00" * 32


def _digest(said: dict[str, Any]) -> None:
    said["workload_keyset_digest"] = "sha256:" + "00" * 32


def _data(said: dict[str, Any]) -> None:
    said["attestation"]["report_data"] = "00" * 32


@pytest.mark.parametrize(
    ("change", "codes"),
    [
        (_keyset, {"aci-keyset", "aci-binding", "aci-nonce", "aci-hardware", "aci-provenance"}),
        (_key, {"aci-keyset", "aci-binding", "aci-nonce", "aci-hardware", "aci-provenance"}),
        (_digest, {"aci-keyset"}),
        (_data, {"aci-binding", "aci-nonce"}),
    ],
)
def test_a_report_that_was_changed(
    scene: Scene, measured: SimulatedPolicy, change: Callable[[dict[str, Any]], None], codes: set[str]
) -> None:
    assert failed(verified(scene, report_of(scene, change=change), measured)) == codes


def test_keys_beside_a_quote_that_binds_others(scene: Scene, measured: SimulatedPolicy) -> None:
    other = make_keyset(scene.key.id, bytes(32), int(NOW.timestamp()) + 1000, SPKI)
    mine, data = report_data(other.digest, NONCE), report_data(scene.keyset.digest, NONCE)
    document = write_report(
        other, mine, scene.tee.read(data), scene.tee.collateral()
    )  # a whole chain but for the quote
    assert failed(verified(scene, Report.read(document), measured)) == {"aci-hardware", "aci-provenance"}


def test_another_nonce_time_root_and_policy(scene: Scene, measured: SimulatedPolicy, tmp_path: Path) -> None:
    unasked = verified(scene, report_of(scene), measured, nonce="cd" * 32)
    assert {"aci-binding", "aci-nonce", "aci-hardware"} <= failed(unasked)
    end = datetime.fromtimestamp(scene.keyset.fields.not_after, UTC)
    assert "aci-expiry" in failed(verified(scene, report_of(scene), measured, now=end))
    assert "aci-expiry" not in failed(verified(scene, report_of(scene), measured, now=end - timedelta(seconds=1)))
    other = Scene(tmp_path / "other")
    refused = verify_report(report_of(scene), other.verifier, measured, NOW, nonce=NONCE)
    assert "aci-hardware" in failed(refused)
    without = verified(scene, report_of(scene), measured, collateral=Collateral())
    assert "aci-hardware" in failed(without)
    own = verified(scene, report_of(scene), SimulatedPolicy(), collateral=None)  # of the gateway's choice, maybe old
    assert "aci-hardware" in failed(own)


def test_a_keyset_that_is_good_for_ever_is_implausible(scene: Scene, measured: SimulatedPolicy) -> None:
    at = int(NOW.timestamp())
    before = scene.keyset
    for days, bad in ((MOST_DAYS, False), (MOST_DAYS + 1, True)):
        scene.keyset = make_keyset(scene.key.id, scene.key.public, at + days * 86_400, SPKI)
        assert ("aci-lifetime" in failed(verified(scene, report_of(scene), measured))) is bad
    scene.keyset = before


@pytest.mark.parametrize(
    ("keys", "channel", "outcome"),
    [
        ([{"spki_sha256": SPKI}], Channel("any.example", SPKI), Outcome.PASS),
        ([{"spki_sha256": SPKI, "domain": "models.example"}], Channel("MODELS.example", SPKI), Outcome.PASS),
        ([{"spki_sha256": SPKI, "domain": "models.example"}], Channel("other.example", SPKI), Outcome.FAIL),
        ([{"spki_sha256": SPKI}], Channel("any.example", "11" * 32), Outcome.FAIL),
        ([], Channel("any.example", SPKI), Outcome.SKIPPED),
        ([{"spki_sha256": SPKI}], None, Outcome.SKIPPED),
    ],
    ids=range(6),
)
def test_the_channel(
    scene: Scene, measured: SimulatedPolicy, keys: list[Any], channel: Channel | None, outcome: Outcome
) -> None:
    def change(said: dict[str, Any]) -> None:
        said["attestation"]["workload_keyset"]["tls_public_keys"] = keys

    result = verified(scene, report_of(scene, change=change), measured, channel=channel)
    assert outcomes(result)["aci-channel"] is outcome


# -- ACI's byte vectors ------------------------------------------------------------------------------------------


def vector(nonce: str | None = vectors.NONCE, **changes: Any) -> ReportResult:
    said = {
        "tee_type": "other",
        "workload_keyset": vectors.KEYSET,
        "report_data": vectors.REPORT_DATA if nonce else vectors.REPORT_DATA_WITHOUT_NONCE,
        "source_provenance": {"repo_url": "https://code.example", "repo_commit": "abc", "image_provenance": {"x": 1}},
        "evidence": {},
    }
    document = {"api_version": "aci/1", "workload_keyset_digest": vectors.KEYSET_DIGEST, "attestation": said | changes}
    scene_free = Verifier.__new__(Verifier)  # nothing of this evidence is verified
    at = datetime.fromtimestamp(vectors.KEYSET["not_after"] - 1, UTC)  # type: ignore[operator]
    return verify_report(Report.read(json.dumps(document).encode()), scene_free, SimulatedPolicy(), at, nonce=nonce)


def test_the_vectors() -> None:
    found = outcomes(vector())
    for code in ("aci-version", "aci-keyset", "aci-binding", "aci-nonce", "aci-expiry", "aci-lifetime"):
        assert found[code] is Outcome.PASS, code
    assert found["aci-hardware"] is found["aci-subject"] is Outcome.SKIPPED
    assert not vector().verified
    assert "https://code.example abc" in next(one.seen for one in vector().checks if one.code == "aci-provenance")
    without = outcomes(vector(None))
    assert without["aci-binding"] is Outcome.PASS
    assert without["aci-nonce"] is Outcome.SKIPPED
    changed = vectors.KEYSET | {"not_after": 1_800_000_001}
    assert {"aci-keyset", "aci-binding", "aci-nonce"} == failed(vector(workload_keyset=changed))
    assert failed(vector(report_data=vectors.REPORT_DATA_WITHOUT_NONCE)) == {"aci-binding", "aci-nonce"}


@pytest.mark.parametrize(
    "changes",
    [
        {"report_data": vectors.REPORT_DATA.upper()},
        {"report_data": vectors.REPORT_DATA + "00" * 32},
        {"source_provenance": {"repo_url": "x" * 2000}},
        {"workload_keyset": vectors.KEYSET | {"tls_public_keys": [{"spki_sha256": "x"}]}},
        {"workload_keyset": vectors.KEYSET | {"not_after": "soon"}},
    ],
    ids=range(5),
)
def test_what_is_no_report(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedReceipt):
        vector(**changes)
