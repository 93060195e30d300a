"""Requirements on what the hardware measured: one for each family of evidence."""

from collections.abc import Iterator
from typing import ClassVar, Final

import msgspec

from confide.attest.check import Check, check
from confide.attest.claims import Claims
from confide.attest.evidence import Family
from confide.attest.requirements.base import (
    ABSENT,
    Requirement,
    Subject,
    code_of,
    equal,
    families_of,
    number,
    one_of,
    require_hex,
    require_range,
    texts,
)
from confide.errors import InvalidPolicy

_PCRS: Final = frozenset(map(str, range(24)))


class _Measured(Requirement, frozen=True):
    """Equality with measurements of one family: at least one member of it, and every one of them as asked."""

    family: ClassVar[Family]
    sizes: ClassVar[dict[str, int]]

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            for value in texts(getattr(self, name)):
                require_hex(name, value, size)

    def expected(self) -> Iterator[tuple[str, str]]:
        """The measurements asked for, by their names in the claims."""
        for name in self.sizes:
            value = getattr(self, name)
            if value:
                yield name, value

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(self.family)
        yield check("family", self.family.value, families_of(subject.claims), bool(found))
        for claims in found:
            for name, value in self.expected():
                yield equal(code_of(name), value, claims.measurements.get(name))
            yield from self.further(claims)

    def further(self, claims: Claims) -> Iterator[Check]:
        """Checks other than equality."""
        yield from ()


class Sgx(_Measured, frozen=True, tag="sgx"):
    """An Intel SGX enclave: its measurement, its signer, and the lowest security version of that signer's."""

    family = Family.SGX
    sizes: ClassVar[dict[str, int]] = {"mrenclave": 32, "mrsigner": 32}

    mrenclave: str = ""
    mrsigner: str = ""
    min_isvsvn: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("min_isvsvn", self.min_isvsvn, 0xFFFF)
        if self.min_isvsvn and not (self.mrenclave or self.mrsigner):
            raise InvalidPolicy("min_isvsvn counts one signer's versions; name that signer with mrsigner.")

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.min_isvsvn:
            seen = claims.measurements.get("isvsvn")
            version = int.from_bytes(seen, "little") if seen is not None else -1
            yield check("isvsvn", f"at least {self.min_isvsvn}", number(seen), version >= self.min_isvsvn)


class Tdx(_Measured, frozen=True, tag="tdx"):
    """An Intel TDX virtual machine. rtmrs: RTMR 0 onwards; an empty text leaves one of them open."""

    family = Family.TDX
    sizes: ClassVar[dict[str, int]] = {"mrtd": 48, "rtmrs": 48, "mrseam": 48, "mrconfigid": 48}

    mrtd: str = ""
    rtmrs: tuple[str, ...] = ()
    mrseam: str = ""
    mrconfigid: str = ""

    def __post_init__(self) -> None:
        super().__post_init__()
        if len(self.rtmrs) > 4:
            raise InvalidPolicy(f"A TDX machine has four RTMRs and the policy names {len(self.rtmrs)}; shorten rtmrs.")

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from ((name, value) for name, value in super().expected() if name != "rtmrs")
        yield from ((f"rtmr{index}", value) for index, value in enumerate(self.rtmrs) if value)


class SnpTcb(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Security versions of an AMD platform, each of which must be at least this."""

    bootloader: int = 0
    tee: int = 0
    snp: int = 0
    microcode: int = 0
    fmc: int = 0

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            require_range(name, getattr(self, name), 0xFF)


class Snp(_Measured, frozen=True, tag="sev-snp"):
    """An AMD SEV-SNP virtual machine: its launch measurement, what the host committed to, and the platform."""

    family = Family.SNP
    sizes: ClassVar[dict[str, int]] = {"measurement": 48, "host_data": 32}

    measurement: str = ""
    host_data: str = ""
    min_tcb: SnpTcb = msgspec.field(default_factory=SnpTcb)

    def further(self, claims: Claims) -> Iterator[Check]:
        for name in SnpTcb.__struct_fields__:
            least = getattr(self.min_tcb, name)
            if least:
                seen = claims.versions.get(name)
                shown = ABSENT if seen is None else str(seen)
                yield check(f"snp-tcb-{name}", f"at least {least}", shown, seen is not None and seen >= least)


class Tpm(_Measured, frozen=True, tag="tpm"):
    """A TPM 2.0, with the SHA-256 values of its PCRs by number, such as {"7": ...}."""

    family = Family.TPM
    sizes: ClassVar[dict[str, int]] = {}

    pcrs: dict[str, str] = msgspec.field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, value in self.pcrs.items():
            if index not in _PCRS:
                raise InvalidPolicy(f"There is no PCR {index[:20]!r}; a TPM has 0 to 23.")
            require_hex(f"pcr{index}", value, 32)

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from ((f"pcr{index}", value) for index, value in sorted(self.pcrs.items(), key=lambda pcr: int(pcr[0])))


class Nvidia(_Measured, frozen=True, tag="nvidia-gpu"):
    """NVIDIA GPUs in confidential mode, all of which run one of these drivers and VBIOSes. Empty: any."""

    family = Family.NVIDIA
    sizes: ClassVar[dict[str, int]] = {}

    drivers: tuple[str, ...] = ()
    vbioses: tuple[str, ...] = ()

    def further(self, claims: Claims) -> Iterator[Check]:
        for name, allowed in (("driver", self.drivers), ("vbios", self.vbioses)):
            if allowed:
                seen = claims.identity.get(f"{name}_version")
                text = ABSENT if seen is None else seen.decode("ascii", "replace")
                yield check(f"nvidia-{name}", one_of(allowed), text, text in allowed)
