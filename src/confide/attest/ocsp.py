"""Whether certificates were revoked, as their issuers' OCSP responders say (RFC 6960).

Responses are documents like any other: fetched before, judged here at a time that is an argument. So there is no nonce
in them; what bounds their age is their own nextUpdate, or a day where a responder names none.
"""

import hashlib
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Final

from cryptography import x509
from cryptography.exceptions import InvalidSignature as WrongSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import ocsp
from cryptography.x509.oid import ExtendedKeyUsageOID

from confide.attest.der import elements
from confide.errors import InvalidSignature, MalformedEvidence, OutsideValidity, Revoked
from confide.errors.certificates import PARSE_ERRORS

MAX_RESPONSES: Final = 16
MAX_OCSP_BYTES: Final = 1 << 17
MAX_AGE: Final = timedelta(days=1)
"""Of a response that does not say when the next one is due: then there is always a newer one (RFC 6960, 4.2.2.1)."""

_STRONG: Final = (hashes.SHA256, hashes.SHA384, hashes.SHA512)
_ADVICE: Final = "ask the responder again"


def ocsp_request(certificate: x509.Certificate, issuer: x509.Certificate) -> bytes:
    """The request (DER) for the status of one certificate. The same bytes every time, so that answers can be kept."""
    builder = ocsp.OCSPRequestBuilder().add_certificate(certificate, issuer, hashes.SHA384())
    return builder.build().public_bytes(Encoding.DER)


class OcspResponses:
    """Responses of any responders, one DER structure behind the other."""

    def __init__(self, document: bytes) -> None:
        """MalformedEvidence if they are none, or too many."""
        self._responses = tuple(_read(document))

    @property
    def oldest(self) -> datetime:
        """When the oldest response was made."""
        return min(single.this_update_utc for response in self._responses for single in response.responses)

    def check(self, certificate: x509.Certificate, issuer: x509.Certificate, now: datetime) -> datetime | None:
        """Until when the certificate is known to be good; None where no response is about it.

        Revoked where one that is current says so or does not know the certificate; InvalidSignature where its issuer
        did not sign that, nor a responder that it named; OutsideValidity where none is current at `now`.
        """
        found: list[ocsp.OCSPSingleResponse] = []
        for response in self._responses:
            singles = [one for one in response.responses if _is_about(one, certificate, issuer)]
            if singles:
                _check_signed(response, issuer, now)
            found += singles
        name = certificate.subject.rfc4514_string()[:200]
        current = [one for one in found if one.this_update_utc <= now <= _end(one)]
        if found and not current:
            raise OutsideValidity(f"No OCSP response about {name!r} is current at {now:%Y-%m-%d %H:%M}; {_ADVICE}.")
        for one in current:
            if one.certificate_status is ocsp.OCSPCertStatus.UNKNOWN:
                raise Revoked(f"The responder does not know the certificate {name!r}; do not trust this platform.")
            if one.certificate_status is not ocsp.OCSPCertStatus.GOOD:
                reason = f" ({one.revocation_reason.value})" if one.revocation_reason else ""
                raise Revoked(f"The certificate {name!r} was revoked{reason}; do not trust this platform.")
        return max(map(_end, current), default=None)


def response_end(response: bytes) -> datetime | None:
    """When a response asks to be renewed; MalformedEvidence if it is none, or refuses to answer."""
    ends = [single.next_update_utc for one in _read(response) for single in one.responses]
    return min((end for end in ends if end is not None), default=None)


def _read(document: bytes) -> Iterator[ocsp.OCSPResponse]:
    if len(document) > MAX_OCSP_BYTES:
        raise MalformedEvidence(f"OCSP responses have at most {MAX_OCSP_BYTES >> 10} KiB; give the right document.")
    try:
        parts = elements(document)
        responses = [ocsp.load_der_ocsp_response(part.whole) for part in parts[: MAX_RESPONSES + 1]]
    except (MalformedEvidence, *PARSE_ERRORS) as error:
        raise MalformedEvidence(f"The OCSP responses cannot be read; {_ADVICE}.") from error
    if not 1 <= len(responses) <= MAX_RESPONSES:
        raise MalformedEvidence(f"Give 1 to {MAX_RESPONSES} OCSP responses; there are more, or none.")
    for response in responses:
        if response.response_status is not ocsp.OCSPResponseStatus.SUCCESSFUL:
            raise MalformedEvidence(f"The OCSP responder refused ({response.response_status.name}); {_ADVICE}.")
        try:
            _touch(response)
        except PARSE_ERRORS as error:
            raise MalformedEvidence(f"The OCSP responses cannot be read; {_ADVICE}.") from error
        yield response


def _touch(response: ocsp.OCSPResponse) -> None:
    """Use all that the library parses only on demand."""
    _ = (response.signature_hash_algorithm, response.tbs_response_bytes, response.signature, response.extensions)
    for single in response.responses:
        _single = (single.certificate_status, single.this_update_utc, single.next_update_utc, single.hash_algorithm)
        _revocation = (single.revocation_reason, single.issuer_key_hash, single.issuer_name_hash, single.serial_number)
    for certificate in response.certificates:
        _certificate = (certificate.extensions, certificate.public_key(), certificate.subject, certificate.issuer)


def _is_about(single: ocsp.OCSPSingleResponse, certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """By serial number, and the issuer's name and key. SHA-1 will do for these: the issuer has to sign besides."""
    if single.serial_number != certificate.serial_number:
        return False
    name, key = (hashlib.new(single.hash_algorithm.name) for _ in range(2))
    name.update(issuer.subject.public_bytes())
    key.update(_key_bits(issuer))
    return (name.digest(), key.digest()) == (single.issuer_name_hash, single.issuer_key_hash)


def _key_bits(certificate: x509.Certificate) -> bytes:
    """The subjectPublicKey BIT STRING without tag, length and unused bits."""
    spki = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return elements(elements(spki)[0].content)[1].content[1:]


def _check_signed(response: ocsp.OCSPResponse, issuer: x509.Certificate, now: datetime) -> None:
    """RFC 6960, 4.2.2.2: by the issuer, or by a responder that the issuer itself certified for that."""
    for signer in (issuer, *response.certificates):
        if _signed_by(response, signer) and (signer == issuer or _is_responder(signer, issuer, now)):
            return
    raise InvalidSignature(f"The OCSP response is signed by nobody whom the issuer named for that; {_ADVICE}.")


def _signed_by(response: ocsp.OCSPResponse, signer: x509.Certificate) -> bool:
    key, digest = signer.public_key(), response.signature_hash_algorithm
    if not isinstance(digest, _STRONG):
        return False
    try:
        if isinstance(key, ec.EllipticCurvePublicKey):
            key.verify(response.signature, response.tbs_response_bytes, ec.ECDSA(digest))
        elif isinstance(key, rsa.RSAPublicKey):
            key.verify(response.signature, response.tbs_response_bytes, padding.PKCS1v15(), digest)
        else:
            return False
    except WrongSignature:
        return False
    return True


def _is_responder(signer: x509.Certificate, issuer: x509.Certificate, now: datetime) -> bool:
    try:
        usage = signer.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
        signer.verify_directly_issued_by(issuer)
    except (x509.ExtensionNotFound, WrongSignature, *PARSE_ERRORS):
        return False
    current = signer.not_valid_before_utc <= now <= signer.not_valid_after_utc
    strong = isinstance(signer.signature_hash_algorithm, _STRONG)
    return ExtendedKeyUsageOID.OCSP_SIGNING in usage and current and strong


def _end(single: ocsp.OCSPSingleResponse) -> datetime:
    return single.next_update_utc or single.this_update_utc + MAX_AGE
