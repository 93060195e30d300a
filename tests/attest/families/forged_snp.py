"""SEV-SNP reports under a root of nobody."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots

from .authorities import Party, ec_key, opaque, party, pem, rsa_key
from .cases import Case

CHIP = bytes(range(64))
TCB = bytes([3, 1, 0, 0, 0, 0, 8, 200])
AMD = "1.3.6.1.4.1.3704.1"
ARK = party("ARK", rsa_key("ark"), serial=10)
ASK = party("ASK", rsa_key("ask"), ARK, path_length=0, serial=11)


def tcb_extensions(tcb: bytes) -> list[x509.UnrecognizedExtension]:
    arcs = {"1": tcb[0], "2": tcb[1], "3": tcb[6], "8": tcb[7]}
    integers = {arc: value.to_bytes(2 if value > 127 else 1, "big") for arc, value in arcs.items()}
    return [opaque(f"{AMD}.3.{arc}", bytes([2, len(value)]) + value) for arc, value in integers.items()]


def leaf(kind: str = "vcek", issuer: Party = ASK, tcb: bytes = TCB, chip: bytes = CHIP, **fields: object) -> Party:
    own = opaque(f"{AMD}.4", chip) if kind == "vcek" else opaque(f"{AMD}.5", b"\x16\x04test")
    key, name = fields.pop("key", ec_key(kind)), fields.pop("name", f"SEV-{kind.upper()}")
    extensions = [*tcb_extensions(tcb), own]
    return party(name, key, issuer, ca=False, extensions=extensions, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fields:
    version: int = 3
    policy: int = 0x30000
    flags: int = 0
    algorithm: int = 1
    cpu_family: int = 0x19
    tcb: bytes = TCB
    chip: bytes = CHIP
    report_data: bytes = bytes(64)


def report(fields: Fields, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signed report with these fields, and zeros elsewhere."""
    raw = bytearray(1184)
    for at, value, size in ((0, fields.version, 4), (8, fields.policy, 8), (0x34, fields.algorithm, 4)):
        raw[at : at + size] = value.to_bytes(size, "little")
    raw[0x48:0x4C] = fields.flags.to_bytes(4, "little")
    raw[0x50:0x90] = fields.report_data
    raw[0x180:0x188] = fields.tcb
    raw[0x188] = fields.cpu_family
    raw[0x1A0:0x1E0] = fields.chip
    numbers = decode_dss_signature(key.sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
    for at, number in zip((0x2A0, 0x2E8), numbers, strict=True):
        raw[at : at + 72] = number.to_bytes(72, "little")
    return bytes(raw)


def snp_case(fields: Fields | None = None, kind: str = "vcek", signer: Party | None = None) -> Case:
    """A report that verifies under the simulated root."""
    signer = signer or leaf(kind)
    fields = fields or Fields(flags=4 if kind == "vlek" else 0)
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    return Case(
        Evidence(Family.SNP, report(fields, signer.key)),
        Collateral({kind: signer.der, "chain": pem(ASK, ARK)}),
        SimulatedRoots({Family.SNP: ARK.der}),
    )
