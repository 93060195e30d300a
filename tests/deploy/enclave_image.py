"""Enclave images, made here by the words of AWS's specification: of whatever sections are asked for."""

import functools
import zlib
from datetime import UTC, datetime, timedelta

import cbor2
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import NameOID

KERNEL, COMMAND_LINE, RAM_DISK, SIGNATURE, METADATA = range(1, 6)
SECTIONS = (
    (KERNEL, b"a kernel" * 100),
    (COMMAND_LINE, b"reboot=k panic=30 pci=off nomodules console=ttyS0"),
    (METADATA, b"{}"),
    (RAM_DISK, b"AWS's first program"),
    (RAM_DISK, b"Confide and a package"),
)


def image(
    sections: tuple[tuple[int, bytes], ...] = SECTIONS,
    *,
    version: int = 4,
    count: int | None = None,
    offset: int = 0,
    longer: int = 0,
    crc: int | None = None,
    behind: bytes = b"",
) -> bytes:
    """offset and longer: by how much the header is wrong about the last section. crc: another than the right one."""
    at, offsets, sizes, body = 548, [], [], b""
    for kind, content in sections:
        offsets.append(at)
        sizes.append(len(content))
        body += kind.to_bytes(2, "big") + bytes(2) + len(content).to_bytes(8, "big") + content
        at += 12 + len(content)
    if sections:
        offsets[-1] += offset
        sizes[-1] += longer
    head = b".eif" + version.to_bytes(2, "big") + bytes(2) + (1 << 30).to_bytes(8, "big") + (2).to_bytes(8, "big")
    head += bytes(2) + (len(sections) if count is None else count).to_bytes(2, "big")
    for table in (offsets, sizes):
        head += b"".join(number.to_bytes(8, "big") for number in (table + [0] * 32)[:32])
    head += bytes(4)
    right = zlib.crc32(head + body + behind)
    return head + (right if crc is None else crc).to_bytes(4, "big") + body + behind


@functools.cache
def certificate() -> x509.Certificate:
    """Of whoever signs an image: one, for its own signature has chance in it."""
    key = ec.derive_private_key(7, ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "signer of images")])
    made = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    return made.not_valid_before(start).not_valid_after(start + timedelta(days=9)).sign(key, hashes.SHA384())


def signature(pem: bytes) -> bytes:
    """A section with this certificate; that bytes are lists of numbers in it is AWS's doing."""
    return cbor2.dumps([{"signing_certificate": list(pem), "signature": list(b"COSE_Sign1")}])


def signed(pem: bytes | None = None) -> bytes:
    return image((*SECTIONS, (SIGNATURE, signature(pem or certificate().public_bytes(Encoding.PEM)))))
