"""Reference manifests: only what NVIDIA's signature covers counts, and nothing else of a document is believed."""

from dataclasses import replace
from datetime import timedelta

import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given, settings
from hypothesis import strategies as st
from signxml.algorithms import DigestAlgorithm, SignatureMethod

from confide.attest.check import Check, Outcome
from confide.attest.collateral import Collateral
from confide.attest.evidence import Family
from confide.attest.families.nvidia_rim import MAX_RIM_BYTES, ReferenceManifest
from confide.attest.roots import VENDOR_REFERENCE_ROOTS, VENDOR_ROOTS, ProductionRoots, SimulatedRoots
from confide.errors import (
    AttestationError,
    InvalidSignature,
    MalformedEvidence,
    OutsideValidity,
    Revoked,
    UnknownRoot,
    WrongCollateral,
)

from .authorities import YEAR, Party, crl, ec_key, party
from .cases import NOW, Case, flips, refused
from .forged_nvidia import BLOCKS, DEVICE, FIELDS, LEAF, ROOT, Messages, gpu_case
from .forged_rim import (
    CHAIN,
    RIM_AUTHORITY,
    RIM_ROOT,
    RIM_SIGNER,
    manifest,
    resource,
    resources,
    response,
    signed,
    swid,
)

DRIVER, VBIOS = "550.1", "96.00.9F.00.01"
STATUS = b"".join(
    (
        response(DEVICE, ROOT),
        response(RIM_SIGNER, RIM_AUTHORITY),
        response(RIM_AUTHORITY, RIM_ROOT),
    )
)


def whole(messages: Messages | None = None, **documents: bytes) -> Case:
    """A GPU with everything that its verification can use; `documents` instead of its own."""
    case = gpu_case(messages)
    ours = {
        "driver-rim": manifest({2: BLOCKS[2]}, DRIVER),
        "vbios-rim": manifest({1: BLOCKS[1]}, VBIOS),
        "ocsp": STATUS,
    }
    collateral = Collateral(
        {**case.collateral.documents, **ours, **{k.replace("_", "-"): v for k, v in documents.items()}}
    )
    roots = SimulatedRoots({Family.NVIDIA: ROOT.der}, references={Family.NVIDIA: RIM_ROOT.der})
    return replace(case, collateral=collateral, roots=roots)


def found(case: Case) -> dict[str, list[Check]]:
    checks: dict[str, list[Check]] = {}
    for one in case.verify().checks:
        checks.setdefault(one.code, []).append(one)
    return checks


def outcomes(case: Case) -> dict[str, set[Outcome]]:
    return {code: {one.outcome for one in checks} for code, checks in found(case).items()}


def read(document: bytes) -> ReferenceManifest:
    return ReferenceManifest.read(document, "manifest")


def resigned(document: bytes, old: Party, new: Party) -> bytes:
    """The document with another certificate in its signature."""
    bodies = [b"".join(one.certificate.public_bytes(Encoding.PEM).splitlines(True)[1:-1]) for one in (old, new)]
    assert bodies[0] in document
    return document.replace(*bodies)


def test_a_gpu_with_all_documents_passes_every_check() -> None:
    assert outcomes(whole()) == {
        "chain": {Outcome.PASS},
        "signature": {Outcome.PASS},
        "revocation": {Outcome.PASS},
        "nvidia-firmware": {Outcome.PASS},
        "nvidia-measurements": {Outcome.PASS},
    }
    assert whole().verify().valid_until == NOW + timedelta(hours=1)


def test_measurements_that_are_not_the_vendors_fail() -> None:
    for blocks in ({2: b"\3" * 48}, {2: BLOCKS[2], 7: bytes(48)}):
        (one,) = found(whole(driver_rim=manifest(blocks, DRIVER)))["nvidia-measurements"]
        assert one.outcome is Outcome.FAIL
        assert f"block{max(blocks)}" in one.seen


def test_one_of_several_alternatives_will_do_and_inactive_ones_do_not_count() -> None:
    text = resource(1, bytes(48), BLOCKS[2]) + resource(8, b"\1" * 48, active="False")
    assert outcomes(whole(driver_rim=signed(swid(text, DRIVER))))["nvidia-measurements"] == {Outcome.PASS}
    text = resource(1, bytes(48), BLOCKS[2]) + resource(8, b"\1" * 48, active="no")
    assert outcomes(whole(driver_rim=signed(swid(text, DRIVER))))["nvidia-measurements"] == {Outcome.FAIL}


@pytest.mark.parametrize(("status", "outcome"), [(b"\x55", Outcome.PASS), (b"\xaa", Outcome.FAIL), (b"", Outcome.FAIL)])
def test_the_video_decoder_counts_only_where_it_is_on(status: bytes, outcome: Outcome) -> None:
    rim = manifest({2: BLOCKS[2], 36: b"\1" * 48}, DRIVER)
    assert outcomes(whole(Messages(fields=FIELDS | {11: status}), driver_rim=rim))["nvidia-measurements"] == {outcome}


def test_without_a_manifest_the_measurements_are_not_checked() -> None:
    for name in ("driver-rim", "vbios-rim"):
        (one,) = found(whole().without_document(name))["nvidia-measurements"]
        assert (one.outcome, name in one.seen) == (Outcome.SKIPPED, True)


def test_manifests_of_another_version_or_product_or_of_the_same_measurement() -> None:
    refused(whole(driver_rim=manifest({2: BLOCKS[2]}, "550.2")), WrongCollateral)
    refused(whole(driver_rim=manifest({2: BLOCKS[2]}, DRIVER, "GB100")), WrongCollateral)
    refused(whole(driver_rim=manifest({1: BLOCKS[1]}, DRIVER)), WrongCollateral)
    refused(
        whole(driver_rim=manifest({1: BLOCKS[1]}, VBIOS), vbios_rim=manifest({2: BLOCKS[2]}, DRIVER)), WrongCollateral
    )
    refused(whole(Messages(fields={6: FIELDS[6]}), driver_rim=manifest({2: BLOCKS[2]}, "")), WrongCollateral)


def test_roots_of_devices_and_of_references_are_different_roots() -> None:
    case = whole()
    for roots in (
        SimulatedRoots({Family.NVIDIA: ROOT.der}),
        SimulatedRoots({Family.NVIDIA: ROOT.der}, references={Family.NVIDIA: ROOT.der}),
        SimulatedRoots({Family.NVIDIA: RIM_ROOT.der}, references={Family.NVIDIA: RIM_ROOT.der}),
        ProductionRoots(),
    ):
        refused(replace(case, roots=roots), UnknownRoot)
    assert not VENDOR_ROOTS[Family.NVIDIA] & VENDOR_REFERENCE_ROOTS[Family.NVIDIA]
    assert not ProductionRoots().trusts_reference(Family.NVIDIA, RIM_ROOT.der)


def test_revocation_of_every_part() -> None:
    for certificate, issuer in ((DEVICE, ROOT), (RIM_SIGNER, RIM_AUTHORITY), (RIM_AUTHORITY, RIM_ROOT), (LEAF, DEVICE)):
        refused(whole(crl=crl(issuer, certificate.certificate.serial_number)), Revoked)
    parts = [response(DEVICE, ROOT), response(RIM_SIGNER, RIM_AUTHORITY), response(RIM_AUTHORITY, RIM_ROOT)]
    for at in range(3):
        checks = found(whole(ocsp=b"".join(parts[:at] + parts[at + 1 :])))["revocation"]
        assert [one.outcome for one in checks].count(Outcome.SKIPPED) == (1 if at == 0 else 2)
    checks = found(whole().without_document("ocsp"))["revocation"]
    assert {one.outcome for one in checks} == {Outcome.SKIPPED}
    assert "GPU device" in checks[0].seen
    assert outcomes(whole(ocsp=b"".join(parts[1:]), crl=crl(ROOT, 99)))["revocation"] == {Outcome.PASS}


def test_a_list_of_somebody_else_is_no_check() -> None:
    parts = response(RIM_SIGNER, RIM_AUTHORITY) + response(RIM_AUTHORITY, RIM_ROOT)
    stranger = party("other", ec_key("other"))
    assert Outcome.SKIPPED in outcomes(whole(ocsp=parts, crl=crl(stranger, 99)))["revocation"]
    refused(whole(ocsp=parts, crl=crl(party("GPU root", ec_key("other")), 99)), InvalidSignature)


def test_what_is_signed_is_what_is_read() -> None:
    document = manifest({2: BLOCKS[2]}, DRIVER)
    assert read(document).measurements == {2: (BLOCKS[2],)}
    changed = document.replace(BLOCKS[2].hex().encode(), (b"\3" * 48).hex().encode())
    assert changed != document
    with pytest.raises(InvalidSignature):
        read(changed)


def test_a_signed_part_inside_of_something_else_is_not_the_document() -> None:
    """Signature wrapping: the genuine tag goes into another one, with the signature where it was or moved up."""
    genuine = manifest({2: BLOCKS[2]}, DRIVER)
    inside = genuine.decode()
    outer = swid(resource(1, b"\3" * 48), DRIVER)
    with pytest.raises(AttestationError):
        read(outer.replace("</SoftwareIdentity>", inside + "</SoftwareIdentity>").encode())
    start, end = inside.index("<ds:Signature"), inside.index("</ds:Signature>") + len("</ds:Signature>")
    signature, content = inside[start:end], inside[:start] + inside[end:]
    with pytest.raises(AttestationError):
        read(outer.replace("</SoftwareIdentity>", content + signature + "</SoftwareIdentity>").encode())


def test_only_strong_signatures_of_the_first_certificate() -> None:
    text = swid(resources({2: BLOCKS[2]}))
    for chain in ((RIM_AUTHORITY, RIM_ROOT), CHAIN):
        assert read(signed(text, chain))
    thief = party("RIM signer", ec_key("thief"), RIM_AUTHORITY, ca=False)
    with pytest.raises(InvalidSignature):
        read(resigned(signed(text), RIM_SIGNER, thief))
    for method, digest in (
        (SignatureMethod.ECDSA_SHA256, DigestAlgorithm.SHA384),
        (SignatureMethod.ECDSA_SHA384, DigestAlgorithm.SHA256),
    ):
        with pytest.raises(InvalidSignature):
            read(signed(text, method=method, digest=digest))


def test_time() -> None:
    refused(replace(whole(), now=NOW + timedelta(days=400)), OutsideValidity)
    old = party("RIM signer", ec_key("rim signer"), RIM_AUTHORITY, ca=False, begin=NOW - 2 * YEAR, end=NOW - YEAR)
    late = resigned(manifest({2: BLOCKS[2]}, DRIVER), RIM_SIGNER, old)
    refused(whole(driver_rim=late), OutsideValidity)


@pytest.mark.parametrize(
    "text",
    [
        swid(""),
        swid(resource(1, bytes(48)) * 2),
        swid(resource(1, bytes(47))),
        swid(resource(1, bytes(48), alternatives=2)),
        swid(resource(1, bytes(48), alternatives=65)),
        swid(resource(256, bytes(48))),
        swid(resource(-1, bytes(48))),
        swid(resource("\u0661", bytes(48))),
        swid(resource("", bytes(48))),
        swid(resource(1, bytes(48), alternatives="x")),
        "<a/>",
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd"/>',
    ],
)
def test_signed_things_that_are_no_manifest(text: str) -> None:
    with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
        read(signed(text))


def test_documents_that_are_no_manifest() -> None:
    genuine = manifest({2: BLOCKS[2]}, DRIVER)
    bomb = b'<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;&x;">]>'
    outside = b'<!DOCTYPE a SYSTEM "file:///etc/passwd">'
    for document in (b"", b"<", b"\xff\xfe<\x00", genuine[:-1], bomb + genuine, outside + genuine, b"<a>&lol;</a>"):
        with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
            read(document)
    for document in (genuine + b" " * MAX_RIM_BYTES, b"<a>" * 5000):
        with pytest.raises(MalformedEvidence, match=r"; .*\.$"):
            read(document)
    unsigned = swid(resources({2: BLOCKS[2]})).encode()
    with pytest.raises(MalformedEvidence, match="no chain"):
        read(unsigned)


def test_some_bytes_of_a_manifest() -> None:
    """A changed byte is refused, or is one that the canonical form of XML does not have, or of a later certificate."""
    document = manifest({2: BLOCKS[2]}, DRIVER)
    right = read(document)
    refusals = 0
    for changed in flips(document, step=13):
        try:
            now = read(changed)
        except AttestationError:
            refusals += 1
            continue
        assert replace(now, chain=right.chain) == right
    assert refusals > 50


@settings(deadline=None)
@given(st.binary(max_size=300))
def test_noise(noise: bytes) -> None:
    document = manifest({2: BLOCKS[2]}, DRIVER)
    for changed in (noise, document[:200] + noise + document[200:], noise + document):
        try:
            read(changed)
        except AttestationError:
            continue
