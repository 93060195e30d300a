"""The evidence that cases name: forged under roots of our own, or real where the folder of real data is there."""

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from tests.attest.fake_sigstore import IDENTITY, FakeSigstore, Signing, statement
from tests.attest.families.authorities import YEAR, crl
from tests.attest.families.cases import NOW, Case
from tests.attest.families.forged_azure import azure_case, azure_tdx
from tests.attest.families.forged_nitro import Fields as NitroFields
from tests.attest.families.forged_nitro import nitro_case
from tests.attest.families.forged_nvidia import ROOT as GPU_ROOT
from tests.attest.families.forged_nvidia import Messages, gpu_case
from tests.attest.families.forged_snp import ARK, GENOA, MILAN, TURIN, Fields, leaf, snp_case
from tests.attest.families.forged_tpm import enrolled, tpm_case
from tests.attest.made_up import NOW as TOKEN_TIME
from tests.attest.test_gpu_tokens import LOCAL, trustee

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.evidence_files import read_collateral, read_evidence
from confide.attest.families.composite import gpu_nonce
from confide.attest.roots import ProductionRoots, SimulatedRoots
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.attest.statement import Statement

DEBUG_POLICY: Final = 0x30000 | 1 << 19
SEPT_VE_DISABLE, MIGRATABLE, PERF_PROFILE = 1 << 28, 1 << 29, 1 << 5
SIGSTORE: Final = FakeSigstore()
AFFIRMED: Final = {**LOCAL, "driver_version": "550.90.07", "vbios_version": "96.00.9F.00.01"}


def _tdx(folder: Path, listing: Listing | None = None, report_data: bytes = bytes(64), **quoted: object) -> Case:
    tee = SimulatedTee.create(folder / "tee", NOW - timedelta(days=200))
    evidence = tee.quote(report_data, **quoted)  # type: ignore[arg-type]
    return Case(evidence, tee.collateral(listing or Listing(NOW - timedelta(days=1))), tee.roots())


def _tdx_with(folder: Path, attributes: int) -> Case:
    return _tdx(folder, measurements={"td_attributes": attributes.to_bytes(8, "little")})


def _expired_pck_list(folder: Path) -> Case:
    """The rest is current: the list alone is of another time."""
    case = _tdx(folder)
    stale = SimulatedTee.open(folder / "tee").collateral(Listing(NOW - timedelta(days=90)))
    content, old = (json.loads(one.documents["dcap"]) for one in (case.collateral, stale))
    return case.with_documents(dcap=json.dumps(content | {"pck_crl": old["pck_crl"]}).encode())


def stating(folder: Path, statement: Statement) -> Case:
    """A machine that signed this statement."""
    return _tdx(folder, report_data=statement.digest())


def _replaced_level(folder: Path, days: int) -> Case:
    newer = NOW - timedelta(days=days)
    return _tdx(folder, Listing(newer - timedelta(days=1), days=days + 30, status="OutOfDate", newer=newer))


def _released(folder: Path, mrtd: bytes = b"\7" * 48, **changes: Any) -> Case:
    said = {"family": "tdx", "values": {"mrtd": "07" * 48}}
    case = _tdx(folder, measurements={"mrtd": mrtd})
    return case.with_documents(release=SIGSTORE.release(Signing(statement(said), **changes)))


def _azure_tdx(folder: Path) -> Case:
    case = _tdx(folder)
    return replace(case, evidence=azure_tdx(SimulatedTee.open(folder / "tee")))


def _trustee(**gpus: dict[str, Any]) -> Case:
    return Case(Evidence(Family.TOKEN, trustee(**gpus)), Collateral(), ProductionRoots(), TOKEN_TIME)


def _token_in_a_certificate(folder: Path) -> Case:
    """A token where a verifier of evidence expects evidence, as RA-TLS can carry one."""
    return replace(_tdx(folder), evidence=Evidence(Family.TOKEN, trustee()))


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


def _turin(version: int = 3) -> Case:
    """With its versions where Turin has them: FMC, boot loader, TEE, SNP and, last, microcode."""
    tcb = bytes((1, 2, 3, 4, 0, 0, 0, 5))
    case = snp_case(Fields.of(TURIN, tcb=tcb, version=version), signer=leaf(tcb=tcb, of=TURIN), of=TURIN)
    return case.with_documents(crl=crl(TURIN.ark))


def _listed(case: Case) -> Case:
    return case.with_documents(crl=crl(ARK))


FORGED: Final[Mapping[str, Callable[[Path], Case]]] = MappingProxyType(
    {
        "tdx": _tdx,
        "tdx-evaluation-20": lambda folder: _tdx(folder, Listing(NOW - timedelta(days=1), evaluation=20)),
        "tdx-lists-from-the-future": lambda folder: _tdx(folder, Listing(NOW + timedelta(days=2))),
        "tdx-expired-pck-list": _expired_pck_list,
        "tdx-revoked": lambda folder: _tdx(folder, Listing(NOW - timedelta(days=1), revoked=frozenset({"pck"}))),
        "tdx-advisory": lambda folder: _tdx(folder, Listing(NOW - timedelta(days=1), advisories=("INTEL-SA-00837",))),
        "tdx-no-level": lambda folder: _tdx(folder, Listing(NOW - timedelta(days=1), least=2)),
        "tdx-without-sept-ve-disable": lambda folder: _tdx_with(folder, 0),
        "tdx-migratable": lambda folder: _tdx_with(folder, SEPT_VE_DISABLE | MIGRATABLE),
        "tdx-profiled": lambda folder: _tdx_with(folder, SEPT_VE_DISABLE | PERF_PROFILE),
        "tdx-released": _released,
        "tdx-released-100-days-before": lambda folder: _released(folder, at=NOW - timedelta(days=100)),
        "tdx-released-by-somebody-else": lambda folder: _released(folder, identity=IDENTITY + "-fork"),
        "tdx-not-the-released": lambda folder: _released(folder, b"\x08" * 48),
        "tdx-under-intels-root": lambda folder: replace(_tdx(folder), roots=ProductionRoots()),
        "tdx-debug": lambda folder: _tdx(folder, debug=True),
        "tdx-replaced-10-days-ago": lambda folder: _replaced_level(folder, 10),
        "tdx-replaced-90-days-ago": lambda folder: _replaced_level(folder, 90),
        "snp": lambda _: _listed(snp_case()),
        "snp-without-list": lambda _: snp_case(),
        "snp-list-from-the-future": lambda _: snp_case().with_documents(crl=crl(ARK, begin=NOW + YEAR / 2)),
        "snp-debug": lambda _: _listed(snp_case(Fields.of(MILAN, policy=DEBUG_POLICY))),
        "snp-genoa": lambda _: snp_case(of=GENOA).with_documents(crl=crl(GENOA.ark)),
        "snp-turin": lambda _: _turin(),
        "snp-turin-v5": lambda _: _turin(5),
        "snp-genoa-v4": lambda _: snp_case(Fields.of(GENOA, version=4), of=GENOA).with_documents(crl=crl(GENOA.ark)),
        "snp-vlek": lambda _: _listed(snp_case(kind="vlek")),
        "snp-from-vmpl-2": lambda _: _listed(snp_case(Fields.of(MILAN, vmpl=2))),
        "snp-milan-under-genoa": lambda _: replace(_listed(snp_case()), roots=snp_case(of=GENOA).roots),
        "gpu": lambda _: gpu_case(),
        "gpu-padded": lambda _: (case := gpu_case()).with_raw(case.evidence.raw + bytes(4096)),
        "gpu-with-something-behind": lambda _: (case := gpu_case()).with_raw(case.evidence.raw + b"\1"),
        "machine-with-gpu": lambda _: _machine_with_gpu(),
        "gpu-of-another-machine": lambda _: _gpu_of_another_machine(),
        "tpm": lambda _: tpm_case(),
        "azure": lambda _: azure_case(),
        "azure-vmpl-1": lambda _: azure_case(vmpl=1),
        "azure-tdx": _azure_tdx,
        "azure-debug": lambda _: azure_case(policy=DEBUG_POLICY),
        "nitro": lambda _: nitro_case(),
        "nitro-debug": lambda _: nitro_case(NitroFields(pcrs={index: bytes(48) for index in range(16)})),
        "trustee-cpu-and-gpu": lambda _: _trustee(gpu0=AFFIRMED),
        "trustee-gpu-not-affirmed": lambda _: _trustee(gpu0={**AFFIRMED, "status": "contraindicated"}),
        "trustee-cpu": lambda _: _trustee(),
        "token-in-a-certificate": _token_in_a_certificate,
    }
)


def real(folder: Path, name: str, at: str, beside: list[str], form: str, keys: bool) -> Case:
    """A file of the folder of real data, in some form of text, with files of collateral.

    keys: enrol the attestation key that came along.
    """
    evidence, with_it = read_evidence(FORMS[form]((folder / name).read_bytes()), None)
    documents = dict(with_it.documents)
    if beside:
        documents |= read_collateral((folder / one).read_bytes() for one in beside).documents
    roots = ProductionRoots(attestation_keys=enrolled(documents["ak"])) if keys else ProductionRoots()
    return Case(evidence, Collateral(documents), roots, datetime.fromisoformat(at).replace(tzinfo=UTC))


FORMS: Final[Mapping[str, Callable[[bytes], bytes]]] = MappingProxyType(
    {
        "as it is": lambda data: data,
        "hexadecimal": lambda data: data.hex().encode(),
        "base64": lambda data: base64.encodebytes(data),
        "zeros behind": lambda data: data + bytes(500),
        "zeros behind, hexadecimal": lambda data: data.strip() + b"00",
        "8 KiB, hexadecimal": lambda data: data.strip().ljust(2 * 8192, b"0"),
        "a one behind, hexadecimal": lambda data: data.strip() + b"01",
    }
)
