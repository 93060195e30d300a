"""Releases signed through a Sigstore of one's own: verified offline, refused for every part that is not right."""

import json
import socket
import sys
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from cryptography.x509.oid import ExtendedKeyUsageOID
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.appraise import appraise
from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import Policy
from confide.attest.policy_toml import policy_from_toml, to_toml
from confide.attest.release import MAX_RELEASE_BYTES, RELEASE, Signer, verify_release
from confide.attest.requirements import SignedRelease
from confide.attest.result import AttestationResult
from confide.errors import (
    AttestationError,
    InvalidPolicy,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    WrongCollateral,
)

from .fake_sigstore import IDENTITY, ISSUER, SIGNED, FakeSigstore, Signing, b64, key, statement
from .made_up import MRTD, NOW, StubVerifier, tdx_claims

SIGSTORE = FakeSigstore()
TDX: dict[str, Any] = {"family": "tdx", "values": {"mrtd": MRTD.hex(), "rtmr1": "01" * 48}}
OTHER: dict[str, Any] = {"family": "tdx", "values": {"mrtd": "ff" * 48}}
SNP: dict[str, Any] = {"family": "sev-snp", "values": {"measurement": "0a" * 48}}
RIGHT = Signing(statement(TDX, SNP))
BUNDLE = SIGSTORE.bundle(RIGHT)
SIGNER = Signer(IDENTITY, ISSUER, SIGSTORE.trusted_root())
WANTED = SignedRelease(IDENTITY, ISSUER, "30d", SIGSTORE.trusted_root())


def verdict(release: bytes | None, wanted: SignedRelease = WANTED, claims: Claims | None = None) -> AttestationResult:
    documents = {} if release is None else {RELEASE: release}
    found = StubVerifier(claims or tdx_claims())
    evidence = Evidence(Family.TDX, b"")
    return appraise(found, evidence, Collateral(documents), Policy.all_of(wanted), NOW)


def failures(*arguments: Any, **more: Any) -> list[str]:
    return [check.code for check in verdict(*arguments, **more).failures]


def encoded(bundle: dict[str, Any]) -> bytes:
    return json.dumps(bundle).encode()


def test_a_release_of_the_right_identity_with_the_right_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_network(*_: object) -> None:
        raise AssertionError("the network was used")

    monkeypatch.setattr(socket.socket, "connect", no_network)
    monkeypatch.setattr(socket, "getaddrinfo", no_network)
    result = verdict(encoded(BUNDLE))
    assert result.trusted, result.failures
    codes = [check.code for check in result.checks]
    assert codes[-3:] == ["signed-release", "release-age", "release-measurements"]
    release = verify_release(encoded(BUNDLE), SIGNER, NOW)
    assert release.identity == IDENTITY
    assert timedelta() < SIGNED - release.signed < timedelta(minutes=10)


def test_measurements() -> None:
    assert failures(SIGSTORE.release(Signing(statement(OTHER, TDX)))) == []
    assert failures(SIGSTORE.release(Signing(statement(OTHER)))) == ["release-measurements"]
    assert failures(SIGSTORE.release(Signing(statement(SNP)))) == ["release-measurements"]
    unknown = {"family": "tdx", "values": {"mrtd": MRTD.hex(), "rtmr9": "00" * 48}}
    (failed,) = verdict(SIGSTORE.release(Signing(statement(unknown)))).failures
    assert failed.seen == "tdx: rtmr9 absent"


def test_members_of_a_family_that_the_release_knows_have_to_fit_as_well() -> None:
    def machine(block: bytes) -> Claims:
        gpu = replace(tdx_claims(), family=Family.NVIDIA, measurements={"block1": block}, speaks=False)
        return tdx_claims(family=Family.COMPOSITE, measurements={}, members=(tdx_claims(), gpu))

    gpu = {"family": "nvidia-gpu", "values": {"block1": "22" * 48}}
    release = SIGSTORE.release(Signing(statement(TDX, gpu)))
    assert failures(release, claims=machine(b"\x22" * 48)) == []
    assert failures(release, claims=machine(b"\x23" * 48)) == ["release-measurements"]
    assert failures(encoded(BUNDLE), claims=machine(b"\x23" * 48)) == []


def test_age() -> None:
    assert failures(encoded(BUNDLE), replace_requirement(max_age="19d")) == []
    assert failures(encoded(BUNDLE), replace_requirement(max_age="18d")) == ["release-age"]
    late = SIGSTORE.release(RIGHT.but(at=NOW + timedelta(hours=1)))
    assert failures(late) == ["signed-release"]
    with pytest.raises(OutsideValidity):
        verify_release(late, SIGNER, NOW)


def replace_requirement(**changes: str) -> SignedRelease:
    fields = {name: getattr(WANTED, name) for name in WANTED.__struct_fields__}
    return SignedRelease(**(fields | changes))


def test_without_a_release_it_fails() -> None:
    assert failures(None) == ["signed-release"]


@pytest.mark.parametrize(
    "identity",
    [
        "https://github.com/owner/model/.github/workflows/release.yml@*",
        "https://github.com/owner/model/.github/workflows/release.yml@refs/tags/*",
        "https://github.com/owner/*",
    ],
)
def test_identities_with_an_open_end(identity: str) -> None:
    assert failures(encoded(BUNDLE), replace_requirement(identity=identity)) == []
    for other in ("https://github.com/other/", "https://github.com/owner2/", "https://github.com/owner"):
        stranger = SIGSTORE.release(RIGHT.but(identity=other))
        assert failures(stranger, replace_requirement(identity=identity)) == ["signed-release"]


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": IDENTITY + "1"},
        {"identity": IDENTITY[:-1]},
        {"identity": IDENTITY.replace("owner", "thief")},
        {"issuer": "https://accounts.example"},
        {"issuer": ISSUER + "/"},
    ],
)
def test_signed_by_somebody_else(changes: dict[str, str]) -> None:
    release = SIGSTORE.release(RIGHT.but(**changes))
    with pytest.raises(UnknownRoot, match=r"; .*\.$"):
        verify_release(release, SIGNER, NOW)
    assert failures(release) == ["signed-release"]


@pytest.mark.parametrize(
    "sigstore",
    [replace(SIGSTORE, fulcio=key()), replace(SIGSTORE, ct=key()), replace(SIGSTORE, rekor=key()), FakeSigstore()],
    ids=["fulcio", "ct", "rekor", "all"],
)
def test_another_sigstore(sigstore: FakeSigstore) -> None:
    with pytest.raises(InvalidSignature, match=r"; .*\.$"):
        verify_release(sigstore.release(RIGHT), SIGNER, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"thief": key()},
        {"logged": False},
        {"purpose": ExtendedKeyUsageOID.SERVER_AUTH},
        {"entered": timedelta(minutes=10)},
        {"entered": -timedelta(minutes=2)},
        {"instead": b"something else"},
    ],
)
def test_signatures_that_do_not_hold(changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidSignature, match=r"; .*\.$"):
        verify_release(SIGSTORE.release(RIGHT.but(**changes)), SIGNER, NOW)


def test_another_payload_under_the_same_signature() -> None:
    bundle = json.loads(encoded(BUNDLE))
    bundle["dsseEnvelope"]["payload"] = b64(statement(OTHER))
    with pytest.raises(InvalidSignature):
        verify_release(encoded(bundle), SIGNER, NOW)


@pytest.mark.parametrize(
    "path",
    [
        ("inclusionPromise",),
        ("inclusionProof",),
        ("inclusionProof", "checkpoint"),
        ("canonicalizedBody",),
        ("kindVersion",),
    ],
)
def test_without_a_part_of_the_log_entry(path: tuple[str, ...]) -> None:
    bundle = json.loads(encoded(BUNDLE))
    place = bundle["verificationMaterial"]["tlogEntries"][0]
    for name in path[:-1]:
        place = place[name]
    del place[path[-1]]
    with pytest.raises((InvalidSignature, MalformedEvidence), match=r"; .*\.$"):
        verify_release(encoded(bundle), SIGNER, NOW)


@pytest.mark.parametrize(
    ("name", "value"),
    [("integratedTime", "1770000000"), ("logIndex", "1"), ("inclusionPromise", {"signedEntryTimestamp": b64(b"x")})],
)
def test_a_log_entry_that_was_changed(name: str, value: object) -> None:
    bundle = json.loads(encoded(BUNDLE))
    bundle["verificationMaterial"]["tlogEntries"][0][name] = value
    with pytest.raises((InvalidSignature, MalformedEvidence)):
        verify_release(encoded(bundle), SIGNER, NOW)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{}",
        statement(),
        statement(TDX, predicateType="https://slsa.dev/provenance/v1"),
        statement(TDX, _type="https://in-toto.io/Statement/v0.1"),
        statement({"family": "tdx", "values": {}}),
        statement({"family": "abacus", "values": {"mrtd": "00"}}),
        statement({"family": "tdx", "values": {"mrtd": ""}}),
        statement({"family": "tdx", "values": {"mrtd": "AB"}}),
        statement({"family": "tdx", "values": {"mrtd": "abc"}}),
        statement({"family": "tdx", "values": {"mrtd": 5}}),
        statement({"family": "tdx"}),
        statement(TDX, predicate=[]),
        b"[" * 100_000,
    ],
)
def test_signed_things_that_are_no_release(payload: bytes) -> None:
    with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
        verify_release(SIGSTORE.release(Signing(payload)), SIGNER, NOW)


def test_another_kind_of_payload() -> None:
    with pytest.raises(MalformedEvidence, match="no in-toto statement"):
        verify_release(SIGSTORE.release(RIGHT.but(kind="text/plain")), SIGNER, NOW)


@pytest.mark.parametrize("document", [b"", b"{}", b"[]", b"\xff", b"{" * 100_000, bytes(MAX_RELEASE_BYTES + 1), b"5"])
def test_documents_that_are_no_bundle(document: bytes) -> None:
    with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
        verify_release(document, SIGNER, NOW)
    assert failures(document) == ["signed-release"]


@settings(deadline=None)
@given(st.integers(0, 5000), st.binary(max_size=20))
def test_noise(at: int, noise: bytes) -> None:
    right = encoded(BUNDLE)
    changed = right[:at] + noise + right[at + len(noise) :]
    with suppress(AttestationError):
        assert verify_release(changed, SIGNER, NOW) == verify_release(right, SIGNER, NOW)


@pytest.mark.parametrize(
    "changes",
    [
        {"identity": ""},
        {"identity": "*"},
        {"identity": "https://github.com/owner*"},
        {"identity": "https://*/x"},
        {"identity": "https://github.com/*/*"},
        {"issuer": ""},
        {"max_age": ""},
        {"max_age": "0d"},
        {"max_age": "9999999d"},
        {"max_age": "400d"},
        {"trusted_root": ""},
        {"trusted_root": "{}"},
        {"trusted_root": "[" * 100_000},
        {"trusted_root": '{"mediaType": 5}'},
    ],
)
def test_policies_that_ask_for_nothing(changes: dict[str, str]) -> None:
    with pytest.raises(InvalidPolicy, match=r"; .*\.$"):
        replace_requirement(**changes)


def test_a_trusted_root_that_sigstore_does_not_read() -> None:
    root = '{"mediaType": "application/vnd.dev.sigstore.trustedroot+json;version=0.1"}'
    with pytest.raises((WrongCollateral, InvalidSignature), match=r"; .*\.$"):
        verify_release(encoded(BUNDLE), replace(SIGNER, trusted_root=root), NOW)
    with pytest.raises(WrongCollateral):
        verify_release(encoded(BUNDLE), replace(SIGNER, trusted_root=root.replace("0.1", "9")), NOW)


def test_the_policy_as_a_file() -> None:
    policy = Policy.all_of(WANTED)
    assert policy_from_toml(to_toml(policy)) == policy
    assert "release.yml" in " ".join(WANTED.sentences())


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sigstore.models", None)
    (failed,) = verdict(encoded(BUNDLE)).failures
    assert "install confide[sigstore]" in failed.seen
