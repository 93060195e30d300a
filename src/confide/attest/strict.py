"""A strict policy from evidence: everything that it says and that should not change, as requirements.

What may only grow, such as security versions, is asked for as a minimum. What names one machine, and what changes with
each boot, is left out.
"""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from confide.attest.claims import Claims, RootKind
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Family
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.requirements import AnyRequirement, Azure, Nitro, Nvidia, Sgx, Snp, SnpTcb, Tdx, Tpm
from confide.attest.requirements.hardware import SGX_ATTRIBUTES, SNP_PLATFORM, SNP_POLICY, Word
from confide.errors import WrongCollateral

_SNP_RESTRICTS: Final = ("single-socket", "mem-aes-256-xts", "rapl-dis", "ciphertext-hiding-dram", "page-swap-disable")
"""Flags of a guest's policy that forbid something to the host; the others allow something."""
_TDX_SAME: Final = ("mrtd", "mrsignerseam", "mrconfigid", "mrowner", "mrownerconfig", "mrservicetd")
_RTMRS: Final = tuple(f"rtmr{index}" for index in range(4))


def strict_policy(claims: Claims, version: str = "") -> AnyPolicy:
    """A policy that asks for what these claims say; of the simulated kind if their root is.

    It makes no exceptions, so evidence that would need one does not satisfy it. WrongCollateral for families of which
    nothing can be asked for yet.
    """
    requirements = tuple(
        _MAKERS[one.family](one) for one in claims.everyone() if one.family in _MAKERS and not one.verified_by
    )
    if not requirements:
        raise WrongCollateral(f"No strict policy can be made from {claims.family}; write one by hand.")
    evaluations = [one.tcb_evaluation for one in claims.everyone() if one.tcb_evaluation is not None]
    exceptions = Exceptions(min_tcb_evaluation=max(evaluations, default=0))
    made = SimulatedPolicy if any(one.root is RootKind.SIMULATED for one in claims.everyone()) else Policy
    return made(tuple(dict.fromkeys(requirements)), version, exceptions)


def _tdx(claims: Claims) -> AnyRequirement:
    return Tdx(
        **_hexadecimal(claims, *_TDX_SAME, "td_attributes", "xfam"),
        rtmrs=tuple(claims.measurements[name].hex() for name in _RTMRS if name in claims.measurements) or None,
        min_tee_tcb_svn=claims.measurements["tee_tcb_svn"].hex() if "tee_tcb_svn" in claims.measurements else None,
    )


def _sgx(claims: Claims) -> AnyRequirement:
    return Sgx(
        **_hexadecimal(claims, "mrenclave", "mrsigner", "miscselect", "configid", "isvextprodid", "isvfamilyid"),
        isvprodid=_number(claims, "isvprodid"),
        min_isvsvn=_number(claims, "isvsvn"),
        min_configsvn=_number(claims, "configsvn"),
        attributes_clear=_clear(claims, SGX_ATTRIBUTES),
    )


def _snp(claims: Claims) -> AnyRequirement:
    versions = {name: claims.versions.get(name, 0) for name in SnpTcb.__struct_fields__}
    names = ("measurement", "host_data", "id_key_digest", "author_key_digest", "family_id", "image_id")
    allowed, forbidden = _flags(claims, SNP_POLICY), tuple(n for n in SNP_POLICY.bits if n not in _SNP_RESTRICTS)
    agent = claims.identity.get("report_id_ma")
    return Snp(
        **_hexadecimal(claims, *names),
        min_tcb=SnpTcb(**versions) if any(versions.values()) else None,
        vmpl=_vmpl(claims),
        policy_set=tuple(name for name in allowed if name in _SNP_RESTRICTS) or None,
        policy_clear=tuple(name for name in forbidden if name not in allowed) or None,
        platform_set=tuple(name for name in _flags(claims, SNP_PLATFORM) if name == "alias-check-complete") or None,
        min_guest_svn=claims.versions.get("guest_svn") or None,
        migration_agent=None if agent is None else "none" if agent == b"\xff" * 32 else agent.hex(),
    )


def _tpm(claims: Claims) -> AnyRequirement:
    return Tpm(pcrs=_pcrs(claims))


def _azure(claims: Claims) -> AnyRequirement:
    secure_boot = {b"true": True, b"false": False}.get(claims.identity.get("secure_boot", b""))
    return Azure(pcrs=_pcrs(claims), secure_boot=secure_boot)


def _nitro(claims: Claims) -> AnyRequirement:
    """All but PCR 4, which is the parent's instance, another each time."""
    pcrs = {index: value for index, value in (_pcrs(claims) or {}).items() if index != "4"}
    return Nitro(pcrs=pcrs or None)


def _pcrs(claims: Claims) -> dict[str, str] | None:
    pcrs = {
        name.removeprefix("pcr"): value.hex() for name, value in claims.measurements.items() if name.startswith("pcr")
    }
    return pcrs or None


def _nvidia(claims: Claims) -> AnyRequirement:
    named = {
        kind: (claims.identity[f"{kind}_version"].decode("ascii", "replace"),)
        for kind in ("driver", "vbios")
        if claims.identity.get(f"{kind}_version")
    }
    return Nvidia(drivers=named.get("driver"), vbioses=named.get("vbios"))


_MAKERS: Final[Mapping[Family, Callable[[Claims], AnyRequirement]]] = MappingProxyType(
    {
        Family.TDX: _tdx,
        Family.SGX: _sgx,
        Family.SNP: _snp,
        Family.TPM: _tpm,
        Family.NVIDIA: _nvidia,
        Family.AZURE: _azure,
        Family.NITRO: _nitro,
    }
)


def _hexadecimal(claims: Claims, *names: str) -> dict[str, Any]:
    both = {**claims.identity, **claims.measurements}
    return {name: both[name].hex() for name in names if name in both}


def _number(claims: Claims, name: str) -> int | None:
    value = claims.measurements.get(name)
    return None if value is None else int.from_bytes(value, "little")


def _vmpl(claims: Claims) -> int | None:
    value = claims.identity.get("vmpl")
    level = None if value is None else int.from_bytes(value, "big")
    return level if level is not None and level <= 3 else None


def _flags(claims: Claims, word: Word) -> tuple[str, ...]:
    value = claims.identity.get(word.claim, claims.measurements.get(word.claim))
    number = 0 if value is None else int.from_bytes(value, word.order)
    return tuple(name for name, bit in word.bits.items() if number >> bit & 1)


def _clear(claims: Claims, word: Word) -> tuple[str, ...] | None:
    present = _flags(claims, word)
    return tuple(name for name in word.bits if name not in present) or None
