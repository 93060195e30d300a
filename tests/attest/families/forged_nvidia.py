"""GPU reports under a root of nobody."""

from dataclasses import dataclass, field

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots

from .authorities import Party, ec_key, opaque, party, pem
from .cases import Case

FIRMWARE = bytes(range(48))
ROOT = party("GPU root", ec_key("gpu root"), serial=30)
DEVICE = party("GPU device", ec_key("gpu device"), ROOT, serial=31)
FIELDS = {3: b"550.1\0", 6: bytes.fromhex("009f009601000000"), 20: FIRMWARE}
BLOCKS = {1: bytes(48), 2: b"\2" * 48}


def der(tag: int, *parts: bytes) -> bytes:
    content = b"".join(parts)
    size = bytes([len(content)]) if len(content) < 128 else b"\x81" + bytes([len(content)])
    return bytes([tag]) + size + content


def firmware_id(digest: bytes) -> bytes:
    """DICE's FWID: the algorithm, SHA-384, and the digest."""
    return der(0x30, bytes.fromhex("0609608648016503040202"), der(4, digest))


def device_id(digest: bytes) -> x509.UnrecognizedExtension:
    """As Hopper's leaves have it."""
    return opaque("2.23.133.5.4.1", der(0x30, b"\2\1\1", der(0x30, b""), firmware_id(digest)))


def tcb_info(*digests: bytes) -> x509.UnrecognizedExtension:
    """As Blackwell's leaves have it."""
    fields = der(0x80, b"NVIDIA"), der(0x83, b"\1"), der(0xA6, *map(firmware_id, digests)), der(0x87, b"\0")
    return opaque("2.23.133.5.4.1.1", der(0x30, *fields))


def leaf(name: str = "gpu", *certified: x509.UnrecognizedExtension, product: str = "GH100", **options: object) -> Party:
    """certified: the extensions that name the firmware; one as Hopper has it, unless told."""
    device = der(0x0C, f"V:{product}:1".encode())
    other = x509.OtherName(x509.ObjectIdentifier("1.3.6.1.4.1.412.274.1"), device)
    extensions = [*(certified or (device_id(FIRMWARE),)), x509.SubjectAlternativeName([other])]
    key = options.pop("key", ec_key(name))
    return party(name, key, DEVICE, ca=False, extensions=extensions, **options)  # type: ignore[arg-type]


LEAF = leaf()


def little(value: int, size: int) -> bytes:
    return value.to_bytes(size, "little")


def block(index: int, value: bytes, specification: int = 1) -> bytes:
    body = b"\1" + little(len(value), 2) + value
    return bytes([index, specification]) + little(len(body), 2) + body


@dataclass(frozen=True)
class Messages:
    """The two messages, each field as it should be."""

    nonce: bytes = bytes(range(32))
    request: bytes = b"\x11\xe0\x01\xff"
    response: bytes = b"\x11\x60\x00\x00"
    record: bytes = b"".join(block(index, value) for index, value in BLOCKS.items())
    count: int = len(BLOCKS)
    fields: dict[int, bytes] = field(default_factory=lambda: dict(FIELDS))
    tail: bytes = b""

    def signed(self, key: ec.EllipticCurvePrivateKey) -> bytes:
        opaque_data = b"".join(little(kind, 2) + little(len(value), 2) + value for kind, value in self.fields.items())
        opaque_data += self.tail
        head = self.request + self.nonce + b"\0" + self.response
        head += bytes([self.count]) + little(len(self.record), 3) + self.record
        whole = head + bytes(32) + little(len(opaque_data), 2) + opaque_data
        numbers = decode_dss_signature(key.sign(whole, ec.ECDSA(hashes.SHA384())))
        return whole + b"".join(number.to_bytes(48, "big") for number in numbers)


def gpu_case(messages: Messages | None = None, signer: Party = LEAF) -> Case:
    """A report that verifies under the simulated root."""
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    return Case(
        Evidence(Family.NVIDIA, (messages or Messages()).signed(signer.key)),
        Collateral({"chain": pem(signer, DEVICE, ROOT)}),
        SimulatedRoots({Family.NVIDIA: ROOT.der}),
    )
