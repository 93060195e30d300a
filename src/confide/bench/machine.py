"""What machine this is: found out, and for a trusted environment proven, never said by whoever measures.

An environment counts by evidence that is read and verified here, up to its vendor's root. Evidence that is there and
does not hold is an error, and never a machine without any. What is left is a virtual machine where the processor or
the system says so, and a bare one where nothing does; a hypervisor that hides itself is taken for none.
"""

import os
import platform
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Family
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy
from confide.attest.requirements import Fresh
from confide.attest.roots import ProductionRoots, Roots
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.verifier import Verifier
from confide.attest.wire import Attested
from confide.client.relying_party import vendor_collateral
from confide.enclave.tee import Tee, TeeKind, open_tee
from confide.errors import BenchmarkError, NoTrustedEnvironment

Text = Annotated[str, msgspec.Meta(max_length=1024)]
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 53)]
DETECT_VIRT: Final = Path("/usr/bin/systemd-detect-virt")
_NOT_VIRTUAL: Final = "none"
_GUEST_FLAGS: Final = ("tdx_guest", "sev_snp")
_DEVICES: Final = ("dev/tdx_guest", "dev/tdx-guest", "dev/sev-guest", "dev/attestation")
_SECONDS: Final = 10
_CURRENT_OR_NOT: Final = Exceptions(
    allow_tcb=tuple(status for status in TcbStatus if status not in (TcbStatus.UP_TO_DATE, TcbStatus.REVOKED)),
    min_tcb_evaluation=1,
)
"""An old platform is the same kind of machine, if a less safe one."""


class Arm(StrEnum):
    """A kind of machine. gpu-cc: a confidential virtual machine, computing on GPUs in their confidential mode."""

    BARE = "bare"
    VM = "vm"
    SGX = "sgx"
    TDX = "tdx"
    SNP = "snp"
    GPU_CC = "gpu-cc"
    SIMULATED = "simulated"

    @property
    def proven(self) -> bool:
        """Whether only evidence up to a vendor's root shows it."""
        return self not in (Arm.BARE, Arm.VM, Arm.SIMULATED)


_PROCESSORS: Final = {Family.SNP: Arm.SNP, Family.TDX: Arm.TDX, Family.SGX: Arm.SGX}


class Machine(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What measures. cores: that this process may use. memory: bytes. virtual: who says it is virtual, or empty.

    load: processes that wanted a core in the minute before; as many as there are cores, and others were measured along.
    """

    processor: Text
    cores: Count
    memory: Count
    kernel: Text
    virtual: Text
    load: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


def this_machine(root: Path = Path("/"), detect_virt: Path = DETECT_VIRT) -> Machine:
    """What the system says of it. BenchmarkError where it does not tell a virtual machine from a bare one.

    root: of the file system with /proc.
    """
    return Machine(
        processor=processor(root),
        cores=len(os.sched_getaffinity(0)),
        memory=os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"),
        kernel=platform.release(),
        virtual=_virtual(root, detect_virt),
        load=round(os.getloadavg()[0], 2),
    )


def processor(root: Path = Path("/")) -> str:
    """The processor's name, and the extensions that decide how fast int8 is."""
    facts = _cpuinfo(root)
    flags = facts.get("flags", "").split()
    features = [name for name in ("avx512_vnni", "avx_vnni", "amx_int8") if name in flags]
    return f"{facts.get('model name', platform.machine())} ({', '.join(features) or 'no int8 extension'})"


def _virtual(root: Path, detect_virt: Path) -> str:
    """Who says that this machine is virtual: the bit that CPUID has for hypervisors, or systemd; empty if nobody."""
    flags = _cpuinfo(root).get("flags", "").split()
    if "hypervisor" in flags:
        return "the processor's hypervisor bit"
    said = ""
    if detect_virt.exists():
        # It exits with 1 where it finds nothing.
        done = subprocess.run([detect_virt, "--vm"], capture_output=True, text=True, timeout=_SECONDS)  # noqa: S603
        said = done.stdout.strip()
    if said and said != _NOT_VIRTUAL:
        return f"systemd-detect-virt: {said[:100]}"
    if not flags and not said:
        raise BenchmarkError(
            "Nothing here tells a virtual machine from a bare one: there are no processor flags in /proc/cpuinfo, and "
            f"no {detect_virt}; install systemd's, or measure on Linux."
        )
    return ""


def _trace(root: Path) -> str:
    """What the system has of an environment whether or not its evidence can be read; empty where there is nothing.

    A host's processor may have the flags as well; only in a virtual machine do they say what that machine is.
    """
    flags = _cpuinfo(root).get("flags", "").split()
    found = [flag for flag in _GUEST_FLAGS if flag in flags and "hypervisor" in flags]
    if found:
        return f"the processor flag {found[0]}"
    return next((f"/{device}" for device in _DEVICES if (root / device).exists()), "")


def _cpuinfo(root: Path) -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo, by their names."""
    try:
        first = (root / "proc/cpuinfo").read_text().partition("\n\n")[0]
    except OSError:
        return {}
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


@dataclass(frozen=True)
class Environment:
    """The trusted environment that this process runs in, as far as there is one. tee: None where there is none."""

    tee: Tee | None
    offline: bool = False

    @classmethod
    def find(
        cls,
        simulated: Path | None = None,
        *,
        offline: bool = False,
        opened: Callable[[TeeKind, Path | None], Tee] = open_tee,
        root: Path = Path("/"),
    ) -> "Environment":
        """Look for one. simulated: the folder of a simulated one, which is then all that is looked at.

        offline: take vendors' collateral from the cache. root: of the file system with /proc and /dev. Raises
        BenchmarkError where the system speaks of an environment that gives no evidence.
        """
        if simulated is not None:
            return cls(opened(TeeKind.SIMULATED, simulated), offline)
        try:
            return cls(opened(TeeKind.AUTO, None), offline)
        except NoTrustedEnvironment as error:
            if trace := _trace(root):
                raise BenchmarkError(
                    f"There is {trace}, so this is a trusted environment, and it gives no evidence; run as root, and "
                    f"outside of any container that hides it. {error}"
                ) from error
            return cls(None, offline)

    def attest(self, nonce: str) -> Attested | None:
        """Evidence that signs a nonce (hexadecimal), with the collateral it takes to verify it later; None without TEE.

        Raises what reading evidence and fetching collateral raise: a machine that cannot prove itself is no other one.
        """
        if self.tee is None:
            return None
        statement = Statement(nonce)
        evidence, sent = self.tee.reader.read(statement.digest()), self.tee.collateral()
        collateral = sent if self.tee.simulated else vendor_collateral(offline=self.offline).find(evidence, sent)
        return Attested.make(evidence, statement, collateral)

    @property
    def roots(self) -> Roots:
        """Under which its evidence has to be: the vendors', or a simulated machine's own."""
        reader = None if self.tee is None else self.tee.reader
        return reader.roots() if isinstance(reader, SimulatedTee) else ProductionRoots()


def shown_arm(attested: Attested, nonce: str, now: datetime, roots: Roots, *, gpu: bool) -> Arm:
    """The arm that evidence shows at `now`, if it signs this nonce. gpu: whether GPUs compute.

    What every policy asks for is asked for, but a current TCB. Raises BenchmarkError for evidence that does not hold,
    and for GPUs that compute without being in it.
    """
    kind: type[AnyPolicy] = SimulatedPolicy if roots.kind is RootKind.SIMULATED else Policy
    policy = kind((Fresh(nonce),), exceptions=_CURRENT_OR_NOT)
    evidence, collateral = attested.evidence.thaw(), attested.collateral.thaw()
    result = Verifier(roots).appraise(evidence, collateral, policy, now, statement=attested.statement)
    if not result.trusted or result.claims is None:
        failed = "; ".join(f"{check.code}: expected {check.expected}, saw {check.seen}" for check in result.failures)
        raise BenchmarkError(
            f"The evidence of a {evidence.family} machine does not hold ({failed}), so that it counts as no machine at "
            "all; see what `confide doctor` and `confide attest verify` say of it."
        )
    if result.simulated:
        return Arm.SIMULATED
    families = [claims.family for claims in result.claims.everyone()]
    arm = next((arm for family, arm in _PROCESSORS.items() if family in families), None)
    if arm is None:
        raise BenchmarkError(f"There is no arm for evidence of {', '.join(families)}; measure in SGX, TDX or SEV-SNP.")
    if gpu and Family.NVIDIA not in families:
        raise BenchmarkError(
            f"A GPU of this {arm} machine computes and is not attested, so that its host can read it; switch the GPU's "
            "confidential computing mode on, or measure with --device cpu."
        )
    return Arm.GPU_CC if gpu else arm
