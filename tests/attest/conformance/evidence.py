"""The evidence that cases name: forged under roots of our own, or real where the folder of real data is there."""

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Final

from tests.attest.families.authorities import YEAR, crl
from tests.attest.families.cases import NOW, Case
from tests.attest.families.forged_azure import azure_case
from tests.attest.families.forged_nitro import nitro_case
from tests.attest.families.forged_nvidia import ROOT as GPU_ROOT
from tests.attest.families.forged_nvidia import Messages, gpu_case
from tests.attest.families.forged_snp import ARK, GENOA, MILAN, TURIN, Fields, leaf, snp_case
from tests.attest.families.forged_tpm import tpm_case

from confide.attest.collateral import Collateral
from confide.attest.detect import read_evidence
from confide.attest.evidence import Evidence, Family
from confide.attest.families.composite import gpu_nonce
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing

DEBUG_POLICY: Final = 0x30000 | 1 << 19


def _tdx(folder: Path, listing: Listing | None = None, **quoted: object) -> Case:
    now = datetime.now(UTC)
    tee = SimulatedTee.create(folder / "tee", now - timedelta(days=200))
    evidence = tee.quote(bytes(64), **quoted)  # type: ignore[arg-type]
    return Case(evidence, tee.collateral(listing or Listing(now - timedelta(days=1))), tee.roots(), now)


def _replaced_level(folder: Path, days: int) -> Case:
    newer = datetime.now(UTC) - timedelta(days=days)
    return _tdx(folder, Listing(newer - timedelta(days=1), days=days + 30, status="OutOfDate", newer=newer))


def _machine_with_gpu() -> Case:
    machine = snp_case()
    gpu = gpu_case(Messages(nonce=gpu_nonce(machine.evidence)))
    evidence = Evidence(Family.COMPOSITE, b"", members=(machine.evidence, gpu.evidence))
    roots = SimulatedRoots({Family.SNP: ARK.der, Family.NVIDIA: GPU_ROOT.der})
    return Case(evidence, Collateral(members=(machine.collateral, gpu.collateral)), roots)


def _gpu_of_another_machine() -> Case:
    case = _machine_with_gpu()
    machine = case.evidence.members[0]
    other = gpu_case(Messages(nonce=bytes(32))).evidence
    return replace(case, evidence=replace(case.evidence, members=(machine, other)))


def _turin() -> Case:
    """With its versions where Turin has them: FMC, boot loader, TEE, SNP and, last, microcode."""
    tcb = bytes((1, 2, 3, 4, 0, 0, 0, 5))
    case = snp_case(Fields.of(TURIN, tcb=tcb), signer=leaf(tcb=tcb, of=TURIN), of=TURIN)
    return case.with_documents(crl=crl(TURIN.ark))


def _listed(case: Case) -> Case:
    return case.with_documents(crl=crl(ARK))


FORGED: Final[Mapping[str, Callable[[Path], Case]]] = MappingProxyType(
    {
        "tdx": _tdx,
        "tdx-debug": lambda folder: _tdx(folder, debug=True),
        "tdx-replaced-10-days-ago": lambda folder: _replaced_level(folder, 10),
        "tdx-replaced-90-days-ago": lambda folder: _replaced_level(folder, 90),
        "snp": lambda _: _listed(snp_case()),
        "snp-without-list": lambda _: snp_case(),
        "snp-list-from-the-future": lambda _: snp_case().with_documents(crl=crl(ARK, begin=NOW + YEAR / 2)),
        "snp-debug": lambda _: _listed(snp_case(Fields.of(MILAN, policy=DEBUG_POLICY))),
        "snp-genoa": lambda _: snp_case(of=GENOA).with_documents(crl=crl(GENOA.ark)),
        "snp-turin": lambda _: _turin(),
        "snp-milan-under-genoa": lambda _: replace(_listed(snp_case()), roots=snp_case(of=GENOA).roots),
        "gpu": lambda _: gpu_case(),
        "gpu-padded": lambda _: (case := gpu_case()).with_raw(case.evidence.raw + bytes(4096)),
        "gpu-with-something-behind": lambda _: (case := gpu_case()).with_raw(case.evidence.raw + b"\1"),
        "machine-with-gpu": lambda _: _machine_with_gpu(),
        "gpu-of-another-machine": lambda _: _gpu_of_another_machine(),
        "tpm": lambda _: tpm_case(),
        "azure": lambda _: azure_case(),
        "azure-vmpl-1": lambda _: azure_case(vmpl=1),
        "nitro": lambda _: nitro_case(),
    }
)


def real(folder: Path, name: str, at: str) -> Case:
    """A file of the folder of real data, with the collateral beside it if there is any."""
    evidence, beside = read_evidence((folder / name).read_bytes(), None)
    documents = dict(beside.documents)
    for path in (folder / name).parent.glob(f"{Path(name).stem}.collateral.json"):
        documents["dcap"] = json.dumps(json.loads(path.read_bytes())).encode()
    return Case(evidence, Collateral(documents), ProductionRoots(), datetime.fromisoformat(at).replace(tzinfo=UTC))
