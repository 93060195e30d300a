"""NVIDIA's reference integrity manifests (RIM): which measurements a driver and a VBIOS ought to have.

Formats: TCG Reference Integrity Manifest Information Model 1.01, as a SWID tag (ISO/IEC 19770-2:2015) in XML with an
enveloped XML signature (W3C XML-DSig Core 1.1), whose KeyInfo holds the chain, the signer's certificate first. A
`Resource` of type Measurement has an index, `active`, a number of `alternatives` and that many hashes; index 0 is
SPDM's measurement 1. `colloquialVersion` names the driver or VBIOS.

The chain has to end in NVIDIA's root for reference values, which is another one than that of its devices. Nothing of a
manifest is looked at except what the signature covers.
"""

import base64
import binascii
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from lxml import etree
from signxml.algorithms import DigestAlgorithm, SignatureMethod
from signxml.exceptions import SignXMLException
from signxml.verifier import SignatureConfiguration, XMLVerifier

from confide.attest.chain import MAX_CERTIFICATES, read_certificate
from confide.errors import InvalidSignature, MalformedEvidence

MAX_RIM_BYTES: Final = 1 << 18
"""NVIDIA's have 20 KiB."""

MAX_MEASUREMENTS: Final = 255
MAX_ALTERNATIVES: Final = 64
NVDEC_INDEX: Final = 35
"""Of the first video decoder, which some GPUs have switched off."""

_SWID: Final = "http://standards.iso.org/iso/19770/-2/2015/schema.xsd"
_SIGNATURE: Final = "http://www.w3.org/2000/09/xmldsig#"
_HASH: Final = "{http://www.w3.org/2001/04/xmlenc#sha384}Hash"
_DIGEST_BYTES: Final = 48
_ERRORS: Final = (
    SignXMLException,
    etree.LxmlError,
    ValueError,
    TypeError,
    AttributeError,
    LookupError,
    NotImplementedError,
)
"""What `signxml` raises for signatures that are none: it takes what it finds for well-formed."""


@dataclass(frozen=True)
class ReferenceManifest:
    """A manifest whose signature holds under the first certificate of its own chain, which is yet to be verified.

    version: of the driver or VBIOS, such as 550.90.07. product: such as GH100. measurements: the digests allowed, 48
    bytes each, by SPDM's index, from 1; those that are not active are left out.
    """

    chain: tuple[x509.Certificate, ...]
    version: str
    product: str
    measurements: Mapping[int, tuple[bytes, ...]]

    @classmethod
    def read(cls, document: bytes, what: str) -> Self:
        """Read a manifest, naming it `what` in errors.

        MalformedEvidence if it is none, InvalidSignature if the signature does not hold.
        """
        chain = _chain(_parse(document, what), what)
        root = _signed(document, chain[0], what)
        meta = root.find(f"{{{_SWID}}}Meta")
        if root.tag != f"{{{_SWID}}}SoftwareIdentity" or meta is None:
            raise _malformed(what, "what is signed is no SoftwareIdentity with Meta")
        return cls(chain, meta.get("colloquialVersion", ""), meta.get("product", ""), dict(_measurements(root, what)))


def reference_chain(document: bytes, what: str) -> tuple[x509.Certificate, ...]:
    """The chain in a manifest, the signer first, nothing of it verified: whose status to ask for."""
    return _chain(_parse(document, what), what)


def _parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, dtd_validation=False, huge_tree=False
    )


def _parse(document: bytes, what: str) -> etree._Element:
    if len(document) > MAX_RIM_BYTES:
        raise _malformed(what, f"it has more than {MAX_RIM_BYTES >> 10} KiB")
    try:
        root = etree.fromstring(document, _parser())
    except (etree.LxmlError, ValueError) as error:
        raise _malformed(what, "it is no XML") from error
    if root.getroottree().docinfo.internalDTD is not None:
        raise _malformed(what, "it declares a document type")
    return root


def _chain(root: etree._Element, what: str) -> tuple[x509.Certificate, ...]:
    names = {"ds": _SIGNATURE}
    found = root.findall("ds:Signature/ds:KeyInfo/ds:X509Data/ds:X509Certificate", names)
    if not 1 <= len(found) <= MAX_CERTIFICATES:
        raise _malformed(what, f"its signature has no chain of 1 to {MAX_CERTIFICATES} certificates")
    return tuple(read_certificate(_base64(one.text or "", what), f"certificate of the {what}") for one in found)


def _base64(text: str, what: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise _malformed(what, "its certificates are not in base64") from error


def _signed(document: bytes, signer: x509.Certificate, what: str) -> etree._Element:
    """What the one signature at the root covers, as it was signed."""
    key = signer.public_key()
    if not (isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP384R1)):
        raise InvalidSignature(f"The {what} is not signed with a P-384 key; fetch it from NVIDIA again.")
    expected = SignatureConfiguration(
        location="./",
        expect_references=1,
        signature_methods=frozenset({SignatureMethod.ECDSA_SHA384}),
        digest_algorithms=frozenset({DigestAlgorithm.SHA384, DigestAlgorithm.SHA512}),
        verification_time=signer.not_valid_before_utc,  # whether it is valid is for the walk of its chain to say
    )
    try:
        result = XMLVerifier().verify(document, x509_cert=signer, parser=_parser(), expect_config=expected)
    except _ERRORS as error:
        raise InvalidSignature(f"The signature of the {what} does not hold; fetch it from NVIDIA again.") from error
    root = None if isinstance(result, list) else result.signed_xml
    if root is None:
        raise _malformed(what, "what is signed is no XML")
    return root


def _measurements(root: etree._Element, what: str) -> Iterator[tuple[int, tuple[bytes, ...]]]:
    resources = [
        one for one in root.iterfind(f"{{{_SWID}}}Payload/{{{_SWID}}}Resource") if one.get("type") == "Measurement"
    ]
    if not 1 <= len(resources) <= MAX_MEASUREMENTS:
        raise _malformed(what, f"it has not 1 to {MAX_MEASUREMENTS} measurements")
    seen: set[int] = set()
    for resource in resources:
        index = _number(resource.get("index"), MAX_MEASUREMENTS, what)
        if index in seen:
            raise _malformed(what, f"it has measurement {index} twice")
        seen.add(index)
        # "False" is what switches one off, so that a word nobody knows does not.
        if resource.get("active") != "False":
            count = _number(resource.get("alternatives"), MAX_ALTERNATIVES, what)
            yield index + 1, tuple(_digest(resource.get(f"{_HASH}{at}"), what) for at in range(count))


def _number(text: str | None, largest: int, what: str) -> int:
    if text is None or not text.isascii() or not text.isdecimal() or len(text) > 4 or int(text) > largest:
        raise _malformed(what, "a measurement's index or number of alternatives is missing or too large")
    return int(text)


def _digest(text: str | None, what: str) -> bytes:
    try:
        digest = bytes.fromhex(text or "")
    except ValueError:
        digest = b""
    if len(digest) != _DIGEST_BYTES:
        raise _malformed(what, "a measurement has not as many SHA-384 digests as it says")
    return digest


def _malformed(what: str, why: str) -> MalformedEvidence:
    return MalformedEvidence(f"The {what} cannot be used, for {why}; fetch it from NVIDIA again.")
