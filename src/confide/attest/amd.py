"""AMD's product lines with SEV-SNP: how each names itself, lays out its TCB version, and which root signs for it.

Bergamo and Siena are of Genoa's line: the same root, the same name at AMD's Key Distribution Service (KDS).

Sources: AMD, "SEV Secure Nested Paging Firmware ABI Specification" (document 56860), TCB_VERSION and
ATTESTATION_REPORT; "Versioned Chip Endorsement Key (VCEK) Certificate and KDS Interface Specification" (document
57230), the tables of X.509 extensions for families 19h and 1Ah, and its chapter on the KDS; the ranges of models by
AMD's revision guides for families 19h and 1Ah.
"""

from collections.abc import Mapping
from enum import StrEnum
from types import MappingProxyType
from typing import Final, NamedTuple

CHIP_ID_BYTES: Final = 64
TCB_BYTES: Final = 8


class Product(StrEnum):
    """A product line, as the KDS and the authorities' certificates spell it."""

    MILAN = "Milan"
    GENOA = "Genoa"
    TURIN = "Turin"


class Component(NamedTuple):
    """One security version. at: its byte of TCB_VERSION. arc: its extension, below 1.3.6.1.4.1.3704.1.3. kds: its name
    in an address of the KDS.
    """

    at: int
    arc: int
    kds: str


_FAMILY_19H: Final[Mapping[str, Component]] = MappingProxyType(
    {
        "bootloader": Component(0, 1, "blSPL"),
        "tee": Component(1, 2, "teeSPL"),
        "snp": Component(6, 3, "snpSPL"),
        "microcode": Component(7, 8, "ucodeSPL"),
    }
)
_FAMILY_1AH: Final[Mapping[str, Component]] = MappingProxyType(
    {
        "fmc": Component(0, 9, "fmcSPL"),
        "bootloader": Component(1, 1, "blSPL"),
        "tee": Component(2, 2, "teeSPL"),
        "snp": Component(3, 3, "snpSPL"),
        "microcode": Component(7, 8, "ucodeSPL"),
    }
)
COMPONENTS: Final[Mapping[Product, Mapping[str, Component]]] = MappingProxyType(
    {Product.MILAN: _FAMILY_19H, Product.GENOA: _FAMILY_19H, Product.TURIN: _FAMILY_1AH}
)
"""The components of each line's TCB version, in the order of the KDS's addresses."""

HARDWARE_ID_BYTES: Final[Mapping[Product, int]] = MappingProxyType(
    {Product.MILAN: CHIP_ID_BYTES, Product.GENOA: CHIP_ID_BYTES, Product.TURIN: 8}
)
"""How much of a report's chip id names the chip, in its VCEK and at the KDS. The rest of Turin's is zero."""

_MODELS: Final[tuple[tuple[int, range, Product], ...]] = (
    (0x19, range(0x00, 0x10), Product.MILAN),
    (0x19, range(0x10, 0x20), Product.GENOA),
    (0x19, range(0xA0, 0xB0), Product.GENOA),
    (0x1A, range(0x00, 0x12), Product.TURIN),
)
_NAMES: Final[Mapping[str, Product]] = MappingProxyType(
    {product.value: product for product in Product} | {"Bergamo": Product.GENOA, "Siena": Product.GENOA}
)


def product_of(family: int, model: int) -> Product | None:
    """The line of a processor, by CPUID's family and model; None if no line with SEV-SNP that is known has it."""
    return next((line for one, models, line in _MODELS if one == family and model in models), None)


def product_named(name: str) -> Product | None:
    """The line of a certificate's product name, such as Milan-B0 or Genoa; None if it is unknown."""
    return _NAMES.get(name.partition("-")[0])
