"""What to ask NVIDIA for about a GPU: the reference manifests of its driver and VBIOS, and the status of certificates.

RIM service: GET /v1/rim/{id}, answered with JSON that holds the manifest in base64; the identifiers are those of
https://docs.nvidia.com/attestation/cloud-services/latest/rim/rim_api.html. OCSP: https://docs.nvidia.com/attestation/
cloud-services/latest/ocsp/ocsp_api.html, asked as RFC 6960, A.1 has it, by POST and without a nonce, so that answers
can be kept. Nothing is signed by these answers themselves; what is in them is the verifier's to judge.
"""

import base64
import binascii
from itertools import pairwise
from typing import Final

import msgspec
from cryptography import x509

from confide.attest.chain import read_chain
from confide.attest.collateral import Collateral, Provenance
from confide.attest.collateral_cache import CollateralCache, Document, Response
from confide.attest.collateral_sources import Gathered
from confide.attest.evidence import Evidence
from confide.attest.families.nvidia import product_of
from confide.attest.families.nvidia_report import Report
from confide.attest.ocsp import ocsp_request, response_end
from confide.errors import MalformedEvidence, WrongCollateral

NVIDIA_RIM: Final = "https://rim.attestation.nvidia.com"
NVIDIA_OCSP: Final = "https://ocsp.ndis.nvidia.com/"


def nvidia_collateral(
    cache: CollateralCache,
    evidence: Evidence,
    *,
    chain: bytes | None = None,
    service: str = NVIDIA_RIM,
    responder: str = NVIDIA_OCSP,
    allow_stale: bool = False,
) -> Gathered:
    """The documents `driver-rim`, `vbios-rim` and `ocsp` for a GPU. chain: where it is no part of the evidence.

    A manifest that NVIDIA does not have is left out, and then the verdict says that it was not there. The GPU's own
    leaf is not asked about: the GPU makes it at every start.
    """
    from confide.attest.families.nvidia_rim import reference_chain

    report = Report.parse(evidence.raw)
    document = evidence.parts.get("chain") or chain
    if document is None:
        raise WrongCollateral("The GPU's certificates are missing; send them with its report, as `chain`.")
    certificates = read_chain(document, "chain of the GPU")
    names = {"driver-rim": report.driver_manifest(product_of(certificates[0])), "vbios-rim": report.vbios_manifest()}
    answers: list[Document] = []
    documents = {"chain": document}
    asked = dict.fromkeys(pairwise(certificates[1:]))
    for kind, name in names.items():
        found = None if name is None else _manifest(cache, f"{service}/v1/rim/{name}", allow_stale)
        if found is not None:
            answers.append(found)
            documents[kind] = rim_document(found.response)
            asked |= dict.fromkeys(pairwise(reference_chain(documents[kind], "manifest of the GPU")))
    statuses = [_status(cache, responder, one, issuer, allow_stale) for one, issuer in asked]
    if statuses:
        documents["ocsp"] = b"".join(answer.response.body for answer in statuses)
    answers += statuses
    provenance = Provenance(fetched=min((answer.fetched for answer in answers), default=None))
    stale = tuple(answer.url for answer in answers if answer.stale)
    return Gathered(Collateral(documents, provenance=provenance), stale)


class _Answer(msgspec.Struct):
    """Of the RIM service, as far as it is used."""

    rim: str


def _manifest(cache: CollateralCache, url: str, allow_stale: bool) -> Document | None:
    try:
        return cache.get(url, _no_end, allow_stale=allow_stale)
    except WrongCollateral:  # NVIDIA has none for this version
        return None


def _no_end(response: Response) -> None:
    """A manifest has no end of its own: its signer's certificate has."""
    rim_document(response)


def rim_document(response: Response) -> bytes:
    try:
        return base64.b64decode(msgspec.json.decode(response.body, type=_Answer).rim, validate=True)
    except (msgspec.MsgspecError, binascii.Error, ValueError, RecursionError) as error:
        problem = "NVIDIA's answer has no reference manifest; check the service's address, or try again later."
        raise MalformedEvidence(problem) from error


def _status(
    cache: CollateralCache, responder: str, certificate: x509.Certificate, issuer: x509.Certificate, allow_stale: bool
) -> Document:
    request = ocsp_request(certificate, issuer)
    return cache.get(responder, lambda answer: response_end(answer.body), body=request, allow_stale=allow_stale)
