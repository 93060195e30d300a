"""GPU evidence as NVIDIA's tools write it."""

import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.claims import RootKind
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.evidence_files import read_evidence
from confide.attest.roots import ProductionRoots
from confide.attest.verifier import Verifier
from confide.errors import MalformedEvidence

from .cases import NOW
from .forged_nvidia import gpu_case


def gpu(**changes: Any) -> dict[str, Any]:
    case = gpu_case()
    return {
        "arch": "HOPPER",
        "nonce": case.evidence.raw[4:36].hex(),
        "evidence": b64encode(case.evidence.raw).decode(),
        "certificate": b64encode(case.collateral.documents["chain"]).decode(),
    } | changes


def test_real_evidence(test_data: Path) -> None:
    data = (test_data / "evidence" / "nvidia" / "hopper_evidence.json").read_bytes()
    evidence, collateral = read_evidence(data)
    claims = Verifier(ProductionRoots()).verify(evidence, collateral, NOW)
    assert claims.root is RootKind.PRODUCTION
    assert claims.identity["driver_version"] == b"590.12"
    assert claims.identity["mode"] == b"protected-pcie"
    assert claims.report_data.hex() == json.loads(data)[0]["nonce"]


def test_evidence_and_tokens_are_told_apart() -> None:
    for bundle in (b' [["JWT", "x"], {}]', b'[ ["JWT", "x"], {}]'):
        assert read_evidence(bundle)[0] == Evidence(Family.TOKEN, bundle)
    with pytest.raises(MalformedEvidence, match="leave --family out"):
        read_evidence(json.dumps([gpu()]).encode(), Family.TDX)
    evidence, _ = read_evidence(json.dumps([gpu()]).encode())
    case = gpu_case()
    assert Verifier(case.roots).verify(evidence, Collateral(), case.now) == case.verify()


@pytest.mark.parametrize(
    "items",
    [
        [],
        [1],
        [gpu(), gpu()],
        [gpu(evidence="!")],
        [gpu(certificate="\u00e9")],
        [gpu(evidence=5)],
        [gpu(nonce="00" * 32)],
        [gpu(nonce="zz")],
        [gpu(evidence="")],
        [{}],
    ],
)
def test_what_is_no_evidence(items: list[Any]) -> None:
    with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
        read_evidence(json.dumps(items).encode())


@pytest.mark.parametrize("data", [b"[", b"[" * 100_000, b"[{}" + b" " * (1 << 20) + b"]", b"[\xff]"])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
        read_evidence(data)


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 300))
def test_noise(noise: bytes, at: int) -> None:
    data = json.dumps([gpu()]).encode()
    for changed in (b"[" + noise, data[:at] + noise + data[at:]):
        try:
            read_evidence(changed)
        except MalformedEvidence:
            continue
