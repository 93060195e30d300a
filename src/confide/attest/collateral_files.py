"""Collateral out of files, as vendors serve them and tools write them: told by content, in any order and armour.

Certificates, lists and keys come as DER, PEM (also URL-encoded, as in Intel's headers), hexadecimal or base64; DCAP's
collateral as one JSON of QuoteCollateralV3, or as Intel's own answers, from which that JSON is put together: TCB info,
QE identity, both lists, and the certificates of both issuer chains. NVIDIA's manifests are XML, a release
and the certificates of scores and trainings are JSON.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final
from urllib.parse import unquote_to_bytes

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, load_der_public_key
from cryptography.x509.ocsp import load_der_ocsp_response

from confide.attest.certificates import PAYLOAD_TYPE, predicate_type
from confide.attest.chain import path_from, read_certificate, read_crl
from confide.attest.collateral import Collateral
from confide.attest.collateral_sources import signed_text
from confide.attest.families import nvidia_json
from confide.attest.forms import bounded, from_base64, octets, pem, read_object
from confide.attest.release import RELEASE
from confide.attest.scores import SCORES, ScoreCertificate
from confide.attest.training import TRAINING, TrainingCertificate
from confide.errors import MalformedEvidence, WrongCollateral
from confide.errors.certificates import PARSE_ERRORS

MAX_CERTIFICATES: Final = 32

_SIGSTORE_BUNDLE: Final = "application/vnd.dev.sigstore.bundle"
_DCAP_KEYS: Final = {"tcb_info", "qe_identity"}
_SIGNED: Final = {"tcbInfo": "tcb_info", "enclaveIdentity": "qe_identity"}
"""Intel's names for what it signs, and QuoteCollateralV3's."""

_BEGIN, _END, _DASHES = b"-----BEGIN ", b"-----END ", b"-----"
_CERTIFICATE, _LIST, _KEY = b"CERTIFICATE", b"X509 CRL", b"PUBLIC KEY"


@dataclass
class _Found:
    """What the files held. alone: certificates that had a file of their own, in DER."""

    documents: dict[str, bytes] = field(default_factory=dict)
    certificates: list[x509.Certificate] = field(default_factory=list)
    alone: list[x509.Certificate] = field(default_factory=list)
    lists: list[x509.CertificateRevocationList] = field(default_factory=list)
    signed: dict[str, tuple[str, str]] = field(default_factory=dict)
    scores: list[ScoreCertificate] = field(default_factory=list)
    training: list[TrainingCertificate] = field(default_factory=list)

    def put(self, name: str, document: bytes) -> None:
        """A document that there is one of."""
        if name in self.documents:
            raise MalformedEvidence(f"Two of the files of collateral are a {name}; give each thing once.")
        self.documents[name] = document


def gather(files: Iterable[bytes]) -> Collateral:
    """The documents that these files hold; MalformedEvidence or WrongCollateral where that is not clear."""
    found = _Found()
    for data in files:
        _sort(bounded(data), found)
        if len(found.certificates) + len(found.alone) > MAX_CERTIFICATES:
            raise MalformedEvidence(
                f"The collateral has more than {MAX_CERTIFICATES} certificates; give the chain alone."
            )
    if found.signed:
        found.put("dcap", _dcap(found))
    if found.scores:
        found.put(SCORES, ScoreCertificate.write_lines(found.scores))
    if found.training:
        found.put(TRAINING, TrainingCertificate.write_lines(found.training))
    for one in found.lists:
        found.put("crl", one.public_bytes(Encoding.DER))
    _name_certificates(found)
    return Collateral(found.documents)


def _sort(data: bytes, found: _Found) -> None:
    """Put what one file holds where it belongs."""
    if data.lstrip()[:1] == b"{":
        _sort_json(data, found)
    elif data.lstrip()[:1] == b"<":
        found.put(nvidia_json.manifest_kind(data), data)
    elif data.lstrip().startswith((_BEGIN, _BEGIN.replace(b" ", b"%20"))):
        _sort_pem(unquote_to_bytes(data) if b"%" in data else data, found)
    elif not any(_sort_der(der, found) for der in (data, *octets(data))):
        raise MalformedEvidence(
            "A file of collateral is no DCAP JSON, PEM chain, certificate, key or CRL, or is cut off; fetch it again."
        )


def _sort_json(data: bytes, found: _Found) -> None:
    document = read_object(data)
    if str(document.get("mediaType", "")).startswith(_SIGSTORE_BUNDLE):
        found.put(RELEASE, data)
        return
    if document.get("payloadType") == PAYLOAD_TYPE:
        _sort_certificate(data, found)
        return
    if document.keys() >= _DCAP_KEYS:
        found.put("dcap", data)
        return
    names = [name for name in _SIGNED if name in document]
    if len(names) != 1 or "signature" not in document:
        raise MalformedEvidence("A file of collateral is JSON, but not DCAP's, or it is cut off; fetch it again.")
    if names[0] in found.signed:
        raise MalformedEvidence(f"Two of the files of collateral are a {names[0]}; give each thing once.")
    found.signed[names[0]] = signed_text(data, names[0])


def _sort_certificate(data: bytes, found: _Found) -> None:
    if predicate_type(data) == TrainingCertificate.PREDICATE_TYPE:
        found.training.append(TrainingCertificate.read(data))
    else:
        found.scores.append(ScoreCertificate.read(data))


def _sort_pem(data: bytes, found: _Found) -> None:
    for label, der in _blocks(data):
        if label == _CERTIFICATE:
            found.certificates.append(read_certificate(der, "certificate of the collateral"))
        elif label == _LIST:
            found.lists.append(read_crl(der, "list of the collateral"))
        elif label == _KEY:
            found.put("ak", der)
        else:
            raise MalformedEvidence(
                f"A file of collateral holds a {label[:40].decode('ascii', 'replace')!r}; give certificates, lists of "
                "revoked ones and public keys alone."
            )


def _blocks(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Each block of a PEM file, label and content; what stands between them is text for people (RFC 7468, 2)."""
    for piece in data.split(_BEGIN)[1:]:
        label, _, rest = piece.partition(_DASHES)
        content, end, _ = rest.partition(_END + label + _DASHES)
        try:
            yield label, from_base64(content.decode("ascii")) if end else b""
        except ValueError:
            raise MalformedEvidence("A PEM file of the collateral is damaged; fetch it again.") from None


def _sort_der(data: bytes, found: _Found) -> bool:
    """Whether these bytes are a certificate, a list or a key; then they are put where they belong."""
    sorts: tuple[Callable[[], None], ...] = (
        lambda: found.alone.append(read_certificate(data, "certificate of the collateral")),
        lambda: found.lists.append(read_crl(data, "list of the collateral")),
        lambda: _sort_status(data, found),
        lambda: _sort_key(data, found),
    )
    for sort in sorts:
        try:
            sort()
        except (MalformedEvidence, *PARSE_ERRORS):
            continue
        return True
    return False


def _sort_status(data: bytes, found: _Found) -> None:
    """An OCSP response. There is one for each certificate, and one document of all."""
    load_der_ocsp_response(data)
    found.documents["ocsp"] = found.documents.get("ocsp", b"") + data


def _sort_key(data: bytes, found: _Found) -> None:
    load_der_public_key(data)
    found.put("ak", data)


def _name_certificates(found: _Found) -> None:
    """AMD names its leaves; authorities, and what came in one PEM with them, are the chain; an attestation key's own
    certificate comes by itself.
    """
    chain: list[x509.Certificate] = []
    for certificate in (*found.certificates, *found.alone):
        name = _amd_leaf(certificate)
        if name:
            found.put(name, certificate.public_bytes(Encoding.DER))
        elif certificate in found.certificates or _is_authority(certificate):
            chain += [certificate] if certificate not in chain else []
        else:
            found.put("ak", certificate.public_bytes(Encoding.DER))
    if chain:
        found.put("chain", pem([certificate.public_bytes(Encoding.DER) for certificate in chain]))


def _amd_leaf(certificate: x509.Certificate) -> str | None:
    names = [str(name.value) for name in certificate.subject.get_attributes_for_oid(x509.NameOID.COMMON_NAME)]
    return {"SEV-VCEK": "vcek", "SEV-VLEK": "vlek"}.get(names[0]) if names else None


def _is_authority(certificate: x509.Certificate) -> bool:
    try:
        return certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        return False


# -- Intel's answers ---------------------------------------------------------------------------------------------


def _dcap(found: _Found) -> bytes:
    """QuoteCollateralV3 from Intel's own answers, whose lists and certificates are used up by that."""
    certificates = [*found.certificates, *found.alone]
    names = [one.subject for one in certificates if one.issuer == one.subject]
    of_root = [one for one in found.lists if one.issuer in names]
    of_pck = [one for one in found.lists if one not in of_root]
    authorities = [one for one in certificates for crl in of_pck if one.subject == crl.issuer]
    signers = [one for one in certificates if one.issuer in names and not _is_authority(one)]
    wanted = {
        "tcbInfo (the platform's TCB info)": len(found.signed.keys() & {"tcbInfo"}),
        "enclaveIdentity (the quoting enclave's identity)": len(found.signed.keys() & {"enclaveIdentity"}),
        "the root's list of revoked certificates": len(of_root),
        "the PCK authority's list of revoked certificates": len(of_pck),
        "the PCK authority's certificate": len(set(authorities)),
        "the TCB signer's certificate": len(set(signers)),
    }
    if problems := [name for name, count in wanted.items() if count != 1]:
        raise WrongCollateral(
            f"Of Intel's answers, there must be one each, and is not, of: {'; '.join(problems)}. The certificates are "
            "in the answers' headers; give the PEM of both issuer chains."
        )
    found.certificates, found.alone, found.lists = [], [], []
    chains = {
        name: pem([one.public_bytes(Encoding.DER) for one in path_from(first, certificates)]).decode()
        for name, first in (("pck_crl_issuer_chain", authorities[0]), ("tcb_info_issuer_chain", signers[0]))
    }
    lists = {"root_ca_crl": of_root[0], "pck_crl": of_pck[0]}
    document = {
        **chains,
        "qe_identity_issuer_chain": chains["tcb_info_issuer_chain"],
        **{name: one.public_bytes(Encoding.DER).hex() for name, one in lists.items()},
    }
    for theirs, ours in _SIGNED.items():
        document[ours], document[f"{ours}_signature"] = found.signed[theirs]
    return json.dumps(document).encode()
