"""Azure's confidential machines: the TPM's key is bound to the processor's evidence, or nothing is believed."""

import base64
import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attest.families.conftest import Case as DcapCase

from confide.attest.claims import RootKind
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.evidence_files import read_evidence
from confide.attest.families.azure import MAX_HCL_BYTES, HclReport
from confide.attest.families.dcap_signature import parse
from confide.attest.roots import ProductionRoots
from confide.attest.simulated import SimulatedTee
from confide.errors import InvalidSignature, MalformedEvidence, UnknownRoot, WrongBinding, WrongCollateral

from .authorities import rsa_key
from .cases import Case, flips, refused, truncations
from .forged_azure import AK, Hcl, azure_case, azure_tdx, base64url, jwk, quoted, runtime_data
from .forged_tpm import NONCE


@pytest.fixture(scope="module")
def genoa(test_data: Path) -> Case:
    evidence, beside = read_evidence((test_data / "evidence/azure/snp_genoa_vtpm.json").read_bytes())
    chain = (test_data / "evidence/snp/ask_ark_genoa.pem").read_bytes()
    collateral = Collateral({**beside.documents, "chain": chain})
    return Case(evidence, collateral, ProductionRoots(), datetime(2026, 1, 1, tzinfo=UTC))


def test_a_real_machine_of_genoa(genoa: Case) -> None:
    claims = genoa.verify()
    assert (claims.family, claims.root, claims.debug, claims.speaks) == (Family.AZURE, RootKind.PRODUCTION, False, True)
    assert (len(claims.report_data), claims.report_data.hex()[:16]) == (48, "0218488bae25d250")
    assert claims.measurements["pcr0"].hex().startswith("afd689d0bb1c5f36")
    assert len(claims.measurements) == 24
    assert claims.identity["vm_id"] == b"390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC"
    assert claims.identity["secure_boot"] == b"true"
    assert [check.code for check in claims.checks if check.passed] == ["key-binding"]
    [processor] = claims.members
    assert (processor.family, processor.identity["product"], processor.speaks) == (Family.SNP, b"Genoa", False)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
def test_every_part_of_the_real_machine(genoa: Case, step: int) -> None:
    signed = 32 + 0x2A0 + 144
    runtime = 32 + 1184 + 20
    end = runtime + len(HclReport.parse(genoa.evidence.raw).runtime_data)
    for at in (*range(32, signed, 3 * step), *range(runtime, end, step)):
        raw = genoa.evidence.raw
        refused(genoa.with_raw(raw[:at] + bytes([raw[at] ^ 4]) + raw[at + 1 :]))
    for name in ("quote", "signature", "pcrs"):
        for part in flips(genoa.evidence.parts[name], step=3 * step):
            refused(genoa.with_parts(**{name: part}))
    for raw in truncations(genoa.evidence.raw[:end], step=5 * step):
        refused(genoa.with_raw(raw), MalformedEvidence)


def test_the_real_machine_with_the_quote_of_another(genoa: Case) -> None:
    refused(replace(genoa, evidence=Evidence(Family.AZURE, genoa.evidence.raw, quoted())), InvalidSignature)
    refused(genoa.without_document("vcek"), WrongCollateral)


def test_a_real_machine_of_tdx_is_bound_and_lacks_its_collateral(test_data: Path) -> None:
    evidence, beside = read_evidence((test_data / "evidence/azure/tdx_vtpm.json").read_bytes())
    hcl = HclReport.parse(evidence.raw)
    assert hcl.processor is Family.TDX
    quote = hcl.evidence(evidence.parts)
    # The signatures of the quote hold up to Intel's root, and it is over these runtime data.
    assert parse(quote.raw).report_data == hcl.report_data()
    case = Case(evidence, beside, ProductionRoots(), datetime(2026, 1, 1, tzinfo=UTC))
    refused(case, WrongCollateral)


def test_a_forged_machine() -> None:
    claims = azure_case().verify()
    assert (claims.report_data, claims.root) == (NONCE, RootKind.SIMULATED)
    assert claims.measurements.keys() == {"pcr0", "pcr7"}
    refused(replace(azure_case(), roots=ProductionRoots()), UnknownRoot)
    assert azure_case(policy=0x30000 | 1 << 19).verify().debug


def test_a_forged_machine_of_tdx(tee: SimulatedTee, simulated: DcapCase) -> None:
    case = Case(azure_tdx(tee), simulated.collateral, simulated.roots, simulated.now)
    claims = case.verify()
    assert [member.family for member in claims.members] == [Family.TDX]
    assert (claims.report_data, claims.tcb_status) == (NONCE, claims.members[0].tcb_status)
    refused(replace(case, evidence=azure_tdx(tee, Hcl(kind=4, bound=b"other"))), WrongBinding)
    refused(replace(case, evidence=azure_tdx(tee, key=rsa_key("other"))), InvalidSignature)
    without = Evidence(Family.AZURE, case.evidence.raw, quoted())
    with pytest.raises(MalformedEvidence, match="td_quote"):
        replace(case, evidence=without).verify()


def test_a_key_that_the_processor_did_not_sign() -> None:
    theirs = runtime_data(jwk(rsa_key("attacker")))
    refused(azure_case(Hcl(runtime=theirs, bound=runtime_data()), key=rsa_key("attacker")), WrongBinding)
    refused(azure_case(key=rsa_key("attacker")), InvalidSignature)


def test_a_report_that_the_guest_asked_for() -> None:
    """At another level than the paravisor's, whoever runs in the guest has any runtime data signed."""
    for vmpl in (1, 2, 3):
        refused(azure_case(vmpl=vmpl), WrongBinding)


@pytest.mark.parametrize("name", ["quote", "signature", "pcrs"])
def test_missing_parts(name: str) -> None:
    case = azure_case()
    parts = {key: value for key, value in case.evidence.parts.items() if key != name}
    with pytest.raises(MalformedEvidence, match=name):
        replace(case, evidence=replace(case.evidence, parts=parts)).verify()


@pytest.mark.parametrize(
    "hcl",
    [
        Hcl(magic=b"HCLB"),
        Hcl(kind=3),
        Hcl(kind=0),
        Hcl(hash_kind=2),
        Hcl(size=1 << 20),
        Hcl(size=0xFFFFFFFF),
        Hcl(runtime=b""),
        Hcl(runtime=b"[]"),
        Hcl(runtime=b"{" * 50_000),
        Hcl(runtime=b"\xff\xfe"),
        Hcl(runtime=bytes(MAX_HCL_BYTES)),
        Hcl(runtime=runtime_data(keys=None)),
        Hcl(runtime=runtime_data(keys=[])),
        Hcl(runtime=runtime_data(keys={"HCLAkPub": 1})),
        Hcl(runtime=runtime_data(keys=["HCLAkPub"])),
        Hcl(runtime=runtime_data(jwk(AK), jwk(rsa_key("other")))),
        Hcl(runtime=runtime_data(jwk(AK, "HCLEkPub"))),
        *(
            Hcl(runtime=runtime_data(jwk(AK, **changes)))
            for changes in (
                {"kty": "EC"},
                {"n": None},
                {"n": 5},
                {"n": "\u00fc"},
                {"n": ""},
                {"n": base64url(bytes(256))},
                {"n": base64url(b"\xff" * 513)},
                {"n": base64url(b"\xff" * 128)},
                {"e": base64url(b"\x01\x00")},
                {"e": base64url(bytes(5))},
                {"e": ""},
            )
        ),
    ],
)
def test_what_is_no_report_of_a_paravisor(hcl: Hcl) -> None:
    refused(azure_case(hcl), MalformedEvidence)


def test_configurations_of_any_shape() -> None:
    for configuration in (None, [], "text", {"vmUniqueId": 5, "secure-boot": None}, {"vmUniqueId": "\ud800"}):
        claims = azure_case(Hcl(runtime=runtime_data(**{"vm-configuration": configuration}))).verify()
        assert claims.identity.get("vm_id", b"?") == b"?"
    assert "user_data" not in azure_case(Hcl(runtime=runtime_data(**{"user-data": 5}))).verify().identity


@settings(deadline=None)
@given(st.binary(max_size=400), st.integers(0, 2600))
def test_noise(noise: bytes, at: int) -> None:
    case = azure_case()
    raw = case.evidence.raw
    refused(case.with_raw(noise))
    for name in ("quote", "signature", "pcrs"):
        refused(case.with_parts(**{name: noise}))
    end = 32 + 1184 + 20 + len(HclReport.parse(raw).runtime_data)
    changed = raw[:at] + noise + raw[at + len(noise) :]
    if changed[32:1200] != raw[32:1200] or changed[1236:end] != raw[1236:end]:
        refused(case.with_raw(changed))


# -- as tools write it -------------------------------------------------------------------------------------------


def as_json(case: Case, version: int, **changes: Any) -> bytes:
    """Trustee's JSON, by the version of it."""
    parts, vcek = case.evidence.parts, case.collateral.documents["vcek"]
    pcrs = [parts["pcrs"][at : at + 32] for at in range(0, len(parts["pcrs"]), 32)]
    signature = parts["signature"][6:]
    if version == 0:
        quote = {"message": [*parts["quote"]], "signature": [*signature], "pcrs": [[*pcr] for pcr in pcrs]}
        armour = b"-----BEGIN CERTIFICATE-----\n" + base64.encodebytes(vcek) + b"-----END CERTIFICATE-----\n"
        whole: dict[str, Any] = {"quote": quote, "report": [*case.evidence.raw], "vcek": armour.decode()}
    else:
        quote = {"message": parts["quote"].hex(), "signature": signature.hex(), "pcrs": [pcr.hex() for pcr in pcrs]}
        whole = {
            "version": version,
            "tpm_quote": quote,
            "hcl_report": base64url(case.evidence.raw),
            "vcek": base64url(vcek),
        }
    return json.dumps(whole | changes).encode()


@pytest.mark.parametrize("version", [0, 1, 2])
def test_the_json_of_tools(version: int) -> None:
    case = azure_case()
    evidence, beside = read_evidence(as_json(case, version))
    assert evidence == case.evidence
    collateral = Collateral({**case.collateral.documents, **beside.documents})
    assert replace(case, evidence=evidence, collateral=collateral).verify() == case.verify()


@pytest.mark.parametrize(
    "changes",
    [
        {"tpm_quote": 5},
        {"tpm_quote": {}},
        {"tpm_quote": {"message": "zz", "signature": "", "pcrs": []}},
        {"tpm_quote": {"message": [256], "signature": "", "pcrs": []}},
        {"tpm_quote": {"message": "", "signature": "", "pcrs": 5}},
        {"hcl_report": None},
        {"hcl_report": "\u00fc"},
        {"vcek": "!"},
        {"vcek": "AAAA"},
        {"vcek": 5},
        {"td_quote": {}},
    ],
)
def test_json_that_is_none(changes: dict[str, Any]) -> None:
    with pytest.raises(MalformedEvidence):
        read_evidence(as_json(azure_case(), 1, **changes))
