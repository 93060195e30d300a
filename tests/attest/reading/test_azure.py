"""Reading an Azure machine's evidence: with a fake of the commands, into what verifies."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from tests.attest.families.forged_azure import AK, Hcl, azure_case, azure_tdx
from tests.attest.families.forged_tpm import NONCE, PCRS, quote, signature

from confide.attest.evidence import Family
from confide.attest.families.azure import HclReport
from confide.attest.reading.azure import AZURES_TAG, AzureCvm
from confide.attest.reading.detect import detect
from confide.attest.simulated import SimulatedTee
from confide.enclave.tee import TeeKind, open_tee
from confide.errors import EvidenceUnavailable, MalformedEvidence, NoTrustedEnvironment


class FakeTools:
    """Plays tpm2-tools on a machine with this HCL report."""

    def __init__(self, hcl: bytes | None) -> None:
        self.hcl = hcl
        self.commands: list[list[str]] = []

    def __call__(self, command: Sequence[str]) -> bytes:
        self.commands.append(list(command))
        match command[0]:
            case "tpm2_nvread":
                if self.hcl is None:
                    raise EvidenceUnavailable("tpm2_nvread failed: no such index.")
                return self.hcl
            case "tpm2_readpublic":
                Path(command[command.index("-o") + 1]).write_bytes(b"key")
            case "tpm2_quote":
                Path(command[command.index("-m") + 1]).write_bytes(quote())
                Path(command[command.index("-s") + 1]).write_bytes(signature(quote(), AK))
            case "tpm2_pcrread":
                lines = "".join(f"    {n} : 0x{PCRS[:32].hex() if n == 0 else '00' * 32}\n" for n in range(10))
                return f"  sha256:\n{lines}".encode()
        return b""


def test_what_is_read_verifies() -> None:
    case = azure_case()
    tools = FakeTools(case.evidence.raw)
    evidence = AzureCvm(runner=tools).read(bytes(64))
    assert (evidence.family, evidence.raw) == (Family.AZURE, case.evidence.raw)
    assert tools.commands[0] == ["tpm2_nvread", "-T", "device:/dev/tpmrm0", "-C", "o", "0x01400001"]
    quoting = next(command for command in tools.commands if command[0] == "tpm2_quote")
    assert quoting[quoting.index("-c") + 1] == "0x81000003"
    # The fake's quote is over two registers, where ten were asked for.
    evidence = replace(evidence, parts={**evidence.parts, "pcrs": PCRS})
    assert replace(case, evidence=evidence).verify().report_data == NONCE


def test_tdx_needs_somebody_to_ask_azure(tmp_path: Path) -> None:
    evidence = azure_tdx(SimulatedTee.create(tmp_path / "tee"))
    asked: list[bytes] = []

    def service(report: bytes) -> bytes:
        asked.append(report)
        return b"quote"

    with pytest.raises(EvidenceUnavailable, match="metadata service"):
        AzureCvm(runner=FakeTools(evidence.raw)).read(bytes(64))
    read = AzureCvm(runner=FakeTools(evidence.raw), td_quote=service).read(bytes(64))
    assert read.parts["td_quote"] == b"quote"
    assert asked == [HclReport.parse(evidence.raw).hardware[:1024]]


def test_what_is_no_machine_of_azures(tmp_path: Path) -> None:
    tag = tmp_path / "tag"
    hcl = azure_case().evidence.raw
    with pytest.raises(NoTrustedEnvironment, match="no machine at Azure"):
        AzureCvm(runner=FakeTools(hcl), asset_tag=tag).check()
    tag.write_text(f"{AZURES_TAG}\n")
    AzureCvm(runner=FakeTools(hcl), asset_tag=tag).check()
    for broken in (None, b"", Hcl(magic=b"nope").around(b"")):
        with pytest.raises(NoTrustedEnvironment, match="no confidential one"):
            AzureCvm(runner=FakeTools(broken), asset_tag=tag).check()
    with pytest.raises(ValueError, match="64"):
        AzureCvm(runner=FakeTools(hcl)).read(b"short")
    with pytest.raises(MalformedEvidence):
        AzureCvm(runner=FakeTools(b"HCLA")).read(bytes(64))


def test_it_is_looked_for_and_used(tmp_path: Path) -> None:
    found = detect(tmp_path, tmp_path, tmp_path / "tpm", tmp_path / "tag", tmp_path / "nsm")
    assert "no machine at Azure" in found.absent["azure-cvm"]
    reader = AzureCvm(runner=FakeTools(azure_case().evidence.raw))
    here = replace(found, readers=(reader,))
    for kind in (TeeKind.AUTO, TeeKind.AZURE):
        assert open_tee(kind, None, lambda: here).reader is reader
    with pytest.raises(NoTrustedEnvironment):
        open_tee(TeeKind.SNP, None, lambda: here)
