"""AWS Nitro: documents in AWS's format under a root of nobody verify, and nothing else does."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import cbor2
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.check import Outcome
from confide.attest.claims import RootKind, TcbStatus
from confide.attest.evidence import Family
from confide.attest.families.nitro import MAX_DOCUMENT_BYTES
from confide.attest.roots import VENDOR_ROOTS, ProductionRoots, SimulatedRoots
from confide.errors import (
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    WrongCollateral,
)

from .authorities import ec_key, party
from .cases import NOW, flips, refused, truncations
from .forged_nitro import INSTANCE, MADE, PCRS, REGION, ROOT, Fields, enclave, nitro_case


@pytest.mark.parametrize("tagged", [False, True])
def test_what_a_document_says(tagged: bool) -> None:
    claims = nitro_case(Fields(tagged=tagged)).verify()
    assert (claims.family, claims.root, claims.tcb_status) == (Family.NITRO, RootKind.SIMULATED, TcbStatus.UNKNOWN)
    assert claims.report_data == bytes(range(64))
    assert claims.measurements == {f"pcr{index}": value for index, value in PCRS.items()}
    assert claims.identity["nonce"] == b"a client's nonce"
    assert claims.identity["public_key"] == b""
    assert claims.identity["module_id"] == b"i-1-enc1"
    assert claims.valid_until == MADE + timedelta(hours=3)
    assert claims.speaks
    assert not claims.debug
    assert [(check.code, check.outcome) for check in claims.checks] == [("revocation", Outcome.SKIPPED)]


def test_what_an_enclave_leaves_out() -> None:
    claims = nitro_case(user_data="left out", nonce="left out", public_key="left out").verify()
    assert (claims.report_data, claims.identity["nonce"], claims.identity["public_key"]) == (b"", b"", b"")


def test_an_image_of_zeros_is_debug() -> None:
    assert nitro_case(Fields(pcrs=PCRS | {0: bytes(48)})).verify().debug
    assert not nitro_case(Fields(pcrs=PCRS | {1: bytes(48)})).verify().debug


def test_the_root_of_aws_is_another() -> None:
    refused(replace(nitro_case(), roots=ProductionRoots()), UnknownRoot)
    refused(replace(nitro_case(), roots=SimulatedRoots({Family.SNP: ROOT.der})), UnknownRoot)


@pytest.mark.parametrize("step", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_flipped_bytes(step: int) -> None:
    case = nitro_case()
    for raw in flips(case.evidence.raw, step=step):
        if raw[0] != 0x9C:  # an array of another length
            refused(case.with_raw(raw))
    for raw in (*truncations(case.evidence.raw, step=step), case.evidence.raw + b"\0"):
        refused(case.with_raw(raw), MalformedEvidence)


@pytest.mark.parametrize(
    "payload",
    [
        {"module_id": ""},
        {"module_id": b"bytes"},
        {"module_id": "left out"},
        {"digest": "SHA256"},
        {"digest": "left out"},
        {"timestamp": 0},
        {"timestamp": -1},
        {"timestamp": 1 << 63},
        {"timestamp": True},
        {"timestamp": 1.5},
        {"timestamp": "left out"},
        {"pcrs": {}},
        {"pcrs": "left out"},
        {"pcrs": [bytes(48)]},
        {"pcrs": {1: bytes(48)}},
        {"pcrs": {0: bytes(32)}},
        {"pcrs": {0: "0" * 48}},
        {"pcrs": {0: bytes(48), 32: bytes(48)}},
        {"pcrs": {0: bytes(48), -1: bytes(48)}},
        {"pcrs": {0: bytes(48), "1": bytes(48)}},
        {"pcrs": {0: bytes(48), True: bytes(48)}},
        {"pcrs": {index: bytes(48) for index in range(33)}},
        {"certificate": b""},
        {"certificate": "left out"},
        {"cabundle": []},
        {"cabundle": [b""]},
        {"cabundle": [1]},
        {"cabundle": [ROOT.der] * 8},
        {"cabundle": "left out"},
        {"user_data": "text"},
        {"user_data": bytes(1025)},
        {"nonce": bytes(1025)},
        {"public_key": bytes(1025)},
    ],
)
def test_documents_that_are_not_what_aws_says(payload: dict[str, Any]) -> None:
    refused(nitro_case(**payload), MalformedEvidence)


@pytest.mark.parametrize("header", [{}, {1: -7}, {1: -35, 4: b"kid"}, [1, -35], b"", b"\xa1"])
def test_other_algorithms(header: Any) -> None:
    refused(nitro_case(Fields(header=header)), MalformedEvidence)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        cbor2.dumps([]),
        cbor2.dumps([b"", {}, b"", bytes(96), b""]),
        cbor2.dumps([b"", {}, b"", bytes(64)]),
        cbor2.dumps([b"", [], b"", bytes(96)]),
        cbor2.dumps(cbor2.CBORTag(98, [b"", {}, b"", bytes(96)])),
        cbor2.dumps([cbor2.dumps({1: -35}), {}, cbor2.dumps([1]), bytes(96)]),
        b"\x9f\xff",
        b"\x81" * 5000,
        b"\x9b" + b"\xff" * 8,
        b"\x5b" + b"\xff" * 8,
        bytes(MAX_DOCUMENT_BYTES + 1),
    ],
)
def test_what_is_no_document(raw: bytes) -> None:
    refused(nitro_case().with_raw(raw), MalformedEvidence)


def test_another_signer_and_other_chains() -> None:
    refused(nitro_case(certificate=enclave(key=ec_key("other")).der), InvalidSignature)
    refused(nitro_case(Fields(bundle=(ROOT, REGION))), WrongCollateral)
    refused(nitro_case(Fields(bundle=(INSTANCE, REGION))), WrongCollateral)
    nitro_case(Fields(bundle=(INSTANCE, ROOT, REGION))).verify()
    impostor = party(INSTANCE.certificate.subject.rfc4514_string()[3:], ec_key("impostor"), REGION)
    refused(nitro_case(signer=enclave(issuer=impostor)), InvalidSignature)
    refused(nitro_case(signer=enclave(key=ec_key("p256", ec.SECP256R1))), MalformedEvidence)


def test_time() -> None:
    case = nitro_case()
    replace(case, now=MADE + timedelta(hours=3)).verify()
    refused(replace(case, now=MADE + timedelta(hours=3, seconds=1)), OutsideValidity)
    nitro_case(Fields(made=NOW + timedelta(minutes=4))).verify()  # the clocks of two parties
    refused(nitro_case(Fields(made=NOW + timedelta(minutes=6))), OutsideValidity)
    refused(nitro_case(Fields(made=MADE - timedelta(minutes=10))), OutsideValidity)
    expired = party("region.aws.nitro-enclaves", ec_key("nitro region"), ROOT, end=NOW - timedelta(1))
    refused(nitro_case(Fields(bundle=(ROOT, expired, INSTANCE))), OutsideValidity)


@settings(deadline=None)
@given(st.binary(max_size=300), st.integers(0, 2000))
def test_noise(noise: bytes, at: int) -> None:
    case = nitro_case()
    raw = case.evidence.raw
    refused(case.with_raw(noise))
    changed = raw[:at] + noise + raw[at + len(noise) :]
    if changed != raw:
        refused(case.with_raw(changed))


def test_the_pinned_root_is_the_one_of_awss_documentation() -> None:
    """The certificate itself was not at hand; this is the fingerprint as AWS prints it."""
    printed = "64:1A:03:21:A3:E2:44:EF:E4:56:46:31:95:D6:06:31:7E:D7:CD:CC:3C:17:56:E0:98:93:F3:C6:8F:79:BB:5B"
    assert VENDOR_ROOTS[Family.NITRO] == {printed.replace(":", "").lower()}
