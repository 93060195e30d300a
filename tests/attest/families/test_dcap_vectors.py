"""Real quotes of SGX and TDX, with the results that are known for them."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from tests.attest.families.conftest import Case

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Family
from confide.attest.families.dcap_quote import Quote
from confide.attest.families.dcap_signature import SignatureOnly, parse
from confide.errors import (
    AttestationError,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    UnknownRoot,
    UnknownTcb,
    WrongCollateral,
)

Vectors = Callable[[str], Case]
GOOD = ["sgx-v3", "tdx-v4", "tdx-v5"]


def test_sgx_v3(vectors: Vectors) -> None:
    claims = vectors("sgx-v3").verify()
    assert claims.tcb_status is TcbStatus.CONFIGURATION_AND_SW_HARDENING_NEEDED
    assert (claims.family, claims.root, claims.debug) == (Family.SGX, RootKind.PRODUCTION, False)
    assert claims.report_data.rstrip(b"\0") == b"Hello, world!"
    assert claims.advisories == ("INTEL-SA-00289", "INTEL-SA-00615")
    assert claims.measurements["mrenclave"].hex().startswith("33d8736db756ed49")
    assert claims.measurements["isvprodid"] == b"\0\0"
    assert claims.identity["fmspc"].hex() == "00a067110000"
    assert len(claims.identity["ppid"]) == 16
    assert claims.tcb_date == datetime(2024, 3, 13, tzinfo=UTC)


@pytest.mark.parametrize("name", ["tdx-v4", "tdx-v5"])
def test_tdx(vectors: Vectors, name: str) -> None:
    case = vectors(name)
    claims = case.verify()
    assert (claims.tcb_status, claims.debug, claims.advisories) == (TcbStatus.UP_TO_DATE, False, ())
    assert claims.valid_until is not None
    assert claims.valid_until > case.now
    assert {len(claims.measurements[name]) for name in ("mrtd", "rtmr0", "rtmr3", "mrseam", "mrowner")} == {48}
    assert ("mrservicetd" in claims.measurements) == (name == "tdx-v5")


def test_a_platform_older_than_every_level_is_refused(vectors: Vectors) -> None:
    with pytest.raises(UnknownTcb):
        vectors("tdx-v5-outdated").verify()


def test_a_debug_quote_without_collateral_is_checked_for_its_signatures_alone(test_data: Path) -> None:
    path = test_data / "evidence/tdx/quote_v4_debug_td.bin"
    if not path.exists():
        pytest.skip(f"{path} is not there")
    found = parse(path.read_bytes())
    assert isinstance(found, SignatureOnly)
    assert found.debug
    assert (found.family, found.version, found.root) == (Family.TDX, 4, RootKind.PRODUCTION)
    assert "signature and structure alone" in found.says


@pytest.mark.parametrize("name", GOOD)
def test_the_two_readings_agree(vectors: Vectors, name: str) -> None:
    case = vectors(name)
    found, claims = parse(case.evidence.raw), case.verify()
    assert found.measurements == claims.measurements
    assert found.report_data == claims.report_data


@pytest.mark.parametrize("name", GOOD)
def test_padding_is_tolerated_and_every_truncation_refused(vectors: Vectors, name: str) -> None:
    case = vectors(name)
    end = Quote.parse(case.evidence.raw).end
    whole = case.verify()
    assert case.with_raw(case.evidence.raw[:end]).verify() == whole
    assert case.with_raw(case.evidence.raw[:end] + bytes(1000)).verify() == whole
    for length in range(end):
        with pytest.raises(MalformedEvidence):
            case.with_raw(case.evidence.raw[:length]).verify()
        with pytest.raises(MalformedEvidence):
            parse(case.evidence.raw[:length])


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", GOOD)
def test_flipped_bytes_under_a_signature_are_refused(vectors: Vectors, name: str, step: int) -> None:
    case = vectors(name)
    raw = case.evidence.raw
    quote = Quote.parse(raw)
    # Behind the report: signatures, the quoting enclave's report and the chain; its root is known, and so not read.
    leaves = raw.index(quote.chain) + quote.chain.rindex(b"-----BEGIN")
    for at in [*range(0, len(quote.signed), step), *range(len(quote.signed) + 4, leaves, 7 * step)]:
        bad = raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]
        if not _whitespace(raw, at):
            with pytest.raises(AttestationError):
                case.with_raw(bad).verify()
            with pytest.raises(AttestationError):
                parse(bad)


def _whitespace(raw: bytes, at: int) -> bool:
    """A byte of the PEM text whose change need not change the certificate."""
    return raw[at] in b"\r\n-"


@pytest.mark.parametrize("name", GOOD)
def test_a_flip_in_the_report_is_a_wrong_signature(vectors: Vectors, name: str) -> None:
    case = vectors(name)
    raw = bytearray(case.evidence.raw)
    raw[len(Quote.parse(bytes(raw)).signed) - 1] ^= 1
    with pytest.raises(InvalidSignature):
        case.with_raw(bytes(raw)).verify()
    with pytest.raises(InvalidSignature):
        parse(bytes(raw))


@pytest.mark.parametrize("name", GOOD)
@pytest.mark.parametrize("days", [-365 * 20, -365, -40, 40, 365, 365 * 40, 365 * 300])
def test_at_another_time_it_is_refused(vectors: Vectors, name: str, days: int) -> None:
    case = vectors(name)
    with pytest.raises(OutsideValidity):
        replace(case, now=case.now + timedelta(days=days)).verify()


@pytest.mark.parametrize(("name", "other"), [("sgx-v3", "tdx-v4"), ("tdx-v4", "sgx-v3")])
def test_collateral_of_another_kind_is_refused(vectors: Vectors, name: str, other: str) -> None:
    with pytest.raises(WrongCollateral):
        replace(vectors(name), collateral=vectors(other).collateral).verify()


def test_a_revocation_list_of_another_issuer_is_refused(vectors: Vectors) -> None:
    case = vectors("tdx-v4")
    mine, other = (json.loads(vectors(name).collateral.documents["dcap"]) for name in ("tdx-v4", "sgx-v3"))
    swapped = Collateral({"dcap": json.dumps(mine | {"pck_crl": other["pck_crl"]}).encode()})
    with pytest.raises(WrongCollateral):
        replace(case, collateral=swapped).verify()


def test_collateral_of_another_platform_is_refused(vectors: Vectors, test_data: Path) -> None:
    case = vectors("tdx-v4")
    other = (test_data / "evidence/tdx/quote_v4_debug_td.bin").read_bytes()
    with pytest.raises(WrongCollateral):
        case.with_raw(other).verify()


def test_a_quote_of_another_family_is_refused(vectors: Vectors) -> None:
    case = vectors("tdx-v4")
    with pytest.raises(MalformedEvidence):
        replace(case, evidence=replace(case.evidence, family=Family.SGX)).verify()


def test_simulated_roots_refuse_intels_evidence(vectors: Vectors, simulated: Case) -> None:
    with pytest.raises(UnknownRoot):
        replace(vectors("tdx-v4"), roots=simulated.roots).verify()
