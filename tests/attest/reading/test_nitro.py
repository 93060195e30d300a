from pathlib import Path

import cbor2
import pytest
from tests.attest.families.cases import NOW
from tests.attest.families.forged_nitro import nitro_case
from tests.attest.reading.fake_nsm import FakeNsm

from confide.attest.collateral import Collateral
from confide.attest.evidence import Family
from confide.attest.families import nitro
from confide.attest.reading.nitro import ANSWER_BYTES, Nsm
from confide.enclave.workload import Workload
from confide.errors import EvidenceUnavailable, NoTrustedEnvironment

REPORT_DATA = bytes(range(64))


@pytest.fixture
def device(tmp_path: Path) -> Path:
    path = tmp_path / "nsm"
    path.touch()
    return path


def test_the_document_carries_the_report_data_and_verifies(device: Path) -> None:
    module = FakeNsm()
    evidence = Nsm(device, module.ioctl).read(REPORT_DATA)
    assert module.asked == [{"Attestation": {"user_data": REPORT_DATA, "nonce": None, "public_key": None}}]
    claims = nitro.verify(evidence, Collateral(), nitro_case().roots, NOW)
    assert (evidence.family, claims.report_data) == (Family.NITRO, REPORT_DATA)


def test_a_workload_s_statement_is_bound_by_it(device: Path) -> None:
    """Its nonce and keys are in the statement, whose digest is the document's user data."""
    workload = Workload(Nsm(device, FakeNsm().ioctl), model_digest="ab" * 32)
    shown = workload.attest("cd" * 32)
    claims = nitro.verify(shown.evidence.thaw(), Collateral(), nitro_case().roots, NOW)
    assert shown.statement.is_bound_by(claims.report_data, Family.NITRO)
    assert not workload.attest("ef" * 32).statement.is_bound_by(claims.report_data, Family.NITRO)


def test_report_data_is_never_padded(device: Path) -> None:
    with pytest.raises(ValueError, match="64 bytes"):
        Nsm(device, FakeNsm().ioctl).read(b"short")


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        (cbor2.dumps({"Error": "InternalError\x1b[2J"}), r"'InternalError\\x1b\[2J'"),
        (cbor2.dumps({"Attestation": {"document": b""}}), "no document"),
        (cbor2.dumps({"Attestation": {"document": "text"}}), "no document"),
        (cbor2.dumps("DescribeNSM"), "no document"),
        (cbor2.dumps([[[[[[[[[[1]]]]]]]]]]), "not CBOR"),
        (b"", "not CBOR"),
        (cbor2.dumps({"Error": "InvalidArgument"}) + b"\0", "something behind"),
    ],
    ids=range(7),
)
def test_what_is_no_document_is_refused(device: Path, answer: bytes, says: str) -> None:
    with pytest.raises(EvidenceUnavailable, match=says) as raised:
        Nsm(device, FakeNsm(lambda _: answer).ioctl).read(REPORT_DATA)
    assert "\x1b" not in str(raised.value)


def test_no_more_is_read_than_there_was_room_for(device: Path) -> None:
    long = cbor2.dumps({"Attestation": {"document": bytes(2 * ANSWER_BYTES)}})
    with pytest.raises(EvidenceUnavailable, match="not CBOR"):
        Nsm(device, FakeNsm(lambda _: long, longer=1 << 40).ioctl).read(REPORT_DATA)


def test_a_driver_that_gives_up_is_said(device: Path) -> None:
    with pytest.raises(EvidenceUnavailable, match="does not answer \\(the driver gave up\\)"):
        Nsm(device, FakeNsm(fails=110).ioctl).read(REPORT_DATA)
    with pytest.raises(EvidenceUnavailable, match="Inappropriate ioctl"):
        Nsm(device).read(REPORT_DATA)  # a file, which is no such device


def test_no_device_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(NoTrustedEnvironment, match="confide tee simulate init"):
        Nsm(tmp_path / "nsm").check()
    (tmp_path / "nsm").mkdir()
    with pytest.raises(EvidenceUnavailable, match="cannot be opened"):
        Nsm(tmp_path / "nsm").check()
