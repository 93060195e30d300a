"""Walking a certificate by its DER, for those that libraries refuse.

Gramine's certificates mis-encode Intel's object identifier (see `ra_tls`) and put a NULL after ecdsa-with-SHA256, which
RFC 5758 forbids; `cryptography` 50 refuses them for that NULL. What is wanted of a certificate here is only its public
key, byte for byte, and its extensions, and neither depends on those places.

Format: X.690 (definite lengths in the fewest
bytes; one-byte tags) and RFC 5280, 4.1: Certificate ::= SEQUENCE { tbs SEQUENCE { [0] version OPTIONAL, serial,
signature, issuer, validity, subject, subjectPublicKeyInfo, ..., [3] extensions OPTIONAL }, ... }.
There is no recursion, nothing is read past its end, and the number of elements is bounded.
"""

from dataclasses import dataclass
from typing import Final

from confide.errors import MalformedEvidence

_BOOLEAN: Final = 0x01
_OCTET_STRING: Final = 0x04
_IDENTIFIER: Final = 0x06
_SEQUENCE: Final = 0x30
_VERSION: Final = 0xA0
_EXTENSIONS: Final = 0xA3
_MULTIBYTE_TAG: Final = 0x1F
_FIELDS_BEFORE_SPKI: Final = 5
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


def spki_and_extensions(certificate: bytes) -> tuple[bytes, dict[bytes, bytes]]:
    """The DER SubjectPublicKeyInfo, and the extensions' values by the content of their identifiers."""
    parts = _sequence(_only(certificate))
    fields = _sequence(parts[0]) if parts else []
    if fields and fields[0].tag == _VERSION:
        del fields[0]
    if len(fields) <= _FIELDS_BEFORE_SPKI or fields[_FIELDS_BEFORE_SPKI].tag != _SEQUENCE:
        raise _malformed("no public key where one belongs")
    extensions = [field for field in fields[_FIELDS_BEFORE_SPKI:] if field.tag == _EXTENSIONS]
    return fields[_FIELDS_BEFORE_SPKI].whole, _extensions(extensions)


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
