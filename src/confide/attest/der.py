"""Walking a certificate by its DER, for those that libraries refuse.

Gramine's certificates mis-encode Intel's object identifier (see `ra_tls`) and put a NULL after ecdsa-with-SHA256, which
RFC 5758 forbids; `cryptography` 50 refuses them for that NULL. What is wanted of a certificate here is only its public
key, byte for byte, its dates and its extensions, and none of them depends on those places.

Format: X.690 (definite lengths in the fewest
bytes; one-byte tags) and RFC 5280, 4.1: Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version OPTIONAL, serial,
signature, issuer, validity, subject, subjectPublicKeyInfo, ..., [3] extensions OPTIONAL }, ... }.
There is no recursion, nothing is read past its end, and the number of elements is bounded.
"""

import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from confide.errors import MalformedEvidence

_BOOLEAN: Final = 0x01
_OCTET_STRING: Final = 0x04
_IDENTIFIER: Final = 0x06
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_MULTIBYTE_TAG: Final = 0x1F
_FIELDS_BEFORE_VALIDITY: Final = 3
_FIELDS_BEFORE_SPKI: Final = 5
_TIMES: Final = {0x17: re.compile(rb"[0-9]{12}Z"), 0x18: re.compile(rb"[0-9]{14}Z")}
"""UTCTime and GeneralizedTime as RFC 5280, 4.1.2.5 has them: in seconds, and in UTC."""
_MAX_LENGTH_BYTES: Final = 3
_MAX_ELEMENTS: Final = 64


@dataclass(frozen=True)
class Element:
    """One element: its tag, its content, and all of its bytes."""

    tag: int
    content: bytes
    whole: bytes


def elements(content: bytes) -> list[Element]:
    """The elements that these bytes consist of, one after another."""
    found: list[Element] = []
    while content:
        if len(found) == _MAX_ELEMENTS:
            raise _malformed("more elements than any certificate has")
        found.append(_first(content))
        content = content[len(found[-1].whole) :]
    return found


@dataclass(frozen=True)
class Fields:
    """What is read of a certificate. spki: DER. extensions: values by the content of their identifiers."""

    spki: bytes
    extensions: dict[bytes, bytes]
    not_before: datetime
    not_after: datetime


def read_fields(certificate: bytes) -> Fields:
    """The fields of a DER certificate, nothing of which is verified. MalformedEvidence for anything else."""
    parts = _sequence(_only(certificate))
    fields = _sequence(parts[0]) if parts else []
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) <= _FIELDS_BEFORE_SPKI or fields[_FIELDS_BEFORE_SPKI].tag != _SEQUENCE:
        raise _malformed("no public key where one belongs")
    extensions = [field for field in fields[_FIELDS_BEFORE_SPKI:] if field.tag == _EXTENSIONS]
    dates = [_time(element) for element in _sequence(fields[_FIELDS_BEFORE_VALIDITY])]
    if len(dates) != 2:
        raise _malformed("no two dates where they belong")
    return Fields(fields[_FIELDS_BEFORE_SPKI].whole, _extensions(extensions), *dates)


def _time(element: Element) -> datetime:
    form = _TIMES.get(element.tag)
    if form is None or not form.fullmatch(element.content):
        raise _malformed("a date that is none")
    digits = element.content[:-1].decode("ascii")
    if len(digits) == 12:  # RFC 5280: from 50 on, of the century before
        digits = ("19" if digits >= "5" else "20") + digits
    try:
        return datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=UTC)
    except ValueError:
        raise _malformed("a date that is none") from None


def _extensions(fields: list[Element]) -> dict[bytes, bytes]:
    found: dict[bytes, bytes] = {}
    for field in fields:
        for extension in _sequence(_only(field.content)):
            identifier, value = _extension(extension)
            if identifier in found:
                raise _malformed("the same extension twice")
            found[identifier] = value
    return found


def _extension(element: Element) -> tuple[bytes, bytes]:
    """Extension ::= SEQUENCE { identifier, critical BOOLEAN OPTIONAL, value OCTET STRING }."""
    parts = [part for part in _sequence(element) if part.tag != _BOOLEAN]
    if [part.tag for part in parts] != [_IDENTIFIER, _OCTET_STRING]:
        raise _malformed("an extension that is none")
    return parts[0].content, parts[1].content


def _sequence(element: Element) -> list[Element]:
    if element.tag != _SEQUENCE:
        raise _malformed("something else where a sequence belongs")
    return elements(element.content)


def _only(content: bytes) -> Element:
    element = _first(content)
    if len(element.whole) != len(content):
        raise _malformed("bytes after its end")
    return element


def _first(content: bytes) -> Element:
    if len(content) < 2 or content[0] & _MULTIBYTE_TAG == _MULTIBYTE_TAG:
        raise _malformed("a tag that no certificate has, or none")
    length, start = content[1], 2
    if length >= 0x80:
        start += length & 0x7F
        digits = content[2:start]
        if not 0 < len(digits) <= _MAX_LENGTH_BYTES or start - 2 != len(digits) or digits[0] == 0:
            raise _malformed("a length that is not DER")
        length = int.from_bytes(digits)
        if length < 0x80:
            raise _malformed("a length that is not DER")
    if start + length > len(content):
        raise _malformed("less than its lengths promise")
    return Element(content[0], content[start : start + length], content[: start + length])


def _malformed(what: str) -> MalformedEvidence:
    return MalformedEvidence(f"The certificate cannot be read, for it has {what}. Ask the operator to make it anew.")
