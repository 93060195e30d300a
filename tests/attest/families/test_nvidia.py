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

from confide.attest.check import Outcome
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families.nvidia_report import MAX_REPORT_BYTES
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

from .authorities import YEAR, crl, ec_key, opaque, pem, pem_of
from .cases import NOW, Case, flips, refused, truncations
from .forged_nvidia import (
    BLOCKS,
    DEVICE,
    FIELDS,
    FIRMWARE,
    LEAF,
    ROOT,
    Messages,
    block,
    device_id,
    gpu_case,
    leaf,
    tcb_info,
)


def real(test_data: Path, name: str) -> Case:
    folder = test_data / "evidence" / "nvidia"
    evidence = Evidence(Family.NVIDIA, bytes.fromhex((folder / f"{name}_report.txt").read_text()))
    return Case(evidence, Collateral({"chain": (folder / f"{name}_cert_chain.txt").read_bytes()}), ProductionRoots())


@pytest.fixture(scope="module")
def hopper(test_data: Path) -> Case:
    return real(test_data, "hopper")


@pytest.fixture(scope="module")
def blackwell(test_data: Path) -> Case:
    return real(test_data, "blackwell")


def outcomes(claims: Claims) -> dict[str, Outcome]:
    return {one.code: one.outcome for one in claims.checks if one.code not in ("chain", "signature")}


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
    for raw in flips(hopper.evidence.raw, step=29):
        refused(hopper.with_raw(raw))


@pytest.mark.slow
def test_every_byte(hopper: Case) -> None:
    for raw in flips(hopper.evidence.raw):
        refused(hopper.with_raw(raw))


def test_every_truncation(hopper: Case) -> None:
    for raw in truncations(hopper.evidence.raw):
        refused(hopper.with_raw(raw), MalformedEvidence)


def test_zeros_behind_the_end_are_no_part_of_a_report(hopper: Case) -> None:
    raw = hopper.evidence.raw
    for padded in (raw + b"\0", raw.ljust(8192, b"\0")):
        assert hopper.with_raw(padded).verify() == hopper.verify()
    for longer in (raw + b"\1", raw + b"\0\1", raw.ljust(8191, b"\0") + b"\1", raw.ljust(MAX_REPORT_BYTES + 1, b"\0")):
        refused(hopper.with_raw(longer), MalformedEvidence)


def test_blackwell_report(blackwell: Case) -> None:
    claims = blackwell.verify()
    assert (claims.root, claims.speaks) == (RootKind.PRODUCTION, False)
    assert claims.identity["driver_version"] == b"575.32"
    assert claims.identity["vbios_version"] == b"97.00.88.00.0F"
    assert claims.identity["device"].startswith(b"NVIDIA:GB100:")
    assert outcomes(claims) == {
        "nvidia-firmware": Outcome.PASS,
        "revocation": Outcome.SKIPPED,
        "nvidia-measurements": Outcome.SKIPPED,
    }
    for raw in flips(blackwell.evidence.raw, step=101):
        refused(blackwell.with_raw(raw))


def test_what_a_report_lacks_is_no_pass_and_it_speaks_for_nobody(hopper: Case) -> None:
    claims = hopper.verify()
    assert outcomes(claims) == {
        "nvidia-firmware": Outcome.PASS,
        "revocation": Outcome.SKIPPED,
        "nvidia-measurements": Outcome.SKIPPED,
    }
    assert not claims.speaks


@pytest.mark.slow
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
    assert claims.identity["device"] == b"V:GH100:1"


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
    refused(gpu_case(signer=leaf("other", device_id(bytes(48)))), InvalidSignature)
    refused(gpu_case(signer=leaf("other", tcb_info(bytes(48), FIRMWARE))), InvalidSignature)
    refused(gpu_case(signer=leaf("other", device_id(FIRMWARE), tcb_info(bytes(48)))), InvalidSignature)
    assert outcomes(gpu_case(signer=leaf("new", tcb_info(FIRMWARE, bytes(48)))).verify())["nvidia-firmware"] == "pass"


def test_firmware_that_nobody_names_is_unknown() -> None:
    other = opaque("1.2.3", b"\5\0")
    for case in (gpu_case(Messages(fields={3: b"550"})), gpu_case(signer=leaf("old", other))):
        assert outcomes(case.verify())["nvidia-firmware"] is Outcome.SKIPPED


@pytest.mark.parametrize("value", [b"", b"\x30\x00", b"\x30\x04\xa6\x02\x30\x00", b"\x30\x80\x00\x00", b"\x04\x30"])
def test_firmware_that_is_named_in_no_known_way(value: bytes) -> None:
    for oid in ("2.23.133.5.4.1", "2.23.133.5.4.1.1"):
        refused(gpu_case(signer=leaf("odd", opaque(oid, value))), MalformedEvidence)


def test_key_of_another_kind() -> None:
    refused(gpu_case(signer=leaf("p256", key=ec_key("p256", ec.SECP256R1))), WrongCollateral)


def test_signed_by_another_gpu() -> None:
    refused(gpu_case().with_documents(chain=pem(leaf("another"), DEVICE, ROOT)), InvalidSignature)


@pytest.mark.parametrize(("begin", "end"), [(NOW - YEAR, NOW - timedelta(1)), (NOW + timedelta(1), NOW + YEAR)])
def test_validity(begin: datetime, end: datetime) -> None:
    refused(gpu_case(signer=leaf(begin=begin, end=end)), OutsideValidity)


def test_revocation() -> None:
    assert outcomes(gpu_case().verify())["revocation"] is Outcome.SKIPPED
    assert outcomes(gpu_case().with_documents(crl=crl(ROOT, 99)).verify())["revocation"] is Outcome.PASS
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
    if changed.rstrip(b"\0") != raw.rstrip(b"\0"):
        refused(case.with_raw(changed), AttestationError)
