"""Tokens of verification services: made here in their formats, accepted and refused."""

import base64
import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import jwt
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509.oid import NameOID
from tests.attest.made_up import MRTD, NOW, StubVerifier

from confide.attest.appraise import appraise
from confide.attest.claims import TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.requirements import NotDebug, Sgx, Snp, SnpTcb, Tdx, VerifierService
from confide.attest.result import AttestationResult
from confide.attest.tokens import verify_token
from confide.errors import InvalidSignature, MalformedEvidence, UnknownRoot

RSA = rsa.generate_private_key(65537, 2048)
EC = ec.generate_private_key(ec.SECP256R1())
INTEL, AZURE, TRUSTEE = "https://portal.trustauthority.intel.com", "https://shared.eus.attest.azure.net", "https://coco"
SECONDS = int(NOW.timestamp())
TIMES = {"iat": SECONDS - 60, "nbf": SECONDS - 60, "exp": SECONDS + 300}
REGISTERS = {"tdx_mrtd": MRTD.hex(), **{f"tdx_rtmr{index}": "00" * 48 for index in range(4)}}

INTEL_TDX: dict[str, Any] = {
    "attester_type": "TDX",
    "attester_tcb_status": "UpToDate",
    "attester_tcb_date": "2025-08-13T00:00:00Z",
    "attester_advisory_ids": ["INTEL-SA-00001"],
    "tdx_is_debuggable": False,
    "tdx_report_data": "07" * 64,
    **REGISTERS,
}
AZURE_SNP: dict[str, Any] = {
    "x-ms-attestation-type": "azurevm",
    "x-ms-isolation-tee": {
        "x-ms-attestation-type": "sevsnpvm",
        "x-ms-sevsnpvm-launchmeasurement": "0a" * 48,
        "x-ms-sevsnpvm-hostdata": "00" * 32,
        "x-ms-sevsnpvm-reportdata": "07" * 64,
        "x-ms-sevsnpvm-is-debuggable": False,
        "x-ms-sevsnpvm-snpfw-svn": 8,
        "x-ms-sevsnpvm-microcode-svn": 1,
    },
}
EAR: dict[str, Any] = {
    "eat_profile": "tag:github.com,2024:confidential-containers/Trustee",
    "ear.verifier-id": {"developer": TRUSTEE, "build": "1"},
    "submods": {
        "cpu0": {
            "ear.status": "affirming",
            "ear.veraison.annotated-evidence": {
                "report_data": "07" * 64,
                "tdx": {
                    "quote": {"body": {"mr_td": MRTD.hex(), "rtmr_1": "01" * 48}},
                    "td_attributes": {"debug": False},
                    "tcb_status": "UpToDate",
                },
            },
        }
    },
}


def jwks(**more: str) -> str:
    """Both public keys, and whatever else is said of each."""
    rsa_key = jwt.algorithms.RSAAlgorithm.to_jwk(RSA.public_key(), as_dict=True)
    ec_key = jwt.algorithms.ECAlgorithm.to_jwk(EC.public_key(), as_dict=True)
    return json.dumps({"keys": [{**rsa_key, "kid": "r", **more}, {**ec_key, "kid": "e", **more}]})


def service(name: str, issuer: str, keys: str = "") -> VerifierService:
    """A line of policy."""
    return VerifierService(name, issuer, keys or jwks())


INTEL_SERVICE = service("intel-trust-authority", INTEL)


def intel(body: Mapping[str, Any] = INTEL_TDX, *, alg: str = "PS384", kid: str | None = "r", **more: Any) -> bytes:
    """A token as Intel Trust Authority signs it."""
    headers = {"kid": kid} if kid else {}
    return jwt.encode({"iss": INTEL, **TIMES, **body, **more}, RSA, alg, headers=headers).encode()


def verdict(token: bytes, policy: Policy | SimulatedPolicy) -> AttestationResult:
    """What the policy says of the token; the verifier of evidence is never asked."""
    evidence = Evidence(Family.TOKEN, token)
    return appraise(StubVerifier(AssertionError()), evidence, Collateral(), policy, NOW)  # type: ignore[arg-type]


# -- accepted ----------------------------------------------------------------------------------------------------


def test_intel_trust_authority() -> None:
    policy = Policy.all_of(INTEL_SERVICE, Tdx(mrtd=MRTD.hex(), rtmrs=("00" * 48,)))
    for token in (intel(), intel({"tdx": INTEL_TDX, "ver": "2.0.0"})):
        result = verdict(token, policy)
        assert result.trusted, result.failures
        assert result.claims
        assert result.claims.report_data == b"\7" * 64
        assert result.claims.advisories == ("INTEL-SA-00001",)
        assert result.claims.tcb_date == datetime(2025, 8, 13, tzinfo=UTC)


def test_intel_trust_authority_of_an_enclave() -> None:
    body = {
        "attester_type": "SGX",
        "attester_tcb_status": "OutOfDate",
        "sgx_mrenclave": "0e" * 32,
        "sgx_mrsigner": "05" * 32,
        "sgx_isvsvn": 3,
        "sgx_report_data": "07" * 64,
        "sgx_is_debuggable": True,
    }
    result = verdict(intel(body), Policy.all_of(INTEL_SERVICE, Sgx(mrsigner="05" * 32, min_isvsvn=4)))
    assert [check.code for check in result.failures] == ["debug", "tcb-status", "isvsvn"]


def test_azure_attestation() -> None:
    token = jwt.encode({"iss": AZURE, **TIMES, **AZURE_SNP}, RSA, "RS256", headers={"kid": "r"}).encode()
    hardware = Snp(measurement="0a" * 48, min_tcb=SnpTcb(snp=8, microcode=1))
    for keys in (jwks(), _certified_keys()):
        result = verdict(token, Policy.all_of(service("azure-attestation", AZURE, keys), NotDebug(), hardware))
        assert result.trusted, result.failures
        assert result.claims
        assert result.claims.tcb_status is TcbStatus.UNKNOWN


def _certified_keys() -> str:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "token signer")])
    builder = x509.CertificateBuilder(name, name, RSA.public_key(), 1, NOW, NOW + timedelta(days=1))
    certificate = base64.b64encode(builder.sign(RSA, hashes.SHA256()).public_bytes(Encoding.DER)).decode()
    return json.dumps({"keys": [{"kty": "RSA", "kid": "r", "x5c": [certificate]}]})


def test_trustee() -> None:
    header = {"jwk": {"kty": "oct", "k": "AAAA"}}  # Trustee puts its key here; nobody looks
    token = jwt.encode({"iat": SECONDS, "exp": SECONDS + 60, **EAR}, EC, "ES256", headers=header).encode()
    only = json.dumps({"keys": [key for key in json.loads(jwks())["keys"] if key["kty"] == "EC"]})
    policy = Policy.all_of(service("trustee", TRUSTEE, only), Tdx(rtmrs=("", "01" * 48)))
    result = verdict(token, policy)
    assert result.trusted, result.failures


# -- refused -----------------------------------------------------------------------------------------------------


def _unsigned() -> bytes:
    return jwt.encode({"iss": INTEL, **TIMES, **INTEL_TDX}, None, "none", headers={"kid": "r"}).encode()


def _confused() -> bytes:
    """HS256 with the public key as the secret. The library refuses to make one, so it is made by hand."""
    secret = RSA.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    parts = [{"alg": "HS256", "kid": "r"}, {"iss": INTEL, **TIMES, **INTEL_TDX}]
    signed = b".".join(base64.urlsafe_b64encode(json.dumps(part).encode()).rstrip(b"=") for part in parts)
    from hmac import digest

    return signed + b"." + base64.urlsafe_b64encode(digest(secret, signed, "sha256")).rstrip(b"=")


def _altered() -> bytes:
    head, _, signature = intel().split(b".")
    return b".".join((head, intel(tdx_mrtd="00" * 48).split(b".")[1], signature))


@pytest.mark.parametrize(
    ("token", "code"),
    [
        (_unsigned(), "invalid-signature"),
        (_confused(), "invalid-signature"),
        (_altered(), "invalid-signature"),
        (intel(alg="RS512"), "invalid-signature"),
        (intel(kid="unknown"), "unknown-root"),
        (intel(iss="https://elsewhere"), "unknown-root"),
        (intel(iss=""), "unknown-root"),
        (intel(exp=SECONDS), "outside-validity"),
        (intel(nbf=SECONDS + 1), "outside-validity"),
        (intel(iat=SECONDS + 1), "outside-validity"),
        (intel(exp=1 << 80), "malformed-evidence"),
        (intel(exp=None), "malformed-evidence"),
        (intel(attester_type="SAMPLE"), "malformed-evidence"),
        (intel(tdx_report_data="zz"), "malformed-evidence"),
        (intel(tdx_mrtd=7), "malformed-evidence"),
        (intel({"tdx": INTEL_TDX, "nvgpu": {}}), "malformed-evidence"),
        (intel()[:-22], "invalid-signature"),
        (b"", "malformed-evidence"),
        (b"\xff.a.b", "malformed-evidence"),
        (b"a" * (1 << 20), "malformed-evidence"),
    ],
)
def test_refused(token: bytes, code: str) -> None:
    result = verdict(token, Policy.all_of(INTEL_SERVICE))
    assert not result.trusted
    assert [check.code for check in result.failures] == [code]


def test_signed_by_another() -> None:
    stranger = rsa.generate_private_key(65537, 2048)
    token = jwt.encode({"iss": INTEL, **TIMES, **INTEL_TDX}, stranger, "PS384", headers={"kid": "r"}).encode()
    with pytest.raises(InvalidSignature):
        verify_token(token, [INTEL_SERVICE], NOW)


def test_a_token_without_kid_needs_a_single_key() -> None:
    with pytest.raises(InvalidSignature):  # an algorithm this service does not use
        verify_token(jwt.encode({"iss": INTEL}, EC, "ES256").encode(), [INTEL_SERVICE], NOW)
    twice = json.dumps({"keys": json.loads(jwks())["keys"][:1] * 2})
    with pytest.raises(UnknownRoot):
        verify_token(intel(kid=None), [service("intel-trust-authority", INTEL, twice)], NOW)


def test_a_key_for_another_algorithm_is_not_used() -> None:
    with pytest.raises(UnknownRoot):
        verify_token(intel(), [service("intel-trust-authority", INTEL, jwks(alg="RS256"))], NOW)


@pytest.mark.parametrize(
    "keys", ["no", "[]", '{"keys": [1]}', '{"keys": [{"kty": "RSA", "kid": "r", "x5c": ["AA=="]}]}']
)
def test_keys_that_are_none(keys: str) -> None:
    result = verdict(intel(), Policy.all_of(service("intel-trust-authority", INTEL, keys)))
    assert [check.code for check in result.failures] == ["wrong-collateral"]


def test_a_symmetric_key_is_never_used() -> None:
    keys = json.dumps({"keys": [{"kty": "oct", "kid": "r", "k": "AAAA"}]})
    with pytest.raises(UnknownRoot):
        verify_token(intel(), [service("intel-trust-authority", INTEL, keys)], NOW)


def test_without_a_service_in_the_policy_no_token_counts() -> None:
    for policy in (Policy(), SimulatedPolicy.all_of(INTEL_SERVICE)):
        assert [check.code for check in verdict(intel(), policy).failures] == ["unknown-root"]
    unknown = Policy.all_of(service("hearsay", INTEL))
    assert [check.code for check in verdict(intel(), unknown).failures] == ["wrong-collateral"]


def test_what_the_service_itself_does_not_affirm_is_refused() -> None:
    submods = {"cpu0": {**EAR["submods"]["cpu0"], "ear.status": "warning"}}
    token = jwt.encode({**TIMES, **EAR, "submods": submods}, EC, "ES256", headers={"kid": "e"}).encode()
    with pytest.raises(InvalidSignature, match="warning"):
        verify_token(token, [service("trustee", TRUSTEE)], NOW)
    sample = {"cpu0": {"ear.status": "affirming", "ear.veraison.annotated-evidence": {"sample": {}}}}
    token = jwt.encode({**TIMES, **EAR, "submods": sample}, EC, "ES256", headers={"kid": "e"}).encode()
    with pytest.raises(MalformedEvidence, match="sample"):
        verify_token(token, [service("trustee", TRUSTEE)], NOW)


def test_what_a_service_leaves_out_has_failed() -> None:
    silent = {
        name: value for name, value in INTEL_TDX.items() if name not in ("tdx_is_debuggable", "attester_tcb_status")
    }
    result = verdict(intel(silent), Policy.all_of(INTEL_SERVICE, Tdx(mrconfigid="00" * 48)))
    assert [check.code for check in result.failures] == ["debug", "tcb-status", "mrconfigid"]
