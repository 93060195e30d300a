"""A virtual machine with its GPUs: bound to one another, and only as good as the weakest."""

from dataclasses import replace
from datetime import timedelta
from hashlib import sha256
from pathlib import Path

from confide.attest.claims import RootKind, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families.composite import MAX_GPUS, gpu_nonce
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.errors import MalformedEvidence, UnknownRoot, WrongBinding, WrongCollateral

from .authorities import party
from .cases import NOW, Case, flips, refused
from .forged_azure import azure_case
from .forged_nvidia import LEAF, Messages, gpu_case, leaf
from .forged_nvidia import ROOT as GPU_ROOT
from .forged_snp import ARK, GENOA, Fields, snp_case
from .forged_tpm import tpm_case

ROOTS = SimulatedRoots({Family.SNP: ARK.der, Family.NVIDIA: GPU_ROOT.der})


def composite(*cases: Case, roots: SimulatedRoots = ROOTS) -> Case:
    evidence = Evidence(Family.COMPOSITE, b"", members=tuple(case.evidence for case in cases))
    return Case(evidence, Collateral(members=tuple(case.collateral for case in cases)), roots)


def bound_gpu(machine: Case, name: str = "gpu") -> Case:
    return gpu_case(Messages(nonce=gpu_nonce(machine.evidence)), LEAF if name == "gpu" else leaf(name))


def test_machine_with_two_gpus() -> None:
    machine = snp_case(Fields(report_data=b"\7" * 64))
    claims = composite(machine, bound_gpu(machine), bound_gpu(machine, "second")).verify()
    assert [one.family for one in claims.members] == [Family.SNP, Family.NVIDIA, Family.NVIDIA]
    assert (claims.root, claims.tcb_status) == (RootKind.SIMULATED, TcbStatus.UNKNOWN)
    assert claims.report_data == b"\7" * 64
    assert not claims.debug
    assert claims.valid_until == min(one.valid_until for one in claims.members if one.valid_until)


def test_the_nonce_is_the_sha256_of_the_quote() -> None:
    machine = snp_case()
    assert gpu_nonce(machine.evidence) == sha256(machine.evidence.raw).digest()


def test_what_was_checked_of_each_member_is_told_and_the_machine_speaks() -> None:
    machine = snp_case()
    claims = composite(machine, bound_gpu(machine)).verify()
    assert claims.speaks
    assert not claims.members[1].speaks
    assert [one.code for one in claims.checks] == ["binding"]
    assert {one.code for one in claims.members[1].checks} >= {"revocation", "nvidia-measurements"}


def test_debug_of_a_member_is_debug_of_all() -> None:
    machine = snp_case(Fields(policy=0x30000 | 1 << 19))
    assert composite(machine, bound_gpu(machine)).verify().debug


def test_gpu_bound_to_another_quote() -> None:
    machine, other = snp_case(), snp_case(Fields(report_data=b"\1" * 64))
    refused(composite(machine, bound_gpu(other)), WrongBinding)
    refused(composite(machine, bound_gpu(machine), gpu_case()), WrongBinding)


def test_one_gpu_for_two() -> None:
    machine = snp_case()
    refused(composite(machine, bound_gpu(machine), bound_gpu(machine)), MalformedEvidence)


def test_members_that_make_no_composite() -> None:
    machine = snp_case()
    gpu = bound_gpu(machine)
    nested = composite(machine, gpu)
    for cases in ((), (machine,), (gpu,), (gpu, machine), (machine, machine), (machine, nested), (nested, gpu)):
        refused(composite(*cases), MalformedEvidence)
    refused(composite(machine, *[gpu] * (MAX_GPUS + 1)), MalformedEvidence)
    refused(replace(nested, collateral=Collateral(members=nested.collateral.members[:1])), WrongCollateral)
    refused(replace(nested, collateral=Collateral(members=nested.collateral.members[::-1])), WrongCollateral)


def test_a_member_that_does_not_hold() -> None:
    machine = snp_case()
    gpu = bound_gpu(machine)
    for raw in flips(gpu.evidence.raw, step=11):
        refused(composite(machine, gpu.with_raw(raw)))
    refused(composite(machine.with_raw(b""), gpu), MalformedEvidence)
    refused(replace(composite(machine, gpu), now=NOW + timedelta(days=400)))
    stranger = SimulatedRoots({Family.SNP: party("other", ARK.key).der, Family.NVIDIA: GPU_ROOT.der})
    refused(composite(machine, gpu, roots=stranger), UnknownRoot)
    refused(replace(composite(machine, gpu), roots=ProductionRoots()), UnknownRoot)


def test_machine_that_quotes_with_a_tpm() -> None:
    machine = tpm_case()
    assert isinstance(machine.roots, SimulatedRoots)
    roots = replace(ROOTS, attestation_keys=machine.roots.attestation_keys)
    assert composite(machine, bound_gpu(machine), roots=roots).verify().members[0].family is Family.TPM


def test_a_machine_at_azure_with_a_gpu() -> None:
    """Its report is as old as its start: a GPU is asked with the TPM's quote, which has the client's nonce."""
    machine = azure_case()
    roots = SimulatedRoots({Family.SNP: GENOA.ark.der, Family.NVIDIA: GPU_ROOT.der})
    claims = composite(machine, bound_gpu(machine), roots=roots).verify()
    assert [one.family for one in claims.members] == [Family.AZURE, Family.NVIDIA]
    assert claims.report_data == machine.verify().report_data
    report = gpu_case(Messages(nonce=sha256(machine.evidence.raw).digest()), LEAF)
    refused(composite(machine, report, roots=roots), WrongBinding)


def test_real_evidence_of_strangers(test_data: Path) -> None:
    """A real machine's report, and a real GPU's that was made for somebody else."""
    folder = test_data / "evidence"
    snp = Case(
        Evidence(Family.SNP, (folder / "snp/report_v2_milan.bin").read_bytes()),
        Collateral(
            {
                "vcek": (folder / "snp/vcek_milan.der").read_bytes(),
                "chain": (folder / "snp/ask_ark_milan.pem").read_bytes(),
            }
        ),
        ProductionRoots(),
    )
    gpu = Case(
        Evidence(Family.NVIDIA, bytes.fromhex((folder / "nvidia/hopper_report.txt").read_text())),
        Collateral({"chain": (folder / "nvidia/hopper_cert_chain.txt").read_bytes()}),
        ProductionRoots(),
    )
    refused(replace(composite(snp, gpu), roots=ProductionRoots()), WrongBinding)
