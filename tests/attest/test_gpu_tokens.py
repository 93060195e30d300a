"""The word of services about GPUs: NVIDIA's bundles of tokens, and Trustee's tokens for a machine with GPUs."""

import json
from collections.abc import Callable
from hashlib import sha256
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.attest.made_up import NOW
from tests.attest.test_tokens import EAR, EC, SECONDS, TRUSTEE, jwks, service, verdict

from confide.attest.check import Outcome
from confide.attest.claims import Claims
from confide.attest.evidence import Family
from confide.attest.policy import Policy
from confide.attest.requirements import Nvidia, Tdx, VerifierService
from confide.attest.tokens import verify_token
from confide.errors import AttestationError, InvalidSignature, MalformedEvidence, OutsideValidity, UnknownRoot

ISSUER = "https://nras.attestation.nvidia.com"
KEY, THIEF = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
NONCE = "5a" * 32
COMMON: dict[str, Any] = {
    "iss": ISSUER,
    "iat": SECONDS - 5,
    "nbf": SECONDS - 5,
    "exp": SECONDS + 600,
    "eat_nonce": NONCE,
}
STATUS = {"x-nvidia-cert-status": "valid", "x-nvidia-cert-ocsp-status": "good"}
GPU: dict[str, Any] = {
    "measres": "success",
    "secboot": True,
    "dbgstat": "disabled",
    "hwmodel": "GH100 A01 GSP BROM",
    "ueid": "478176379286082186618948445787393",
    "x-nvidia-gpu-driver-version": "550.90.07",
    "x-nvidia-gpu-vbios-version": "96.00.9F.00.01",
    "x-nvidia-gpu-attestation-report-cert-chain-fwid-match": True,
    **{f"x-nvidia-gpu-{name}-cert-chain": STATUS for name in ("attestation-report", "driver-rim", "vbios-rim")},
}


def keys() -> str:
    public = jwt.algorithms.ECAlgorithm.to_jwk(KEY.public_key(), as_dict=True)
    return json.dumps({"keys": [{**public, "kid": "nv", "alg": "ES384"}]})


SERVICE = VerifierService("nvidia-nras", ISSUER, keys())


def signed(body: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY) -> str:
    return jwt.encode({**COMMON, **body}, key, "ES384", headers={"kid": "nv"})


def bundle(*gpus: dict[str, Any], key: ec.EllipticCurvePrivateKey = KEY, digest: str = "SHA-256", **more: Any) -> bytes:
    """As the service signs it, for these GPUs."""
    tokens = {f"GPU-{at}": signed(gpu, key) for at, gpu in enumerate(gpus or (GPU,))}
    digests = {name: ["DIGEST", [digest, sha256(token.encode()).hexdigest()]] for name, token in tokens.items()}
    body = {"x-nvidia-overall-att-result": True, "x-nvidia-ver": "3.0", "submods": digests, **more}
    return json.dumps([["JWT", signed(body)], tokens]).encode()


def verify(token: bytes) -> Claims:
    return verify_token(token, [SERVICE], NOW)


def test_every_gpu_with_what_the_service_says_of_it() -> None:
    claims = verify(bundle(GPU, {**GPU, "ueid": "2"}))
    assert [one.family for one in claims.everyone()] == [Family.NVIDIA] * 2
    assert claims.report_data.hex() == NONCE
    assert claims.identity["driver_version"] == b"550.90.07"
    assert not claims.debug
    assert not any(one.speaks for one in claims.everyone())
    assert {one.code: one.outcome for one in claims.checks} == {
        "nvidia-measurements": Outcome.PASS,
        "nvidia-firmware": Outcome.PASS,
        "revocation": Outcome.PASS,
    }
    assert verify(bundle(digest="SHA256")).verified_by == SERVICE.identity


def test_a_gpu_alone_is_no_workload() -> None:
    result = verdict(bundle(), Policy.all_of(SERVICE, Nvidia(drivers=("550.90.07",))))
    assert [check.code for check in result.failures] == ["speaks-for-a-workload", "tcb-status"]


def without(name: str) -> dict[str, Any]:
    return {key: value for key, value in GPU.items() if key != name}


def test_what_the_service_leaves_out_is_no_pass() -> None:
    for name, code in (
        ("x-nvidia-gpu-attestation-report-cert-chain-fwid-match", "nvidia-firmware"),
        ("x-nvidia-gpu-driver-rim-cert-chain", "revocation"),
    ):
        outcomes = {one.code: one.outcome for one in verify(bundle(without(name))).checks}
        assert outcomes[code] is Outcome.SKIPPED
    hold = GPU | {"x-nvidia-gpu-driver-rim-cert-chain": {"x-nvidia-cert-ocsp-status": "revoked"}}
    assert {one.code: one.outcome for one in verify(bundle(hold)).checks}["revocation"] is Outcome.FAIL
    for status in ({**GPU, "dbgstat": "enabled"}, without("dbgstat")):
        assert verify(bundle(status)).debug


@pytest.mark.parametrize(
    ("token", "reason"),
    [
        (bundle(**{"x-nvidia-overall-att-result": False}), InvalidSignature),
        (bundle(**{"x-nvidia-overall-att-result": "true"}), InvalidSignature),
        (bundle(GPU, {**GPU, "measres": "fail"}), InvalidSignature),
        (bundle({**GPU, "eat_nonce": "5b" * 32}), InvalidSignature),
        (bundle(key=THIEF), InvalidSignature),
        (bundle(iss="https://elsewhere"), UnknownRoot),
        (bundle({**GPU, "iss": "https://elsewhere"}), UnknownRoot),
        (bundle(exp=SECONDS), OutsideValidity),
        (bundle({**GPU, "exp": SECONDS}), OutsideValidity),
        (bundle({**GPU, "nbf": SECONDS + 9}), OutsideValidity),
        (bundle(digest="SHA-1"), InvalidSignature),
        (bundle(submods={}), InvalidSignature),
        (bundle(submods={"GPU-0": ["DIGEST", ["SHA-256", "00" * 32]]}), InvalidSignature),
        (bundle(submods={"GPU-0": "DIGEST"}), InvalidSignature),
        (bundle(submods=None), InvalidSignature),
        (bundle(without("measres")), MalformedEvidence),
        (bundle({**GPU, "eat_nonce": 5}, eat_nonce=5), MalformedEvidence),
        (b"", MalformedEvidence),
        (b"[]", MalformedEvidence),
        (b'[["JWT", "a.b.c"], {}]', MalformedEvidence),
        (b'[["JWS", "a.b.c"], {"GPU-0": "a.b.c"}]', MalformedEvidence),
        (b'[["JWT", "\\ud800"], {"GPU-0": "a.b.c"}]', MalformedEvidence),
        (bundle() + b" " * (1 << 20), MalformedEvidence),
        (signed(GPU).encode(), MalformedEvidence),
    ],
)
def test_refused(token: bytes, reason: type[AttestationError]) -> None:
    with pytest.raises(reason, match=r"; .*\.$"):
        verify(token)


def test_tokens_that_belong_to_other_bundles() -> None:
    """One token more, one less, one of another bundle, and two that changed places."""
    two, other = json.loads(bundle(GPU, {**GPU, "ueid": "2"})), json.loads(bundle({**GPU, "ueid": "3"}))

    def changed(change: Callable[[dict[str, str]], object]) -> bytes:
        copy = json.loads(json.dumps(two))
        change(copy[1])
        return json.dumps(copy).encode()

    for token in (
        changed(lambda tokens: tokens.update({"GPU-2": tokens["GPU-0"]})),
        changed(lambda tokens: tokens.pop("GPU-1")),
        changed(lambda tokens: tokens.update(other[1])),
        changed(lambda tokens: tokens.update({"GPU-0": tokens["GPU-1"], "GPU-1": tokens["GPU-0"]})),
    ):
        with pytest.raises(InvalidSignature):
            verify(token)


@settings(deadline=None)
@given(st.binary(max_size=100), st.integers(0, 2000))
def test_noise(noise: bytes, at: int) -> None:
    right = bundle()
    for token in (noise, right[:at] + noise + right[at:], right[:at] + noise):
        try:
            found = verify(token)
        except AttestationError:
            continue
        assert found == verify(right)


# -- Trustee -----------------------------------------------------------------------------------------------------

LOCAL = {"arch": "Hopper", "uuid": "GPU-0", "measurements": {"1": "22" * 48}}
VERSIONS = {"driver_version": "550.90.07", "vbios_version": "96.00.9F.00.01"}


def trustee(**gpus: dict[str, Any]) -> bytes:
    """A token for the machine of EAR with these GPUs; `status` of one is what the service makes of it."""
    submods = dict(EAR["submods"])
    for name, gpu in gpus.items():
        said = {key: value for key, value in gpu.items() if key != "status"}
        evidence = {"nvidia": said}
        submods[name] = {
            "ear.status": gpu.get("status", "affirming"),
            "ear.veraison.annotated-evidence": evidence,
        }
    body = {"iat": SECONDS, "exp": SECONDS + 60, **EAR, "submods": submods}
    return jwt.encode(body, EC, "ES256", headers={"kid": "e"}).encode()


TRUSTEE_SERVICE = service("trustee", TRUSTEE, jwks())


def test_a_machine_with_its_gpus() -> None:
    for gpu in ({**LOCAL, "config": VERSIONS}, {**LOCAL, **VERSIONS, "verifier": "local", "config": {}}):
        claims = verify_token(trustee(a_gpu=gpu, gpu1=gpu), [TRUSTEE_SERVICE], NOW)
        assert [one.family for one in claims.everyone()] == [Family.TDX, Family.NVIDIA, Family.NVIDIA]
        assert claims.speaks
        assert claims.report_data == b"\7" * 64
        assert claims.members[0].measurements == {"block1": b"\x22" * 48}
        assert claims.members[0].identity["driver_version"] == b"550.90.07"
    policy = Policy.all_of(TRUSTEE_SERVICE, Tdx(), Nvidia(drivers=("550.90.07",)))
    assert verdict(trustee(gpu0={**LOCAL, **VERSIONS}), policy).trusted
    assert not verdict(trustee(gpu0={**LOCAL, **VERSIONS, "driver_version": "1"}), policy).trusted
    assert not verdict(trustee(), policy).trusted


def test_a_gpu_that_is_not_affirmed_or_not_understood() -> None:
    with pytest.raises(InvalidSignature):
        verify_token(trustee(gpu0={**LOCAL, "status": "warning"}), [TRUSTEE_SERVICE], NOW)
    for measurements in ({"x": "22"}, {"1": "zz"}, {"1": 5}, []):
        with pytest.raises(MalformedEvidence):
            verify_token(trustee(gpu0={**LOCAL, "measurements": measurements}), [TRUSTEE_SERVICE], NOW)


def test_a_gpu_without_a_machine_speaks_for_nobody() -> None:
    body = json.loads(json.dumps({"iat": SECONDS, "exp": SECONDS + 60, **EAR}))
    body["submods"] = {"gpu0": {"ear.status": "affirming", "ear.veraison.annotated-evidence": {"nvidia": LOCAL}}}
    token = jwt.encode(body, EC, "ES256", headers={"kid": "e"}).encode()
    result = verdict(token, Policy.all_of(TRUSTEE_SERVICE, Nvidia()))
    assert [check.code for check in result.failures] == ["speaks-for-a-workload", "tcb-status"]
