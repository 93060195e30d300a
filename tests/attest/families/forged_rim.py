"""Reference manifests and OCSP responses as NVIDIA publishes them, under roots of nobody."""

from base64 import b64encode
from collections.abc import Mapping
from datetime import datetime, timedelta

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import ocsp
from lxml import etree
from signxml.algorithms import CanonicalizationMethod, DigestAlgorithm, SignatureConstructionMethod, SignatureMethod
from signxml.signer import XMLSigner

from .authorities import Party, ec_key, party
from .cases import NOW

RIM_ROOT = party("RIM root", ec_key("rim root"), serial=40)
RIM_AUTHORITY = party("RIM authority", ec_key("rim authority"), RIM_ROOT, serial=41)
RIM_SIGNER = party("RIM signer", ec_key("rim signer"), RIM_AUTHORITY, ca=False, serial=42)
CHAIN = (RIM_SIGNER, RIM_AUTHORITY, RIM_ROOT)


def swid(measurements: str, version: str = "550.1", product: str = "GH100") -> str:
    """The tag without its signature. measurements: `Resource` elements."""
    return (
        '<SoftwareIdentity xmlns="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" '
        'xmlns:ns0="http://standards.iso.org/iso/19770/-2/2015/schema.xsd" '
        f'xmlns:ns2="http://www.w3.org/2001/04/xmlenc#sha384" name="{product}" tagId="1">'
        f'<ns0:Meta colloquialVersion="{version}" product="{product}"/>'
        f"<ns0:Payload>{measurements}</ns0:Payload></SoftwareIdentity>"
    )


def resource(index: object, *digests: bytes, active: str = "True", alternatives: object = None) -> str:
    hashes_of = " ".join(f'ns2:Hash{at}="{digest.hex()}"' for at, digest in enumerate(digests))
    count = len(digests) if alternatives is None else alternatives
    return (
        f'<ns0:Resource type="Measurement" index="{index}" active="{active}" alternatives="{count}" {hashes_of} '
        f'name="Measurement_{index}" size="48"/>'
    )


def resources(blocks: Mapping[int, bytes]) -> str:
    """Of SPDM's measurements by their index."""
    return "".join(resource(index - 1, value) for index, value in blocks.items())


def signed(
    text: str,
    chain: tuple[Party, ...] = CHAIN,
    method: SignatureMethod = SignatureMethod.ECDSA_SHA384,
    digest: DigestAlgorithm = DigestAlgorithm.SHA384,
) -> bytes:
    """A tag with its enveloped signature."""
    signer = XMLSigner(SignatureConstructionMethod.enveloped, method, digest, CanonicalizationMethod.CANONICAL_XML_1_1)
    assert isinstance(chain[0].key, ec.EllipticCurvePrivateKey)
    certificates = [one.certificate for one in chain]
    return etree.tostring(signer.sign(etree.fromstring(text), key=chain[0].key, cert=certificates))


def manifest(blocks: Mapping[int, bytes], version: str, product: str = "GH100") -> bytes:
    return signed(swid(resources(blocks), version, product))


def response(
    certificate: Party,
    issuer: Party,
    signer: Party | None = None,
    *,
    status: ocsp.OCSPCertStatus = ocsp.OCSPCertStatus.GOOD,
    begin: datetime = NOW - timedelta(hours=1),
    end: datetime | None = NOW + timedelta(hours=1),
    digest: hashes.HashAlgorithm | None = None,
    certificates: tuple[Party, ...] = (),
    reason: x509.ReasonFlags | None = None,
) -> bytes:
    """What a responder says of one certificate; signed by its issuer, unless told."""
    by = signer or issuer
    revoked = status is ocsp.OCSPCertStatus.REVOKED
    builder = ocsp.OCSPResponseBuilder().add_response(
        certificate.certificate,
        issuer.certificate,
        digest or hashes.SHA384(),
        status,
        begin,
        end,
        begin if revoked else None,
        reason,
    )
    builder = builder.responder_id(ocsp.OCSPResponderEncoding.HASH, by.certificate)
    if certificates:
        builder = builder.certificates([one.certificate for one in certificates])
    return builder.sign(by.key, hashes.SHA384()).public_bytes(Encoding.DER)


def responder(issuer: Party, usage: x509.ObjectIdentifier = x509.OID_OCSP_SIGNING, **options: object) -> Party:
    """A responder that an issuer named."""
    extensions = [x509.ExtendedKeyUsage([usage])]
    return party("responder", ec_key("responder"), issuer, ca=False, extensions=extensions, **options)  # type: ignore[arg-type]


def answer(rim: bytes, name: str = "rim") -> dict[str, str]:
    """What the RIM service says in JSON."""
    return {"id": name, "rim": b64encode(rim).decode(), "last_updated": "2026-01-01T00:00:00Z", "rim_format": "TCG"}
