"""SEV-SNP reports under a root of nobody."""

from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature

from confide.attest.amd import Product
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots

from .authorities import Party, ec_key, opaque, party, pem, rsa_key
from .cases import Case

CHIP = bytes(range(64))
TCB = bytes([3, 1, 0, 0, 0, 0, 8, 200])
AMD = "1.3.6.1.4.1.3704.1"


@dataclass(frozen=True)
class Line:
    """A product line's authorities, and a processor of it (family, model)."""

    product: Product
    cpu: tuple[int, int]
    ark: Party
    ask: Party
    asvk: Party

    def issuer(self, kind: str) -> Party:
        return self.ask if kind == "vcek" else self.asvk

    @property
    def chip(self) -> bytes:
        """64 bytes, of which Turin has 8."""
        return CHIP[:8].ljust(64, b"\0") if self.product is Product.TURIN else CHIP


def line(product: Product, cpu: tuple[int, int]) -> Line:
    names = (f"ARK-{product}", f"SEV-{product}", f"SEV-VLEK-{product}")
    ark = party(names[0], rsa_key(names[0]), serial=10)
    below = [party(name, rsa_key(name), ark, path_length=0, serial=11) for name in names[1:]]
    return Line(product, cpu, ark, *below)


MILAN = line(Product.MILAN, (0x19, 0x01))
GENOA = line(Product.GENOA, (0x19, 0x11))
TURIN = line(Product.TURIN, (0x1A, 0x02))
ARK, ASK, ASVK = MILAN.ark, MILAN.ask, MILAN.asvk


def tcb_extensions(tcb: bytes, product: Product) -> list[x509.UnrecognizedExtension]:
    turin = {"9": tcb[0], "1": tcb[1], "2": tcb[2], "3": tcb[3], "8": tcb[7]}
    arcs = turin if product is Product.TURIN else {"1": tcb[0], "2": tcb[1], "3": tcb[6], "8": tcb[7]}
    integers = {arc: value.to_bytes(2 if value > 127 else 1, "big") for arc, value in arcs.items()}
    return [opaque(f"{AMD}.3.{arc}", bytes([2, len(value)]) + value) for arc, value in integers.items()]


def leaf(
    kind: str = "vcek",
    issuer: Party | None = None,
    tcb: bytes = TCB,
    chip: bytes | None = None,
    of: Line = MILAN,
    product_name: str | None = None,
    **fields: object,
) -> Party:
    hardware_id = (of.chip[:8] if of.product is Product.TURIN else of.chip) if chip is None else chip
    own = opaque(f"{AMD}.4", hardware_id) if kind == "vcek" else opaque(f"{AMD}.5", b"\x16\x04test")
    product = (f"{of.product}-B1" if product_name is None else product_name).encode()
    key, name = fields.pop("key", ec_key(kind)), fields.pop("name", f"SEV-{kind.upper()}")
    named = opaque(f"{AMD}.2", bytes([0x16, len(product)]) + product)
    extensions = [*tcb_extensions(tcb, of.product), named, own]
    return party(name, key, issuer or of.issuer(kind), ca=False, extensions=extensions, **fields)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Fields:
    version: int = 3
    policy: int = 0x30000
    flags: int = 0
    algorithm: int = 1
    cpu: tuple[int, int] = MILAN.cpu
    tcb: bytes = TCB
    chip: bytes = CHIP
    report_data: bytes = bytes(64)
    vmpl: int = 0
    mitigations: tuple[int, int] = (0, 0)

    @classmethod
    def of(cls, line: Line, **fields: object) -> "Fields":
        return cls(**{"cpu": line.cpu, "chip": line.chip} | fields)  # type: ignore[arg-type]


def report(fields: Fields, key: ec.EllipticCurvePrivateKey) -> bytes:
    """A signed report with these fields, and zeros elsewhere."""
    raw = bytearray(1184)
    for at, value, size in (
        (0, fields.version, 4),
        (8, fields.policy, 8),
        (0x34, fields.algorithm, 4),
        (0x30, fields.vmpl, 4),
    ):
        raw[at : at + size] = value.to_bytes(size, "little")
    raw[0x48:0x4C] = fields.flags.to_bytes(4, "little")
    raw[0x50:0x90] = fields.report_data
    raw[0x180:0x188] = fields.tcb
    raw[0x188:0x18A] = bytes(fields.cpu)
    raw[0x1F8:0x208] = b"".join(value.to_bytes(8, "little") for value in fields.mitigations)
    raw[0x1A0:0x1E0] = fields.chip
    numbers = decode_dss_signature(key.sign(bytes(raw[:0x2A0]), ec.ECDSA(hashes.SHA384())))
    for at, number in zip((0x2A0, 0x2E8), numbers, strict=True):
        raw[at : at + 72] = number.to_bytes(72, "little")
    return bytes(raw)


def snp_case(fields: Fields | None = None, kind: str = "vcek", signer: Party | None = None, of: Line = MILAN) -> Case:
    """A report that verifies under the simulated root."""
    signer = signer or leaf(kind, of=of)
    fields = fields or Fields.of(of, flags=4 if kind == "vlek" else 0)
    assert isinstance(signer.key, ec.EllipticCurvePrivateKey)
    return Case(
        Evidence(Family.SNP, report(fields, signer.key)),
        Collateral({kind: signer.der, "chain": pem(of.issuer(kind), of.ark)}),
        SimulatedRoots({Family.SNP: of.ark.der}),
    )
