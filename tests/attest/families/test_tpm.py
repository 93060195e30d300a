"""TPM quotes: a real one verifies, locally made ones of every scheme do, and nothing else does."""

import json
from base64 import b64decode
from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity, Revoked, UnknownRoot, WrongCollateral

from .authorities import crl, ec_key, party, pem
from .cases import NOW, Case, flips, refused, truncations
from .forged_tpm import (
    ECDSA,
    NONCE,
    PCRS,
    RSAPSS,
    RSASSA,
    SELECTION,
    SHA256,
    SHA384,
    enrolled,
    public,
    quote,
    rsa_ak,
    signature,
    tpm_case,
)

ROOT = party("vTPM root", ec_key("vtpm root"), serial=20)
AUTHORITY = party("vTPM authority", ec_key("vtpm authority"), ROOT, serial=21)
AK = party("AK", ec_key("ak", ec.SECP256R1), AUTHORITY, ca=False, serial=22)


@pytest.fixture(scope="module")
def real(test_data: Path) -> Case:
    document = json.loads((test_data / "evidence" / "tpm" / "evidence.json").read_text())
    given, key = document["tpm_quote"], b64decode(document["ak_public"])
    parts = {"signature": b64decode(given["signature"]), "pcrs": bytes.fromhex("".join(given["pcrs"]))}
    evidence = Evidence(Family.TPM, b64decode(given["message"]), parts)
    return Case(evidence, Collateral({"ak": key}), ProductionRoots(attestation_keys=enrolled(key)))


@pytest.fixture(scope="module")
def certified() -> Case:
    documents = {"ak": AK.der, "chain": pem(AUTHORITY, ROOT)}
    return replace(tpm_case(), collateral=Collateral(documents), roots=SimulatedRoots({Family.TPM: ROOT.der}))


def test_real_quote(real: Case) -> None:
    claims = real.verify()
    assert (claims.root, claims.tcb_status, claims.debug) == (RootKind.PRODUCTION, TcbStatus.UNKNOWN, False)
    assert len(claims.measurements) == 24
    assert claims.measurements["pcr0"] == bytes(32)
    assert claims.measurements["pcr17"] == b"\xff" * 32
    assert claims.report_data.hex().startswith("a04182b506878d4f")
    assert claims.identity["ak"] == sha256(real.collateral.documents["ak"]).digest()


def test_real_quote_every_byte(real: Case) -> None:
    for raw in (*flips(real.evidence.raw), *truncations(real.evidence.raw), real.evidence.raw + b"\0"):
        refused(real.with_raw(raw))
    for name in ("signature", "pcrs"):
        part = real.evidence.parts[name]
        for changed in (*flips(part), *truncations(part), part + b"\0"):
            refused(real.with_parts(**{name: changed}))


def test_real_key_is_not_trusted_by_itself(real: Case) -> None:
    refused(replace(real, roots=ProductionRoots()), UnknownRoot)
    refused(replace(real, roots=SimulatedRoots()), UnknownRoot)
    refused(real.without_document("ak"), WrongCollateral)
    for key in (*flips(real.collateral.documents["ak"]), *truncations(real.collateral.documents["ak"])):
        refused(real.with_documents(ak=key))


@pytest.mark.parametrize("name", ["signature", "pcrs"])
def test_missing_parts(name: str) -> None:
    case = tpm_case()
    parts = {key: value for key, value in case.evidence.parts.items() if key != name}
    refused(replace(case, evidence=replace(case.evidence, parts=parts)), MalformedEvidence)


@pytest.mark.parametrize(
    "case",
    [
        tpm_case(),
        tpm_case(key=rsa_ak(), scheme=RSASSA),
        tpm_case(key=rsa_ak(), scheme=RSAPSS),
        tpm_case(key=ec_key("ak384"), message=quote(digest="sha384"), hash_id=SHA384),
    ],
)
def test_schemes(case: Case) -> None:
    claims = case.verify()
    assert claims.root is RootKind.SIMULATED
    assert claims.report_data == NONCE
    assert claims.measurements == {"pcr0": PCRS[:32], "pcr7": PCRS[32:]}


def test_banks_are_named() -> None:
    pcrs = bytes(48) + b"\1" * 32
    message = quote(pcrs, ((SHA384, b"\0\1"), (SHA256, b"\1")))
    assert tpm_case(message, pcrs=pcrs).verify().measurements == {"sha384.pcr8": bytes(48), "pcr0": b"\1" * 32}


def test_pem_key_is_as_good() -> None:
    case = tpm_case()
    key = load_der_public_key(case.collateral.documents["ak"])
    assert case.with_documents(ak=key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)).verify()


def test_other_pcr_values() -> None:
    refused(tpm_case().with_parts(pcrs=PCRS[32:] + PCRS[:32]), InvalidSignature)
    refused(tpm_case().with_parts(pcrs=PCRS[:32]), MalformedEvidence)
    refused(tpm_case(quote(bytes(64))), InvalidSignature)


@pytest.mark.parametrize(
    "selection",
    [SELECTION * 2, ((0x0012, b"\x81"),), ((SHA256, b"\x81\0\0\0\0"),), tuple((bank, b"") for bank in range(9))],
)
def test_selections_that_no_quote_has(selection: tuple[tuple[int, bytes], ...]) -> None:
    refused(tpm_case(quote(selection=selection)), MalformedEvidence)


def test_data_that_no_tpm_made() -> None:
    refused(tpm_case(b"\0" + quote()[1:]), MalformedEvidence)
    certify = quote()[:4] + b"\x80\x17" + quote()[6:]
    refused(tpm_case(certify), MalformedEvidence)


def test_signature_schemes_that_do_not_count() -> None:
    case = tpm_case()
    made = case.evidence.parts["signature"]
    refused(case.with_parts(signature=made[:2] + b"\0\4" + made[4:]), MalformedEvidence)
    refused(case.with_parts(signature=b"\0\5" + made[2:]), MalformedEvidence)
    refused(case.with_parts(signature=signature(quote(), rsa_ak())), WrongCollateral)
    refused(tpm_case(key=rsa_ak()).with_parts(signature=made), WrongCollateral)
    assert made[:2] == ECDSA.to_bytes(2, "big")


def test_key_of_another_kind() -> None:
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    case = tpm_case().with_documents(ak=der)
    refused(replace(case, roots=SimulatedRoots(attestation_keys=enrolled(der))), WrongCollateral)


def test_certified_key(certified: Case) -> None:
    assert certified.verify().valid_until == AK.certificate.not_valid_after_utc
    refused(replace(certified, now=NOW + timedelta(days=400)), OutsideValidity)
    refused(replace(certified, now=NOW - timedelta(days=400)), OutsideValidity)
    refused(certified.without_document("chain"), UnknownRoot)
    refused(replace(certified, roots=ProductionRoots()), UnknownRoot)
    refused(certified.with_documents(crl=crl(AUTHORITY, 22)), Revoked)
    assert certified.with_documents(crl=crl(AUTHORITY, 23)).verify()


def test_roots_that_the_author_accepts(certified: Case) -> None:
    root = ROOT.certificate.fingerprint(hashes.SHA256()).hex()
    accepted = ProductionRoots(attestation_key_roots=frozenset({root}))
    assert replace(certified, roots=accepted).verify().root is RootKind.PRODUCTION


def test_enrolled_key_in_a_certificate_needs_no_chain() -> None:
    case = tpm_case().with_documents(ak=AK.der)
    assert case.verify().valid_until is None
    assert case.verify().identity["ak"] == sha256(public(AK.key)).digest()


def test_certificate_of_another_key(certified: Case) -> None:
    other = party("AK", ec_key("other", ec.SECP256R1), AUTHORITY, ca=False)
    refused(certified.with_documents(ak=other.der), InvalidSignature)


@settings(deadline=None)
@given(st.binary(max_size=400))
def test_noise(noise: bytes) -> None:
    case = tpm_case()
    refused(case.with_raw(noise))
    refused(case.with_raw(quote()[:6] + noise))
    refused(case.with_parts(signature=noise))
    refused(case.with_parts(pcrs=noise))
    refused(case.with_documents(ak=noise))
