"""GPU reports: a real one of a Hopper verifies, and nothing else does."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.errors import (
    AttestationError,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    Revoked,
    UnknownRoot,
    WrongCollateral,
)

from .authorities import YEAR, crl, ec_key, pem, pem_of
from .cases import NOW, Case, flips, refused, truncations
from .forged_nvidia import BLOCKS, DEVICE, FIELDS, LEAF, ROOT, Messages, block, gpu_case, leaf


@pytest.fixture(scope="module")
def hopper(test_data: Path) -> Case:
    folder = test_data / "evidence" / "nvidia"
    evidence = Evidence(Family.NVIDIA, bytes.fromhex((folder / "hopper_report.txt").read_text()))
    return Case(evidence, Collateral({"chain": (folder / "hopper_cert_chain.txt").read_bytes()}), ProductionRoots())


def test_hopper_report(hopper: Case) -> None:
    claims = hopper.verify()
    assert (claims.root, claims.tcb_status) == (RootKind.PRODUCTION, TcbStatus.UNKNOWN)
    assert claims.report_data == hopper.evidence.raw[4:36]
    assert len(claims.measurements) == 64
    assert claims.measurements["block2"].hex().startswith("8048dfd18fe229bf")
    assert claims.identity["driver_version"] == b"550.90.07"
    assert claims.identity["vbios_version"] == b"96.00.9F.00.01"
    assert claims.identity["device"] == b"NVIDIA:GH100:48B02D92494BADF4"
    assert claims.valid_until == datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)


def test_some_bytes(hopper: Case) -> None:
    for raw in flips(hopper.evidence.raw, step=7):
        refused(hopper.with_raw(raw))


@pytest.mark.slow
def test_every_byte(hopper: Case) -> None:
    for raw in flips(hopper.evidence.raw):
        refused(hopper.with_raw(raw))


def test_every_truncation(hopper: Case) -> None:
    for raw in (*truncations(hopper.evidence.raw), hopper.evidence.raw + b"\0"):
        refused(hopper.with_raw(raw), MalformedEvidence)


def test_every_byte_of_each_certificate(hopper: Case) -> None:
    chain = x509.load_pem_x509_certificates(hopper.collateral.documents["chain"])
    ders = [one.public_bytes(Encoding.DER) for one in chain]
    for at, der in enumerate(ders):
        for changed in flips(der):
            documents = [*ders[:at], changed, *ders[at + 1 :]]
            refused(hopper.with_documents(chain=pem_of(*documents)))


def test_chain_in_wrong_order_or_incomplete(hopper: Case) -> None:
    chain = x509.load_pem_x509_certificates(hopper.collateral.documents["chain"])
    ders = [one.public_bytes(Encoding.DER) for one in chain]
    refused(hopper.with_documents(chain=pem_of(*reversed(ders))), UnknownRoot)
    refused(hopper.with_documents(chain=pem_of(*ders[:-1])), UnknownRoot)
    refused(hopper.with_documents(chain=pem_of(*ders[1:])), InvalidSignature)
    refused(hopper.with_documents(chain=pem_of(ders[0], *ders[2:])), InvalidSignature)
    refused(hopper.without_document("chain"), WrongCollateral)


def test_hopper_outside_validity(hopper: Case) -> None:
    refused(replace(hopper, now=datetime(2020, 10, 16, tzinfo=UTC)), OutsideValidity)


def test_simulated_report() -> None:
    claims = gpu_case().verify()
    assert claims.root is RootKind.SIMULATED
    assert claims.measurements == {f"block{index}": value for index, value in BLOCKS.items()}
    assert claims.identity["driver_version"] == b"550.1"
    assert claims.identity["device"] == b"V:G:1"


def test_roots(hopper: Case) -> None:
    refused(replace(gpu_case(), roots=ProductionRoots()), UnknownRoot)
    refused(replace(hopper, roots=SimulatedRoots({Family.NVIDIA: ROOT.der})), UnknownRoot)


@pytest.mark.parametrize(
    "messages",
    [
        Messages(request=b"\x12\xe0\x01\xff"),
        Messages(request=b"\x11\xe1\x01\xff"),
        Messages(request=b"\x11\xe0\x00\xff"),
        Messages(response=b"\x12\x60\x00\x00"),
        Messages(response=b"\x11\x61\x00\x00"),
        Messages(count=1),
        Messages(count=3),
        Messages(record=block(1, bytes(48)) * 2),
        Messages(record=block(1, bytes(48), specification=2) + block(2, b"")),
        Messages(tail=b"\3\0\0\0"),
        Messages(tail=b"\3\0\xff"),
    ],
)
def test_messages_that_are_not_spdm(messages: Messages) -> None:
    refused(gpu_case(messages), MalformedEvidence)


def test_other_firmware_than_certified() -> None:
    refused(gpu_case(Messages(fields=FIELDS | {20: bytes(48)})), InvalidSignature)
    refused(gpu_case(Messages(fields=FIELDS | {20: b""})), InvalidSignature)
    refused(gpu_case(Messages(fields={3: b"550"})), InvalidSignature)


def test_key_of_another_kind() -> None:
    refused(gpu_case(signer=leaf("p256", key=ec_key("p256", ec.SECP256R1))), WrongCollateral)


def test_signed_by_another_gpu() -> None:
    refused(gpu_case().with_documents(chain=pem(leaf("another"), DEVICE, ROOT)), InvalidSignature)


@pytest.mark.parametrize(("begin", "end"), [(NOW - YEAR, NOW - timedelta(1)), (NOW + timedelta(1), NOW + YEAR)])
def test_validity(begin: datetime, end: datetime) -> None:
    refused(gpu_case(signer=leaf(begin=begin, end=end)), OutsideValidity)


def test_revocation() -> None:
    assert gpu_case().with_documents(crl=crl(ROOT, 99)).verify()
    refused(gpu_case().with_documents(crl=crl(ROOT, 31)), Revoked)
    refused(gpu_case().with_documents(crl=crl(DEVICE, LEAF.certificate.serial_number)), Revoked)


@settings(deadline=None)
@given(st.binary(max_size=600))
def test_noise(noise: bytes) -> None:
    case = gpu_case()
    refused(case.with_raw(noise))
    refused(case.with_raw(case.evidence.raw[:40] + noise))
    refused(case.with_documents(chain=noise))


@settings(deadline=None)
@given(st.integers(0, 500), st.binary(min_size=1, max_size=40))
def test_noise_within(at: int, noise: bytes) -> None:
    case = gpu_case()
    raw = case.evidence.raw
    changed = raw[:at] + noise + raw[at + len(noise) :]
    if changed != raw:
        refused(case.with_raw(changed), AttestationError)
