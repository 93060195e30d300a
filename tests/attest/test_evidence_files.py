"""Telling evidence and collateral by their content."""

import base64
import json
import struct
import uuid
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from tests.attest.families.authorities import crl, pem, pem_of
from tests.attest.families.forged_nitro import nitro_case
from tests.attest.families.forged_nvidia import DEVICE, ROOT
from tests.attest.families.forged_rim import RIM_AUTHORITY, RIM_SIGNER, manifest, response
from tests.attest.families.forged_snp import ARK, ASK, GENOA, MILAN, TCB, TURIN, Fields, Line, leaf, snp_case
from tests.attest.families.forged_tpm import rsa_ak

from confide.attest.collateral import Collateral
from confide.attest.collateral_sources import signed_text
from confide.attest.evidence import MAX_EVIDENCE_BYTES, Evidence, Family
from confide.attest.evidence_files import read_collateral, read_evidence
from confide.attest.roots import ProductionRoots
from confide.attest.verifier import Verifier
from confide.errors import MalformedEvidence, WrongCollateral

REAL = [
    ("sgx/quote_v3.bin", Family.SGX),
    ("tdx/quote_v4.bin", Family.TDX),
    ("tdx/quote_v4_debug_td.bin", Family.TDX),
    ("tdx/quote_v5.bin", Family.TDX),
    ("snp/report_v2_milan.bin", Family.SNP),
    ("snp/report_v3_vlek.bin", Family.SNP),
    ("tpm/evidence.json", Family.TPM),
    ("nvidia/hopper_report.txt", Family.NVIDIA),
    ("gcp/tdx_quote_v4.bin", Family.TDX),
    ("azure/snp_genoa_vtpm.json", Family.AZURE),
    ("azure/tdx_vtpm.json", Family.AZURE),
]


@pytest.fixture
def real(test_data: Path) -> Path:
    """The folder of real evidence."""
    return test_data / "evidence"


@pytest.mark.parametrize(("name", "family"), REAL)
def test_real_evidence(name: str, family: Family, real: Path) -> None:
    evidence, _ = read_evidence((real / name).read_bytes())
    assert evidence.family is family


def test_the_parts_of_tpm_and_gpu_evidence(real: Path) -> None:
    evidence, collateral = read_evidence((real / "tpm/evidence.json").read_bytes())
    assert evidence.raw.startswith(b"\xffTCG")
    assert evidence.parts.keys() == {"signature", "pcrs"}
    assert len(evidence.parts["pcrs"]) == 24 * 32
    assert collateral.documents.keys() == {"ak"}
    gpu, _ = read_evidence((real / "nvidia/hopper_report.txt").read_bytes())
    assert gpu == read_evidence(gpu.raw)[0]


@pytest.mark.parametrize(
    ("names", "documents"),
    [
        (["tdx/quote_v4.collateral.json"], {"dcap"}),
        (["snp/ask_ark_milan.pem", "snp/vcek_milan.der"], {"chain", "vcek"}),
        (["snp/vlek.der", "snp/ask_ark_milan_vlek.pem"], {"chain", "vlek"}),
        (["nvidia/hopper_cert_chain.txt"], {"chain"}),
    ],
)
def test_real_collateral(names: list[str], documents: set[str], real: Path) -> None:
    assert read_collateral((real / name).read_bytes() for name in names).documents.keys() == documents


def test_the_same_collateral_twice(real: Path) -> None:
    chain, vcek, dcap = (
        (real / name).read_bytes()
        for name in ("snp/ask_ark_milan.pem", "snp/vcek_milan.der", "tdx/quote_v4.collateral.json")
    )
    for twice in ([vcek, vcek], [dcap, dcap]):
        with pytest.raises(MalformedEvidence, match="Two of the files"):
            read_collateral(twice)
    # An authority more than once is one authority.
    once = read_collateral([chain])
    assert read_collateral([chain, chain]) == once
    assert read_certificates(once) == read_certificates(Collateral({"chain": chain}))


def read_certificates(collateral: Collateral) -> list[x509.Certificate]:
    return x509.load_pem_x509_certificates(collateral.documents["chain"])


def test_tokens_and_forced_families() -> None:
    assert read_evidence(b"eyJhbGciOiJub25lIn0.e30.\n")[0].family is Family.TOKEN
    assert read_evidence(b"anything", Family.SGX)[0] == Evidence(Family.SGX, b"anything")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\3\0\2\0",
        b"\6\0\2\0" + bytes(100),
        b"\4\0\2\0\7" + bytes(100),
        b"\2\0\0\0" + bytes(1179),
        b"\2\0\0\0" + bytes(1180) + b"a table that is cut off",
        base64.b64encode(b"nothing that anybody knows"),
        b"{}" + bytes(10),
        b'{"quote": 5}',
        b'{"quote": "AAAA"}',
        b'{"attestation_report": {}}',
        b'{"attestation_report": 5}',
        b"{}",
        b'{"tpm_quote": {"message": "!", "signature": "", "pcrs": []}, "ak_public": ""}',
        b"[1]",
        b"{" * 100_000,
        b"11e",
        bytes(MAX_EVIDENCE_BYTES + 1),
    ],
)
def test_what_is_no_evidence(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_evidence(data)


@pytest.mark.parametrize("data", [b"", b"\x30\x82", b"{}", b"{", json.dumps([]).encode(), b'{"tcb_info": 1'])
def test_what_is_no_collateral(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_collateral([data])


def test_gpu_reports_that_are_not_hexadecimal() -> None:
    with pytest.raises(MalformedEvidence, match="hexadecimal"):
        read_evidence(b"\xff\xfe", Family.NVIDIA)


def test_documents_about_gpus_and_releases() -> None:
    driver, vbios = (manifest({1: bytes(48)}, version) for version in ("550.90.07", "96.00.9F.00.01"))
    statuses = [response(DEVICE, ROOT), response(RIM_SIGNER, RIM_AUTHORITY)]
    bundle = b'{"mediaType": "application/vnd.dev.sigstore.bundle.v0.3+json"}'
    found = read_collateral([vbios, driver, *statuses, bundle])
    assert found.documents == {
        "driver-rim": driver,
        "vbios-rim": vbios,
        "ocsp": b"".join(statuses),
        "release": bundle,
    }
    with pytest.raises(MalformedEvidence, match="give each thing once"):
        read_collateral([driver, driver])
    for other in (b"<a/>", b"<", b'<a colloquialVersion="x"/>'):
        with pytest.raises(MalformedEvidence, match="no reference manifest"):
            read_collateral([other])


# -- armour ------------------------------------------------------------------------------------------------------


def in_lines(text: str) -> bytes:
    return "\n".join(text[at : at + 60] for at in range(0, len(text), 60)).encode()


ARMOURS = {
    "hex": lambda data: data.hex().encode(),
    "HEX in lines": lambda data: in_lines(data.hex().upper()),
    "0x": lambda data: b"0x" + data.hex().encode() + b"\n",
    "base64": base64.b64encode,
    "base64 in lines": base64.encodebytes,
    "base64url": lambda data: base64.urlsafe_b64encode(data).rstrip(b"="),
}


@pytest.mark.parametrize("armour", ARMOURS)
@pytest.mark.parametrize("name", [*(name for name, _ in REAL if name.endswith(".bin"))])
def test_armour_around_real_evidence(name: str, armour: str, real: Path) -> None:
    raw = (real / name).read_bytes()
    assert read_evidence(ARMOURS[armour](raw)) == read_evidence(raw)


@pytest.mark.parametrize("armour", ARMOURS)
def test_armour(armour: str) -> None:
    for evidence in (snp_case().evidence, nitro_case().evidence):
        text = ARMOURS[armour](evidence.raw)
        assert read_evidence(text) == (evidence, Collateral())
        assert read_evidence(text, evidence.family) == (evidence, Collateral())


def test_a_family_that_was_named_and_is_another() -> None:
    raw = snp_case().evidence.raw
    assert read_evidence(raw.hex().encode(), Family.SGX)[0].raw == raw.hex().encode()
    with pytest.raises(MalformedEvidence, match="not of sgx"):
        read_evidence(b'{"attestation_report": ' + json.dumps(fields_of(raw, MILAN)).encode() + b"}", Family.SGX)


# -- SEV-SNP's longer forms --------------------------------------------------------------------------------------

GUIDS = {
    "vcek": "63da758d-e664-4564-adc5-f4b93be8accd",
    "vlek": "a8074bc2-a25a-483e-aae6-39c045a0b8a1",
    "ask": "4ab7b379-bbac-4fe4-a02f-05aef327c782",
    "ark": "c0b406a4-a803-4952-9743-3fb6014cd0ae",
    "crl": "92f81bc3-5811-4d3d-97ff-d19f88dc67ea",
}


def table_of(**certificates: bytes) -> bytes:
    """A host's table of certificates."""
    start = 24 * (len(certificates) + 1)
    entries, content = b"", b""
    for name, der in certificates.items():
        entries += struct.pack("<16sII", uuid.UUID(GUIDS[name]).bytes_le, start + len(content), len(der))
        content += der
    return entries + bytes(24) + content


@pytest.mark.parametrize("size", [1, 16, 2816])
def test_padding_behind_a_report(size: int) -> None:
    evidence = snp_case().evidence
    assert read_evidence(evidence.raw + bytes(size)) == (evidence, Collateral())


def test_the_firmwares_response_around_a_report() -> None:
    evidence = snp_case().evidence
    response = struct.pack("<II24x", 0, 1184) + evidence.raw
    assert read_evidence(response) == (evidence, Collateral())
    assert read_evidence(response.ljust(4000, b"\0")) == (evidence, Collateral())
    with pytest.raises(MalformedEvidence):
        read_evidence(struct.pack("<II24x", 22, 1184) + evidence.raw)


def test_a_report_with_the_hosts_certificates() -> None:
    case = snp_case()
    table = table_of(vcek=case.collateral.documents["vcek"], ask=ASK.der, ark=ARK.der, crl=crl(ARK))
    for raw in (case.evidence.raw + table, (case.evidence.raw + table).hex().encode()):
        evidence, collateral = read_evidence(raw)
        assert (evidence.raw, evidence.parts) == (case.evidence.raw, {"auxblob": table})
        assert collateral.documents.keys() == {"vcek", "chain", "crl"}
        assert Verifier(case.roots).verify(evidence, collateral, case.now).family is Family.SNP


# -- Trustee's JSON ----------------------------------------------------------------------------------------------


def fields_of(raw: bytes, of: Line, nested: bool = True) -> dict[str, object]:
    """A report as the `sev` crate writes it."""
    at = {"fmc": 0, "bootloader": 1, "tee": 2, "snp": 3, "microcode": 7}
    at = at if of is TURIN else {"fmc": None, "bootloader": 0, "tee": 1, "snp": 6, "microcode": 7}

    def tcb(start: int) -> dict[str, object]:
        return {name: None if offset is None else raw[start + offset] for name, offset in at.items()}

    def number(start: int, size: int) -> int:
        return int.from_bytes(raw[start : start + size], "little")

    versions = {
        name: {part: raw[start + index] for index, part in enumerate(("build", "minor", "major"))}
        for name, start in (("current", 0x1E8), ("committed", 0x1EC))
    }
    flat = {f"{name}_{part}": value for name, parts in versions.items() for part, value in parts.items()}
    return {
        "version": number(0, 4),
        "guest_svn": number(4, 4),
        "policy": number(8, 8),
        "family_id": [*raw[0x10:0x20]],
        "image_id": [*raw[0x20:0x30]],
        "vmpl": number(0x30, 4),
        "sig_algo": number(0x34, 4),
        "current_tcb": tcb(0x38),
        "plat_info": number(0x40, 8),
        "key_info" if nested else "_author_key_en": number(0x48, 4),
        "report_data": [*raw[0x50:0x90]],
        "measurement": raw[0x90:0xC0].hex(),
        "host_data": [*raw[0xC0:0xE0]],
        "id_key_digest": [*raw[0xE0:0x110]],
        "author_key_digest": [*raw[0x110:0x140]],
        "report_id": [*raw[0x140:0x160]],
        "report_id_ma": [*raw[0x160:0x180]],
        "reported_tcb": tcb(0x180),
        **({"cpuid_fam_id": raw[0x188], "cpuid_mod_id": raw[0x189], "cpuid_step": raw[0x18A]} if nested else {}),
        "chip_id": [*raw[0x1A0:0x1E0]],
        "committed_tcb": tcb(0x1E0),
        **(versions if nested else flat),
        "launch_tcb": tcb(0x1F0),
        "launch_mit_vector": number(0x1F8, 8) or None,
        "current_mit_vector": number(0x200, 8) or None,
        "signature": {"r": [*raw[0x2A0:0x2E8]], "s": [*raw[0x2E8:0x330]]},
    }


@pytest.mark.parametrize("of", [MILAN, GENOA, TURIN])
def test_trustees_report_in_fields(of: Line) -> None:
    tcb = bytes([1, 3, 1, 4, 0, 0, 0, 200]) if of is TURIN else TCB
    case = snp_case(Fields.of(of, version=5, mitigations=(3, 1), tcb=tcb), of=of)
    chain = [{"cert_type": "VCEK", "data": [*case.collateral.documents["vcek"]]}]
    document = {"attestation_report": fields_of(case.evidence.raw, of), "cert_chain": chain}
    evidence, collateral = read_evidence(json.dumps(document).encode())
    assert evidence == case.evidence
    assert collateral.documents == {"vcek": case.collateral.documents["vcek"]}


def test_trustees_report_in_fields_of_a_real_machine(real: Path) -> None:
    raw = (real / "snp/report_v2_milan.bin").read_bytes()
    document = {"attestation_report": fields_of(raw, MILAN, nested=False), "cert_chain": None}
    assert read_evidence(json.dumps(document).encode()) == (Evidence(Family.SNP, raw), Collateral())


@pytest.mark.parametrize(
    "changes",
    [
        {"version": "x"},
        {"version": -1},
        {"version": 1 << 40},
        {"report_data": [1]},
        {"report_data": [256] * 64},
        {"chip_id": None},
        {"reported_tcb": {"tee": 1}},
        {"reported_tcb": 5},
        {"signature": {}},
        {"current": {"build": "x"}},
    ],
)
def test_fields_that_are_none(changes: dict[str, object]) -> None:
    document = {"attestation_report": fields_of(snp_case().evidence.raw, MILAN) | changes}
    with pytest.raises(MalformedEvidence):
        read_evidence(json.dumps(document).encode())


@pytest.mark.parametrize("chain", [[{"cert_type": "VCEK"}], [5], [{"cert_type": 5, "data": []}], [{}] * 17, 5])
def test_host_certificates_that_are_none(chain: object) -> None:
    document = {"attestation_report": fields_of(snp_case().evidence.raw, MILAN), "cert_chain": chain}
    with pytest.raises(MalformedEvidence):
        read_evidence(json.dumps(document).encode())


@pytest.mark.parametrize("log", ["cc_eventlog", "event_log"])
def test_trustees_quote_with_its_log(real: Path, log: str) -> None:
    quote, ccel = ((real / "gcp" / name).read_bytes() for name in ("tdx_quote_v4.bin", "ccel.bin"))
    document = {log: base64.b64encode(ccel).decode(), "quote": base64.b64encode(quote).decode()}
    evidence, collateral = read_evidence(json.dumps(document).encode())
    assert (evidence, collateral) == (Evidence(Family.TDX, quote, {"event_log": ccel}), Collateral())
    assert read_evidence(json.dumps(document | {log: None}).encode())[0] == Evidence(Family.TDX, quote)


# -- collateral --------------------------------------------------------------------------------------------------


def test_amd_certificates_in_any_order_and_form() -> None:
    vcek = leaf()
    expected = {"vcek": vcek.der, "chain": pem(ASK, ARK), "crl": crl(ARK, 5)}
    revoked = expected["crl"]
    pem_crl = x509.load_der_x509_crl(revoked).public_bytes(Encoding.PEM)
    for files in (
        [pem(vcek, ASK, ARK), revoked],
        [vcek.der, ASK.der, ARK.der, revoked.hex().encode()],
        [b"\n" + pem(vcek), pem(ASK), b"\n" + pem(ARK).replace(b"\n", b"\r\n"), pem_crl],
        [base64.b64encode(vcek.der), base64.encodebytes(revoked), pem(ASK), ARK.der.hex().encode()],
        [pem(ASK, ASK, ARK, vcek) + pem_crl],
    ):
        assert read_collateral(files).documents == expected
    swapped = read_collateral([pem(ARK, vcek), revoked, pem(ASK)])
    case = snp_case(signer=vcek)
    Verifier(case.roots).verify(case.evidence, swapped, case.now)


def test_keys() -> None:
    der = rsa_ak().public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    armoured = rsa_ak().public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    for file in (der, armoured, der.hex().encode(), base64.b64encode(der)):
        assert read_collateral([file]).documents == {"ak": der}


@pytest.fixture
def intel(real: Path) -> dict[str, bytes]:
    """Intel's own answers, out of the collateral that a tool made of them."""
    dcap = json.loads((real / "tdx/quote_v4.collateral.json").read_bytes())
    answer = '{{"{}": {}, "signature": "{}"}}'
    return {
        "tcb": answer.format("tcbInfo", dcap["tcb_info"], dcap["tcb_info_signature"]).encode(),
        "identity": answer.format("enclaveIdentity", dcap["qe_identity"], dcap["qe_identity_signature"]).encode(),
        "root": bytes.fromhex(dcap["root_ca_crl"]),
        "pck": dcap["pck_crl"].encode(),
        "signer": dcap["tcb_info_issuer_chain"].encode(),
        "authority": quote(dcap["pck_crl_issuer_chain"]).encode(),
    }


def test_intels_own_answers_in_any_order(intel: dict[str, bytes], real: Path) -> None:
    raw = (real / "tdx/quote_v4.bin").read_bytes()
    made = json.loads((real / "tdx/quote_v4.collateral.json").read_bytes())
    verifier, now = Verifier(ProductionRoots()), datetime(2025, 7, 1, tzinfo=UTC)
    expected = verifier.verify(Evidence(Family.TDX, raw), Collateral({"dcap": json.dumps(made).encode()}), now)
    for files in ([*intel.values()], [*intel.values()][::-1]):
        collateral = read_collateral(files)
        assert collateral.documents.keys() == {"dcap"}
        assert verifier.verify(Evidence(Family.TDX, raw), collateral, now) == expected
    assert signed_text(intel["tcb"], "tcbInfo")[0] == made["tcb_info"]


@pytest.mark.parametrize("name", ["tcb", "identity", "root", "pck", "signer", "authority"])
def test_intels_answers_are_all_needed(intel: dict[str, bytes], name: str) -> None:
    with pytest.raises(WrongCollateral, match="there must be one each"):
        read_collateral([answer for key, answer in intel.items() if key != name])


def test_intels_answers_are_needed_once(intel: dict[str, bytes]) -> None:
    with pytest.raises(MalformedEvidence, match="Two of the files"):
        read_collateral([*intel.values(), intel["tcb"]])
    with pytest.raises(WrongCollateral, match="PCK authority's list"):
        read_collateral([*intel.values(), intel["pck"], crl(ASK)])


@pytest.mark.parametrize(
    "data",
    [
        b"-----BEGIN CERTIFICATE-----\n",
        b"-----BEGIN CERTIFICATE-----\n!\n-----END CERTIFICATE-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        b"-----BEGIN " * 50_000,
        b"-----BEGIN %41",
        pem_of(*[b"\x30\x00"] * 3),
        pem(*[ASK] * 33),
        b'{"tcbInfo": {}, "enclaveIdentity": {}, "signature": ""}',
        b'{"tcbInfo": {}}',
        b'{"tcbInfo": {}, "signature": 5}',
        bytes(MAX_EVIDENCE_BYTES + 1),
    ],
)
def test_files_that_are_no_collateral(data: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_collateral([data])
