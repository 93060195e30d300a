"""Requirements on what the hardware measured and how it was set up: one for each family of evidence."""

import re
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final, Literal, NamedTuple

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
    require_some,
)
from confide.errors import InvalidPolicy

_UUID: Final = re.compile(r"[0-9A-Fa-f]{8}(?:-[0-9A-Fa-f]{4}){3}-[0-9A-Fa-f]{12}")
_RTMRS: Final = 4

Names = Annotated[tuple[str, ...], msgspec.Meta(max_length=64)]


class Word(NamedTuple):
    """A word of flags. claim: its name in the claims. bits: by name. clause: where they are defined."""

    claim: str
    bits: Mapping[str, int]
    order: Literal["little", "big"]
    clause: str


SNP_POLICY: Final = Word(
    "policy",
    {
        "smt": 16,
        "migrate-ma": 18,
        "debug": 19,
        "single-socket": 20,
        "cxl-allow": 21,
        "mem-aes-256-xts": 22,
        "rapl-dis": 23,
        "ciphertext-hiding-dram": 24,
        "page-swap-disable": 25,
    },
    "big",
    "AMD 56860, guest policy",
)
SNP_PLATFORM: Final = Word(
    "platform_info",
    {
        "smt-en": 0,
        "tsme-en": 1,
        "ecc-en": 2,
        "rapl-dis": 3,
        "ciphertext-hiding-dram-en": 4,
        "alias-check-complete": 5,
        "tio-en": 7,
    },
    "big",
    "AMD 56860, PLATFORM_INFO",
)
TD_ATTRIBUTES: Final = Word(
    "td_attributes",
    {
        "debug": 0,
        "hgs-plus-prof": 4,
        "perf-prof": 5,
        "pmt-prof": 6,
        "icssd": 16,
        "lass": 27,
        "sept-ve-disable": 28,
        "migratable": 29,
        "pks": 30,
        "kl": 31,
        "tpa": 62,
        "perfmon": 63,
    },
    "little",
    "Intel TDX Module ABI specification, ATTRIBUTES",
)
SGX_ATTRIBUTES: Final = Word(
    "attributes",
    {
        "init": 0,
        "debug": 1,
        "mode64bit": 2,
        "provision-key": 4,
        "einittoken-key": 5,
        "cet": 6,
        "kss": 7,
        "aex-notify": 10,
    },
    "little",
    "Intel SDM 3D, ATTRIBUTES",
)


class Measured(Requirement, frozen=True):
    """Equality with what one family reports: at least one member of it, and every one of them as asked.

    sizes: bytes of each field that is compared, by its name here. words: fields that name flags, with their suffixes.
    """

    family: ClassVar[Family]
    sizes: ClassVar[Mapping[str, int]]
    words: ClassVar[Mapping[str, Word]] = {}
    claimed: ClassVar[Mapping[str, str]] = {}
    """Names in the claims, where they differ."""

    def __post_init__(self) -> None:
        for name, size in self.sizes.items():
            value = getattr(self, name)
            if value is not None:
                require_hex(name, value, size)
        for prefix, word in self.words.items():
            self._require_bits(prefix, word)

    def _require_bits(self, prefix: str, word: Word) -> None:
        must, must_not = getattr(self, f"{prefix}_set"), getattr(self, f"{prefix}_clear")
        for suffix, names in (("set", must), ("clear", must_not)):
            require_some(f"{prefix}_{suffix}", names)
            for name in names or ():
                if name not in word.bits:
                    known = ", ".join(word.bits)
                    raise InvalidPolicy(f"{prefix}_{suffix}: {name[:40]!r} is no flag; those known are {known}.")
        if both := set(must or ()) & set(must_not or ()):
            raise InvalidPolicy(f"{', '.join(sorted(both))} must be set and must not; correct {prefix}_set or _clear.")

    def expected(self) -> Iterator[tuple[str, str]]:
        """The bytes asked for, by their names in the claims."""
        for name in self.sizes:
            value = getattr(self, name)
            if value is not None:
                yield self.claimed.get(name, name), value

    def sentences(self) -> Iterator[str]:
        asked = [code_of(name) for name in self.__struct_fields__ if getattr(self, name) is not None]
        yield f"{self.family.value} with this {', '.join(asked)}" if asked else f"any {self.family.value}"

    def checks(self, subject: Subject) -> Iterator[Check]:
        found = subject.of(self.family)
        yield check("family", self.family.value, families_of(subject.claims), bool(found))
        for claims in found:
            for name, value in self.expected():
                yield equal(code_of(name), value, _bytes(claims, name))
            for prefix, word in self.words.items():
                yield from _bits(claims, word, prefix, getattr(self, f"{prefix}_set"), getattr(self, f"{prefix}_clear"))
            yield from self.further(claims)

    def further(self, claims: Claims) -> Iterator[Check]:
        """Checks other than equality and flags."""
        yield from ()


class Sgx(Measured, frozen=True, tag="sgx"):
    """An Intel SGX enclave: its measurement, or its signer with product and lowest security version; how it was set up.

    attributes_set and attributes_clear: names of flags. configid, isvextprodid and isvfamilyid need the flag kss.
    """

    family = Family.SGX
    sizes: ClassVar[Mapping[str, int]] = {
        "mrenclave": 32,
        "mrsigner": 32,
        "miscselect": 4,
        "configid": 64,
        "isvextprodid": 16,
        "isvfamilyid": 16,
    }
    words: ClassVar[Mapping[str, Word]] = {"attributes": SGX_ATTRIBUTES}

    mrenclave: str | None = None
    mrsigner: str | None = None
    isvprodid: int | None = None
    min_isvsvn: int | None = None
    miscselect: str | None = None
    configid: str | None = None
    min_configsvn: int | None = None
    isvextprodid: str | None = None
    isvfamilyid: str | None = None
    attributes_set: Names | None = None
    attributes_clear: Names | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("isvprodid", "min_isvsvn", "min_configsvn"):
            require_range(name, getattr(self, name) or 0, 0xFFFF)
        if (self.min_isvsvn or self.isvprodid is not None) and not (self.mrenclave or self.mrsigner):
            raise InvalidPolicy("isvprodid and min_isvsvn are one signer's numbers; name that signer with mrsigner.")

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.isvprodid is not None:
            seen = claims.measurements.get("isvprodid")
            same = seen is not None and int.from_bytes(seen, "little") == self.isvprodid
            yield check("isvprodid", str(self.isvprodid), number(seen), same)
        for name, least in (("isvsvn", self.min_isvsvn), ("configsvn", self.min_configsvn)):
            if least:
                seen = claims.measurements.get(name)
                version = int.from_bytes(seen, "little") if seen is not None else -1
                yield check(name, f"at least {least}", number(seen), version >= least)


class Tdx(Measured, frozen=True, tag="tdx"):
    """An Intel TDX virtual machine. rtmrs: RTMR 0 onwards; an empty text leaves one of them open.

    td_attributes, xfam: the words themselves, as they stand in the quote; attributes_set and attributes_clear: names of
    flags of the first. min_tee_tcb_svn: 16 bytes, each of which must be at least this.
    """

    family = Family.TDX
    sizes: ClassVar[Mapping[str, int]] = {
        "mrtd": 48,
        "mrseam": 48,
        "mrsignerseam": 48,
        "mrconfigid": 48,
        "mrowner": 48,
        "mrownerconfig": 48,
        "mrservicetd": 48,
        "td_attributes": 8,
        "xfam": 8,
    }
    words: ClassVar[Mapping[str, Word]] = {"attributes": TD_ATTRIBUTES}

    mrtd: str | None = None
    rtmrs: Annotated[tuple[str, ...], msgspec.Meta(max_length=_RTMRS)] | None = None
    mrseam: str | None = None
    mrsignerseam: str | None = None
    mrconfigid: str | None = None
    mrowner: str | None = None
    mrownerconfig: str | None = None
    mrservicetd: str | None = None
    td_attributes: str | None = None
    attributes_set: Names | None = None
    attributes_clear: Names | None = None
    xfam: str | None = None
    min_tee_tcb_svn: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        rtmrs = self.rtmrs
        if rtmrs is not None and not any(rtmrs):
            raise InvalidPolicy("rtmrs names no register; fill in at least one, or leave rtmrs out.")
        if rtmrs is not None and len(rtmrs) > _RTMRS:
            raise InvalidPolicy(f"A TDX machine has four RTMRs and the policy names {len(rtmrs)}; shorten rtmrs.")
        for value in filter(None, rtmrs or ()):
            require_hex("rtmrs", value, 48)
        if self.min_tee_tcb_svn is not None:
            require_hex("min_tee_tcb_svn", self.min_tee_tcb_svn, 16)

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from super().expected()
        yield from ((f"rtmr{index}", value) for index, value in enumerate(self.rtmrs or ()) if value)

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.min_tee_tcb_svn is not None:
            seen = claims.measurements.get("tee_tcb_svn")
            least = bytes.fromhex(self.min_tee_tcb_svn)
            enough = seen is not None and all(have >= need for have, need in zip(seen, least, strict=True))
            shown = ABSENT if seen is None else seen.hex()
            yield check("tee-tcb-svn", f"each byte at least {self.min_tee_tcb_svn}", shown, enough)


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
        if not any(getattr(self, name) for name in self.__struct_fields__):
            raise InvalidPolicy("min_tcb names no version; give at least snp and microcode, as AMD's bulletins do.")

    @property
    def says_enough(self) -> bool:
        """Whether it can stand for a TCB status: AMD's bulletins name these two versions."""
        return bool(self.snp and self.microcode)

    def met_by(self, claims: Claims) -> bool:
        """Whether every version is at least this."""
        return all(
            claims.versions.get(name, -1) >= getattr(self, name)
            for name in self.__struct_fields__
            if getattr(self, name)
        )


class Snp(Measured, frozen=True, tag="sev-snp"):
    """An AMD SEV-SNP virtual machine: its launch measurement, what the host committed to, its policy, the platform.

    min_tcb: where it names snp and microcode, it says which platforms are current; AMD publishes no list of levels.
    vmpl: the level of privilege that asked for the report, 0 the highest. migration_agent: its report id (32 bytes), or
    "none". policy_set and so on: names of flags of the guest's policy and of PLATFORM_INFO.
    """

    family = Family.SNP
    sizes: ClassVar[Mapping[str, int]] = {
        "measurement": 48,
        "host_data": 32,
        "id_key_digest": 48,
        "author_key_digest": 48,
        "family_id": 16,
        "image_id": 16,
    }
    words: ClassVar[Mapping[str, Word]] = {"policy": SNP_POLICY, "platform": SNP_PLATFORM}

    measurement: str | None = None
    host_data: str | None = None
    min_tcb: SnpTcb | None = None
    vmpl: int | None = None
    policy_set: Names | None = None
    policy_clear: Names | None = None
    platform_set: Names | None = None
    platform_clear: Names | None = None
    id_key_digest: str | None = None
    author_key_digest: str | None = None
    family_id: str | None = None
    image_id: str | None = None
    min_guest_svn: int | None = None
    migration_agent: str | None = None
    signer: Literal["vcek", "vlek"] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_range("vmpl", self.vmpl or 0, 3)
        require_range("min_guest_svn", self.min_guest_svn or 0, 0xFFFFFFFF)
        if self.migration_agent not in (None, _NONE):
            require_hex("migration_agent", self.migration_agent or "", 32)

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.min_tcb is not None:
            yield from _least_tcb(self.min_tcb, claims)
        if self.vmpl is not None:
            seen = claims.identity.get("vmpl")
            shown = ABSENT if seen is None else str(int.from_bytes(seen, "big"))
            yield check("vmpl", str(self.vmpl), shown, shown == str(self.vmpl), "AMD 56860, ATTESTATION_REPORT, VMPL")
        if self.min_guest_svn:
            version = claims.versions.get("guest_svn")
            shown = ABSENT if version is None else str(version)
            enough = version is not None and version >= self.min_guest_svn
            yield check("guest-svn", f"at least {self.min_guest_svn}", shown, enough)
        if self.migration_agent is not None:
            expected = _NO_AGENT if self.migration_agent == _NONE else self.migration_agent
            yield equal("migration-agent", expected, claims.identity.get("report_id_ma"))
        if self.signer is not None:
            yield equal("signer", self.signer.encode().hex(), claims.identity.get("signer"))


_NONE: Final = "none"
_NO_AGENT: Final = "ff" * 32
"""REPORT_ID_MA of a guest that no migration agent is bound to (AMD 56860)."""


class _Registers(Measured, frozen=True):
    """Equality with registers by number, of which there are so many, of so many bytes."""

    sizes: ClassVar[Mapping[str, int]] = {}
    registers: ClassVar[int]
    register_bytes: ClassVar[int]

    pcrs: Annotated[dict[str, str], msgspec.Meta(max_length=32)] | None = None

    def __hash__(self) -> int:
        """As of any other requirement, although there is a dictionary in it."""
        return hash((type(self), frozenset((self.pcrs or {}).items())))

    def __post_init__(self) -> None:
        super().__post_init__()
        require_some("pcrs", self.pcrs)
        for index, value in (self.pcrs or {}).items():
            if index not in map(str, range(self.registers)):
                raise InvalidPolicy(f"There is no PCR {index[:20]!r}; {self.family} has 0 to {self.registers - 1}.")
            require_hex(f"pcr{index}", value, self.register_bytes)

    def expected(self) -> Iterator[tuple[str, str]]:
        yield from super().expected()
        pcrs = sorted((self.pcrs or {}).items(), key=lambda pcr: int(pcr[0]))
        yield from ((f"pcr{index}", value) for index, value in pcrs)


class Tpm(_Registers, frozen=True, tag="tpm"):
    """A TPM 2.0, with the SHA-256 values of its PCRs by number, such as {"7": ...}."""

    family = Family.TPM
    registers = 24
    register_bytes = 32


class Azure(_Registers, frozen=True, tag="azure-cvm"):
    """A confidential virtual machine of Azure's, with the SHA-256 values of its virtual TPM's PCRs, as for a TPM.

    The TPM is the paravisor's, which the processor measures: name that too, with Snp(measurement) or Tdx(mrtd). vm_id:
    as Azure writes it. secure_boot: as the paravisor says.
    """

    family = Family.AZURE
    registers = 24
    register_bytes = 32

    vm_id: str | None = None
    secure_boot: bool | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.vm_id is not None and not _UUID.fullmatch(self.vm_id):
            raise InvalidPolicy("vm_id is the machine's UUID, such as 390CBCF5-6C67-4D9B-98EF-C3F1699CC8FC.")

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.vm_id is not None:
            seen = _said(claims, "vm_id")
            yield check("vm-id", self.vm_id, seen, seen.lower() == self.vm_id.lower())
        if self.secure_boot is not None:
            wanted, seen = str(self.secure_boot).lower(), _said(claims, "secure_boot")
            yield check("secure-boot", wanted, seen, seen == wanted)


class Nitro(_Registers, frozen=True, tag="aws-nitro"):
    """An AWS Nitro enclave, with the SHA-384 values of its PCRs by number: 0 the image, 8 who signed it.

    nonce: the document's own, in hexadecimal, for enclaves that put it there and not into a statement.
    """

    family = Family.NITRO
    registers = 32
    register_bytes = 48

    nonce: str | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.nonce is not None:
            require_hex("nonce", self.nonce)

    def further(self, claims: Claims) -> Iterator[Check]:
        if self.nonce is not None:
            yield equal("nonce", self.nonce, claims.identity.get("nonce"))


class Nvidia(Measured, frozen=True, tag="nvidia-gpu"):
    """NVIDIA GPUs in confidential mode, all of which run one of these drivers and VBIOSes. Left out: any."""

    family = Family.NVIDIA
    sizes: ClassVar[Mapping[str, int]] = {}

    drivers: Names | None = None
    vbioses: Names | None = None

    def __post_init__(self) -> None:
        for name in ("drivers", "vbioses"):
            values = getattr(self, name)
            require_some(name, values)
            if not all(values or ("any",)):
                raise InvalidPolicy(f"{name} names an empty version, which no GPU reports; correct it.")

    def further(self, claims: Claims) -> Iterator[Check]:
        for name, allowed in (("driver", self.drivers), ("vbios", self.vbioses)):
            if allowed is not None:
                seen = claims.identity.get(f"{name}_version")
                text = ABSENT if seen is None else seen.decode("ascii", "replace")
                yield check(f"nvidia-{name}", one_of(allowed), text, text in allowed)


def _said(claims: Claims, name: str) -> str:
    value = claims.identity.get(name)
    return ABSENT if value is None else value.decode("utf-8", "replace")


def _bytes(claims: Claims, name: str) -> bytes | None:
    return claims.measurements.get(name, claims.identity.get(name))


def _least_tcb(least: SnpTcb, claims: Claims) -> Iterator[Check]:
    for name in SnpTcb.__struct_fields__:
        need = getattr(least, name)
        if need:
            seen = claims.versions.get(name)
            shown = ABSENT if seen is None else str(seen)
            enough = seen is not None and seen >= need
            yield check(f"snp-tcb-{name}", f"at least {need}", shown, enough, "AMD 56860, TCB_VERSION")


def _bits(claims: Claims, word: Word, prefix: str, must: Names | None, must_not: Names | None) -> Iterator[Check]:
    """One check for flags that must be set, and one for those that must not be."""
    if must is None and must_not is None:
        return
    code, value = f"{code_of(prefix)}-flags", _bytes(claims, word.claim)
    expected = ", ".join([*(must or ()), *(f"not {name}" for name in must_not or ())])
    if value is None:
        yield check(code, expected, ABSENT, ok=False, clause=word.clause)
        return
    number_of = int.from_bytes(value, word.order)
    seen = [name for name, bit in word.bits.items() if number_of >> bit & 1]
    ok = set(must or ()) <= set(seen) and not set(must_not or ()) & set(seen)
    yield check(code, expected, ", ".join(seen) or "none set", ok, word.clause)
