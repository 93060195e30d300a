"""Damage with structure: parts of evidence and certificates overwritten, cut out, put in or repeated.

Whatever is changed is refused, for a typed reason; nothing else is ever raised.
"""

import pytest
from cryptography import x509
from hypothesis import given, settings
from hypothesis import strategies as st

from .authorities import crl, pem_of
from .cases import Case, refused
from .forged_nvidia import DEVICE, LEAF, gpu_case
from .forged_nvidia import ROOT as GPU_ROOT
from .forged_snp import ARK, ASK, snp_case
from .forged_tpm import tpm_case

SNP, GPU, TPM = snp_case(), gpu_case(), tpm_case()
LIST = crl(ARK, 98, 99)
SIGNED_LIST = x509.load_der_x509_crl(LIST).tbs_certlist_bytes


@st.composite
def damaged(draw: st.DrawFn, content: bytes) -> bytes:
    """The content with one to four parts changed."""
    for _ in range(draw(st.integers(1, 4))):
        start = draw(st.integers(0, len(content)))
        part = content[start : start + draw(st.integers(0, 24))]
        flipped = bytes(byte ^ 1 << draw(st.integers(0, 7)) for byte in part)
        new = draw(st.one_of(st.just(b""), st.binary(max_size=20), st.sampled_from([part * 2, flipped])))
        content = content[:start] + new + content[start + len(part) :]
    return content


def check(case: Case, changed: bool) -> None:
    if changed:
        refused(case)
    else:
        case.verify()


@pytest.mark.parametrize("case", [SNP, GPU, TPM], ids=["snp", "gpu", "tpm"])
@settings(deadline=None)
@given(st.data())
def test_evidence(case: Case, data: st.DataObject) -> None:
    original = case.evidence.raw
    raw = data.draw(damaged(original))
    padded = case is GPU and raw.startswith(original) and not any(raw[len(original) :])
    check(case.with_raw(raw), raw != original and not padded)


@settings(deadline=None)
@given(damaged(TPM.evidence.parts["signature"]), damaged(TPM.collateral.documents["ak"]))
def test_tpm_signature_and_key(signature: bytes, key: bytes) -> None:
    check(TPM.with_parts(signature=signature), signature != TPM.evidence.parts["signature"])
    check(TPM.with_documents(ak=key), key != TPM.collateral.documents["ak"])


def only_in_the_outer_frame(changed: bytes, original: bytes, signed: bytes) -> bool:
    """Whether what is signed is intact, and only the encoding of the signature around it was changed, if anything."""
    return changed[: 4 + len(signed)] == original[: 4 + len(signed)]


@settings(deadline=None)
@given(damaged(SNP.collateral.documents["vcek"]), damaged(ASK.der), damaged(LIST))
def test_snp_documents(vcek: bytes, ask: bytes, revoked: bytes) -> None:
    original = SNP.collateral.documents["vcek"]
    signed = x509.load_der_x509_certificate(original).tbs_certificate_bytes
    if not only_in_the_outer_frame(vcek, original, signed):
        refused(SNP.with_documents(vcek=vcek))
    if not only_in_the_outer_frame(ask, ASK.der, ASK.certificate.tbs_certificate_bytes):
        refused(SNP.with_documents(chain=pem_of(ask, ARK.der)))
    if not only_in_the_outer_frame(revoked, LIST, SIGNED_LIST):
        refused(SNP.with_documents(crl=revoked))


@settings(deadline=None)
@given(damaged(LEAF.der), damaged(GPU_ROOT.der))
def test_gpu_documents(leaf: bytes, root: bytes) -> None:
    if not only_in_the_outer_frame(leaf, LEAF.der, LEAF.certificate.tbs_certificate_bytes):
        refused(GPU.with_documents(chain=pem_of(leaf, DEVICE.der, GPU_ROOT.der)))
    check(GPU.with_documents(chain=pem_of(LEAF.der, DEVICE.der, root)), root != GPU_ROOT.der)
