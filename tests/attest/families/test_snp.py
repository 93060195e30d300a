"""SEV-SNP: AMD's own reports verify as they should, and nothing else does."""

import json
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.utils import CryptographyDeprecationWarning
from hypothesis import given, settings
from hypothesis import strategies as st

from confide.attest.chain import verify_chain
from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import Policy, appraise
from confide.attest.requirements import Snp, SnpTcb
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

from .authorities import YEAR, Party, crl, ec_key, party, pem, pem_of, rsa_key
from .cases import NOW, Case, flips, refused, truncations
from .forged_snp import ARK, ASK, ASVK, CHIP, GENOA, MILAN, TCB, TURIN, Fields, Line, leaf, snp_case

GENOA_ROOTS = SimulatedRoots({Family.SNP: GENOA.ark.der})


@pytest.fixture(scope="module")
def folder(test_data: Path) -> Path:
    return test_data / "evidence" / "snp"


@pytest.fixture(scope="module")
def milan(folder: Path) -> Case:
    documents = {
        "vcek": (folder / "vcek_milan.der").read_bytes(),
        "chain": (folder / "ask_ark_milan.pem").read_bytes(),
    }
    evidence = Evidence(Family.SNP, (folder / "report_v2_milan.bin").read_bytes())
    return Case(evidence, Collateral(documents), ProductionRoots())


@pytest.fixture(scope="module")
def vlek(folder: Path) -> Case:
    documents = {
        "vlek": (folder / "vlek.der").read_bytes(),
        "chain": (folder / "ask_ark_milan_vlek.pem").read_bytes(),
    }
    evidence = Evidence(Family.SNP, (folder / "report_v3_vlek.bin").read_bytes())
    return Case(evidence, Collateral(documents), ProductionRoots(), datetime(2025, 10, 1, tzinfo=UTC))


def test_milan_report(milan: Case) -> None:
    claims = milan.verify()
    raw = milan.evidence.raw
    assert (claims.family, claims.root, claims.tcb_status) == (Family.SNP, RootKind.PRODUCTION, TcbStatus.UNKNOWN)
    assert claims.report_data == raw[0x50:0x90]
    assert claims.measurements["measurement"] == raw[0x90:0xC0]
    assert claims.identity["chip_id"] == raw[0x1A0:0x1E0]
    assert not claims.debug
    assert claims.identity["policy"].hex() == "000000000003001f"
    assert {name: claims.versions[name] for name in ("bootloader", "tee", "snp", "microcode")} == {
        "bootloader": 3,
        "tee": 0,
        "snp": 8,
        "microcode": 0x73,
    }
    assert claims.versions["firmware"] == 0x013404  # 1.52, build 4
    assert claims.valid_until == datetime(2030, 1, 24, 17, 58, 26, tzinfo=UTC)


def test_a_genuine_report_of_old_microcode_is_not_trusted_unless_the_policy_says_so(milan: Case) -> None:
    def failed(policy: Policy) -> list[str]:
        return [check.code for check in appraise(milan.verify(), policy, milan.now).failures]

    assert failed(Policy()) == ["tcb-status", "revocation"]
    lists = Exceptions(revocation="if-available")
    assert failed(Policy(exceptions=lists)) == ["tcb-status"]
    assert failed(Policy((Snp(min_tcb=SnpTcb(snp=8, microcode=116)),), exceptions=lists))
    assert not failed(Policy((Snp(min_tcb=SnpTcb(snp=8, microcode=115)),), exceptions=lists))


def test_vlek_report(vlek: Case) -> None:
    claims = vlek.verify()
    assert claims.identity["provider"] == b"CN=cc-us-east-2.amazonaws.com"
    assert claims.identity["signer"] == b"vlek"
    assert claims.versions["microcode"] == 0xD9
    assert claims.identity["vmpl"] == bytes([0, 0, 0, 1])


@pytest.mark.parametrize("at", ["2024-12-10", "2025-12-11", "2026-06-01"])
def test_vlek_outside_its_year(vlek: Case, at: str) -> None:
    refused(replace(vlek, now=datetime.fromisoformat(at).replace(tzinfo=UTC)), OutsideValidity)


@pytest.mark.parametrize("at", [datetime(2020, 1, 1, tzinfo=UTC), datetime(2030, 1, 25, tzinfo=UTC)])
def test_milan_outside_its_validity(milan: Case, at: datetime) -> None:
    refused(replace(milan, now=at), OutsideValidity)


@pytest.mark.parametrize("step", [5, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", ["milan", pytest.param("vlek", marks=pytest.mark.slow)])
def test_flipped_signed_bytes(name: str, step: int, request: pytest.FixtureRequest) -> None:
    case: Case = request.getfixturevalue(name)
    for raw in flips(case.evidence.raw, step=step):
        refused(case.with_raw(raw))


def test_every_truncation(milan: Case) -> None:
    for raw in (*truncations(milan.evidence.raw), milan.evidence.raw + b"\0"):
        refused(milan.with_raw(raw), MalformedEvidence)


def test_every_byte_of_the_leaf(milan: Case) -> None:
    for der in flips(milan.collateral.documents["vcek"]):
        refused(milan.with_documents(vcek=der))
    for der in truncations(milan.collateral.documents["vcek"]):
        refused(milan.with_documents(vcek=der))


@pytest.mark.slow
def test_every_byte_of_the_authority(milan: Case) -> None:
    ask, ark = (one.public_bytes(Encoding.DER) for one in _chain(milan))
    for der in flips(ask):
        refused(milan.with_documents(chain=pem_of(der, ark)))
    for der in flips(ark):
        refused(milan.with_documents(chain=pem_of(ask, der)))


def test_documents_of_others(milan: Case, vlek: Case) -> None:
    refused(milan.with_documents(chain=vlek.collateral.documents["chain"]), WrongCollateral)
    refused(replace(vlek, collateral=milan.collateral), WrongCollateral)
    swapped = {"vlek": milan.collateral.documents["vcek"], "chain": milan.collateral.documents["chain"]}
    refused(replace(vlek, collateral=Collateral(swapped)), WrongCollateral)


@pytest.mark.parametrize("name", ["vcek", "chain"])
def test_missing_documents(milan: Case, name: str) -> None:
    refused(milan.without_document(name), WrongCollateral)


def test_chain_in_any_order_and_incomplete(milan: Case, vlek: Case) -> None:
    ask, ark = (one.public_bytes(Encoding.DER) for one in _chain(milan))
    whole = milan.verify()
    asvk = _chain(vlek)[0].public_bytes(Encoding.DER)
    for chain in ((ark, ask), (ask, ark, asvk), (asvk, milan.collateral.documents["vcek"], ark, ask)):
        assert milan.with_documents(chain=pem_of(*chain)).verify() == whole
    refused(milan.with_documents(chain=pem_of(ask)), WrongCollateral)
    refused(milan.with_documents(chain=pem_of(ark)), WrongCollateral)
    refused(milan.with_documents(chain=pem_of(*[ark] * 9)), MalformedEvidence)
    refused(milan.with_documents(chain=b""), MalformedEvidence)


def test_serial_number_zero_is_still_only_a_warning(milan: Case) -> None:
    """The day this fails, cryptography refuses AMD's certificates: keep the pin, and parse them another way."""
    der = milan.collateral.documents["vcek"]
    with pytest.warns(CryptographyDeprecationWarning, match="Parsed a serial number which wasn't positive"):
        assert x509.load_der_x509_certificate(der).serial_number == 0


SILENCED = """
import pathlib, sys, cryptography.utils, cryptography.x509
from confide.attest.chain import read_certificate
der = pathlib.Path(sys.argv[1]).read_bytes()
read_certificate(der, "VCEK")
try:
    cryptography.x509.load_der_x509_certificate(der)
except cryptography.utils.CryptographyDeprecationWarning:
    print("warned")
"""


def test_the_warning_is_silenced_only_for_confide(folder: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", SILENCED, str(folder / "vcek_milan.der")]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert result.stdout == "warned\n"
    assert result.stderr == ""


def test_simulated_claims_say_so() -> None:
    for kind in ("vcek", "vlek"):
        claims = snp_case(kind=kind).verify()
        assert claims.root is RootKind.SIMULATED
        assert claims.versions["microcode"] == TCB[7]
    assert snp_case(Fields(version=2)).verify().root is RootKind.SIMULATED


def test_simulated_root_is_no_production_root(milan: Case) -> None:
    refused(replace(snp_case(), roots=ProductionRoots()), UnknownRoot)
    refused(replace(milan, roots=SimulatedRoots({Family.SNP: ARK.der})), UnknownRoot)
    refused(replace(snp_case(), roots=SimulatedRoots({Family.TDX: ARK.der})), UnknownRoot)


def test_debug_is_a_claim() -> None:
    assert snp_case(Fields(policy=0x30000 | 1 << 19)).verify().debug
    assert not snp_case().verify().debug


@pytest.mark.parametrize(
    "fields",
    [
        Fields(version=1),
        Fields(version=6),
        Fields(algorithm=2),
        Fields(cpu=(0x17, 0x31)),
        Fields(cpu=(0x19, 0x20)),
        Fields(cpu=(0x1A, 0x12)),
        Fields(flags=2),
        Fields(flags=2 << 2),
        Fields(flags=7 << 2),
    ],
)
def test_unsupported_reports(fields: Fields) -> None:
    refused(snp_case(fields), MalformedEvidence)


@pytest.mark.parametrize(
    ("of", "at"),
    [*((line, at) for line in (MILAN, GENOA) for at in (0, 1, 6, 7)), *((TURIN, at) for at in (0, 1, 2, 3, 7))],
)
def test_another_tcb(of: Line, at: int) -> None:
    tcb = bytes(value + (index == at) for index, value in enumerate(TCB))
    refused(snp_case(Fields.of(of, tcb=tcb), of=of), WrongCollateral)


@pytest.mark.parametrize("of", [MILAN, GENOA, TURIN])
def test_another_chip(of: Line) -> None:
    refused(snp_case(Fields.of(of, chip=bytes(64)), of=of), WrongCollateral)


def test_turins_chip_id_has_eight_bytes_and_nothing_behind_them() -> None:
    refused(snp_case(Fields.of(TURIN, chip=CHIP), of=TURIN), WrongCollateral)
    refused(snp_case(of=TURIN, signer=leaf(of=TURIN, chip=TURIN.chip)), WrongCollateral)


@pytest.mark.parametrize("of", [MILAN, TURIN])
def test_a_chip_id_in_der(of: Line) -> None:
    bare = of.chip[:8] if of is TURIN else of.chip
    snp_case(of=of, signer=leaf(of=of, chip=bytes([4, len(bare)]) + bare)).verify()
    refused(snp_case(of=of, signer=leaf(of=of, chip=bytes([5, len(bare)]) + bare)), WrongCollateral)


@pytest.mark.parametrize("kind", ["vcek", "vlek"])
@pytest.mark.parametrize("version", [2, 3, 4, 5])
@pytest.mark.parametrize("of", [MILAN, GENOA, TURIN])
def test_every_product_version_and_key(of: Line, version: int, kind: str) -> None:
    fields = Fields.of(of, version=version, flags=4 if kind == "vlek" else 0, mitigations=(5, 7))
    claims = snp_case(fields, kind, of=of).verify()
    assert claims.identity["product"] == of.product.encode()
    turin = {"fmc": 3, "bootloader": 1, "tee": 0, "snp": 0, "microcode": 200}
    expected = turin if of is TURIN else {"bootloader": 3, "tee": 1, "snp": 8, "microcode": 200}
    assert {name: level for name, level in claims.versions.items() if name not in ("firmware", "guest_svn")} == expected
    vectors = {name: int.from_bytes(value) for name, value in claims.identity.items() if name.endswith("_mit_vector")}
    assert vectors == ({"launch_mit_vector": 5, "current_mit_vector": 7} if version == 5 else {})


@pytest.mark.parametrize(("cpu", "of"), [((0x19, 0xA0), GENOA), ((0x19, 0xAF), GENOA), ((0x1A, 0x11), TURIN)])
def test_processors_of_a_line(cpu: tuple[int, int], of: Line) -> None:
    snp_case(Fields.of(of, cpu=cpu), of=of).verify()


@pytest.mark.parametrize(
    ("name", "fits"), [("Siena", True), ("Bergamo-A1", True), ("Genoa", True), ("Milan-B1", False)]
)
def test_names_of_products(name: str, fits: bool) -> None:
    case = snp_case(of=GENOA, signer=leaf(of=GENOA, product_name=name))
    if fits:
        case.verify()
    else:
        refused(case, WrongCollateral)


@pytest.mark.parametrize("name", ["Rome-B0", "", "Genoa" + "x" * 130, "milan"])
def test_products_that_are_unknown(name: str) -> None:
    refused(snp_case(signer=leaf(product_name=name[:127])), WrongCollateral)


def test_the_product_of_the_report_of_the_leaf_and_of_its_authorities() -> None:
    refused(snp_case(Fields.of(GENOA)), WrongCollateral)  # Milan's key for a report of Genoa's
    refused(snp_case(Fields.of(MILAN), of=GENOA), WrongCollateral)
    # Under the root of another product, signed in order: AMD would have to issue it, and still it is refused.
    crossed = leaf(issuer=GENOA.ask)
    case = snp_case(signer=crossed).with_documents(chain=pem(GENOA.ask, GENOA.ark))
    refused(replace(case, roots=GENOA_ROOTS), WrongCollateral)
    ask = party("SEV-Milan", ASK.key, GENOA.ark)
    case = snp_case(signer=leaf(issuer=ask)).with_documents(chain=pem(ask, GENOA.ark))
    refused(replace(case, roots=GENOA_ROOTS), WrongCollateral)
    # A report of version 2 names no processor: the certificate's product decides how it is read.
    assert snp_case(Fields.of(TURIN, version=2, cpu=(0, 0)), of=TURIN).verify().versions["fmc"] == 3


def test_the_authority_of_the_other_kind_of_key() -> None:
    crossed = snp_case(signer=leaf(issuer=ASVK)).with_documents(chain=pem(ASVK, ARK))
    refused(crossed, WrongCollateral)
    crossed = snp_case(kind="vlek", signer=leaf("vlek", issuer=ASK)).with_documents(chain=pem(ASK, ARK))
    refused(crossed, WrongCollateral)


def test_real_milan_under_genoas_chain(milan: Case, folder: Path) -> None:
    for other in ("genoa", "turin"):
        refused(milan.with_documents(chain=(folder / f"ask_ark_{other}.pem").read_bytes()), WrongCollateral)


@pytest.mark.parametrize("name", ["milan", "genoa", "turin"])
def test_each_products_root_is_pinned(folder: Path, name: str) -> None:
    ask, ark = x509.load_pem_x509_certificates((folder / f"ask_ark_{name}.pem").read_bytes())
    assert ProductionRoots().trusts(Family.SNP, ark.public_bytes(Encoding.DER))
    assert not ProductionRoots().trusts(Family.SNP, ask.public_bytes(Encoding.DER))
    verify_chain((ask, ark), Family.SNP, ProductionRoots(), NOW)


def test_genuine_genoa_report_of_azure(test_data: Path, folder: Path) -> None:
    """The report that lies in Azure's evidence, by itself."""
    document = json.loads((test_data / "evidence/azure/snp_genoa_vtpm.json").read_text())
    leaf_der = x509.load_pem_x509_certificate(document["vcek"].encode()).public_bytes(Encoding.DER)
    documents = {"vcek": leaf_der, "chain": (folder / "ask_ark_genoa.pem").read_bytes()}
    evidence = Evidence(Family.SNP, bytes(document["report"])[32:][:1184])
    case = Case(evidence, Collateral(documents), ProductionRoots(), datetime(2026, 1, 1, tzinfo=UTC))
    claims = case.verify()
    assert (claims.identity["product"], claims.versions["bootloader"], claims.versions["microcode"]) == (
        b"Genoa",
        10,
        84,
    )
    for raw in flips(evidence.raw, step=7):
        refused(case.with_raw(raw))


def test_key_of_the_other_kind() -> None:
    refused(snp_case(Fields(flags=4)), WrongCollateral)
    mislabelled = snp_case(Fields(flags=4)).with_documents(vlek=leaf("vcek").der)
    refused(mislabelled, WrongCollateral)
    refused(snp_case(kind="vlek", signer=leaf("vlek", name="SEV-VCEK")), WrongCollateral)


def test_leaf_key_of_another_kind() -> None:
    signer = leaf(key=ec_key("p256", ec.SECP256R1))
    refused(snp_case(signer=signer), WrongCollateral)
    refused(snp_case().with_documents(vcek=leaf(key=rsa_key("leaf")).der), WrongCollateral)


def test_leaf_of_another_authority_with_the_same_name() -> None:
    other = party("SEV-Milan", rsa_key("other"), party("ARK-Milan", rsa_key("other ark")))
    refused(snp_case(signer=leaf(issuer=other)), InvalidSignature)


def test_leaf_that_plays_authority() -> None:
    middle = leaf(name="middle")
    forged = leaf(issuer=middle, key=ec_key("attacker"))
    case = snp_case(signer=forged).with_documents(chain=pem(middle, ASK, ARK))
    refused(case, InvalidSignature)


@pytest.mark.parametrize(("begin", "end"), [(NOW - YEAR, NOW - timedelta(1)), (NOW + timedelta(1), NOW + YEAR)])
def test_validity_of_each_certificate(begin: datetime, end: datetime) -> None:
    refused(snp_case(signer=leaf(begin=begin, end=end)), OutsideValidity)
    ask = party("SEV-Milan", ASK.key, ARK, begin=begin, end=end)
    refused(snp_case().with_documents(chain=pem(ask, ARK)), OutsideValidity)
    ark = party("ARK-Milan", ARK.key, begin=begin, end=end)
    case = replace(snp_case(), roots=SimulatedRoots({Family.SNP: ark.der}))
    refused(case.with_documents(chain=pem(ASK, ark)), OutsideValidity)


def test_revocation() -> None:
    case = snp_case()
    assert case.with_documents(crl=crl(ARK, 99)).verify().valid_until == case.verify().valid_until
    refused(case.with_documents(crl=crl(ARK, 99, 11)), Revoked)
    refused(case.with_documents(crl=crl(ASK, 1)), Revoked)
    # A serial number counts only for the authority whose list it is: the ASK's own number is not the leaf's.
    case.with_documents(crl=crl(ASK, 11)).verify()


def test_revocation_lists_that_do_not_count() -> None:
    case = snp_case()
    impostor = Party(ARK.certificate, rsa_key("impostor"))
    refused(case.with_documents(crl=crl(impostor)), InvalidSignature)
    refused(case.with_documents(crl=crl(party("someone", rsa_key("impostor")))), InvalidSignature)
    refused(case.with_documents(crl=crl(ARK, end=NOW - timedelta(1))), OutsideValidity)
    refused(case.with_documents(crl=crl(ARK, begin=NOW + timedelta(1))), OutsideValidity)
    refused(case.with_documents(crl=b"nothing"), MalformedEvidence)
    whole = crl(ARK, 99)
    signed = len(x509.load_der_x509_crl(whole).tbs_certlist_bytes)
    for der in flips(whole, end=4 + signed):
        refused(case.with_documents(crl=der))


def test_list_shortens_validity() -> None:
    until = NOW + timedelta(days=7)
    assert snp_case().with_documents(crl=crl(ARK, end=until)).verify().valid_until == until


@settings(deadline=None)
@given(st.binary(max_size=1400), st.binary(max_size=200), st.binary(max_size=200))
def test_noise(raw: bytes, vcek: bytes, chain: bytes) -> None:
    refused(snp_case().with_raw(raw))
    refused(snp_case().with_documents(vcek=vcek))
    refused(snp_case().with_documents(chain=chain))
    refused(snp_case().with_documents(crl=chain))


@settings(deadline=None)
@given(st.data())
def test_noise_within(data: st.DataObject) -> None:
    case = snp_case()
    raw = case.evidence.raw
    at = data.draw(st.integers(0, 0x2A0 + 143))
    noise = data.draw(st.binary(min_size=1, max_size=64))
    changed = (raw[:at] + noise + raw[at + len(noise) :])[: len(raw)]
    if changed == raw:
        case.verify()
    else:
        refused(case.with_raw(changed), AttestationError)


def _chain(case: Case) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(case.collateral.documents["chain"])
