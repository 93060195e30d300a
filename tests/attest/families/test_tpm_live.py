"""A TPM of software (swtpm), asked through tpm2-tools: its live quotes verify, and follow its PCRs."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.roots import SimulatedRoots
from confide.errors import InvalidSignature, UnknownRoot

from .cases import Case, refused
from .forged_tpm import enrolled

TOOLS = ("swtpm", "tpm2_createek", "tpm2_createak", "tpm2_quote", "tpm2_pcrextend", "tpm2_flushcontext")
MISSING = [tool for tool in TOOLS if shutil.which(tool) is None]

pytestmark = pytest.mark.skipif(bool(MISSING), reason=f"{', '.join(MISSING)} missing: run `make system-deps`")

SCHEMES = {"rsassa": "rsa", "rsapss": "rsa", "ecdsa": "ecc"}


@dataclass(frozen=True)
class SoftwareTpm:
    """A running swtpm. Its files and sockets are in `folder`."""

    folder: Path

    def run(self, *command: str) -> None:
        """One tool; what it left in the TPM's few slots is dropped first."""
        environment = os.environ | {"TPM2TOOLS_TCTI": f"swtpm:path={self.folder / 'tpm.sock'}"}
        for words in (("tpm2_flushcontext", "--transient-object"), command):
            subprocess.run(words, cwd=self.folder, env=environment, check=True, capture_output=True, timeout=900)

    def key(self, scheme: str) -> bytes:
        """Make an attestation key; its public key in DER."""
        self.run("tpm2_createek", "-c", "ek.ctx", "-G", "rsa", "-u", "ek.pub")
        algorithm = ("-G", SCHEMES[scheme], "-g", "sha256", "-s", scheme)
        self.run("tpm2_createak", "-C", "ek.ctx", "-c", f"{scheme}.ctx", *algorithm, "-u", f"{scheme}.der", "-f", "der")
        return (self.folder / f"{scheme}.der").read_bytes()

    def quote(self, scheme: str, nonce: bytes, pcrs: str) -> Evidence:
        outputs = ("-m", "message", "-s", "signature", "-o", "pcrs", "-F", "values", "-g", "sha256", "--scheme", scheme)
        self.run("tpm2_quote", "-c", f"{scheme}.ctx", "-l", pcrs, "-q", nonce.hex(), *outputs)
        parts = {name: (self.folder / name).read_bytes() for name in ("signature", "pcrs")}
        return Evidence(Family.TPM, (self.folder / "message").read_bytes(), parts)


@pytest.fixture(scope="module")
def tpm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SoftwareTpm]:
    folder = tmp_path_factory.mktemp("tpm")
    sockets = [f"type=unixio,path={folder / name}" for name in ("tpm.sock", "tpm.sock.ctrl")]
    command = ["swtpm", "socket", "--tpm2", "--tpmstate", f"dir={folder}", "--flags", "not-need-init,startup-clear"]
    with subprocess.Popen(
        [*command, "--server", sockets[0], "--ctrl", sockets[1]], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        try:
            deadline = time.monotonic() + 10
            while not (folder / "tpm.sock").exists() and time.monotonic() < deadline:
                time.sleep(0.01)
            yield SoftwareTpm(folder)
        finally:
            process.terminate()


def case_of(evidence: Evidence, key: bytes) -> Case:
    return Case(evidence, Collateral({"ak": key}), SimulatedRoots(attestation_keys=enrolled(key)))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_live_quotes(tpm: SoftwareTpm, scheme: str) -> None:
    key = tpm.key(scheme)
    nonce = os.urandom(32)
    case = case_of(tpm.quote(scheme, nonce, "sha256:0,7,16"), key)
    claims = case.verify()
    assert claims.report_data == nonce
    assert list(claims.measurements) == ["pcr0", "pcr7", "pcr16"]

    tpm.run("tpm2_pcrextend", f"16:sha256={'ab' * 32}")
    later = case_of(tpm.quote(scheme, nonce, "sha256:0,7,16"), key)
    assert later.verify().measurements["pcr16"] != claims.measurements["pcr16"]
    assert later.verify().measurements["pcr7"] == claims.measurements["pcr7"]

    refused(later.with_parts(pcrs=case.evidence.parts["pcrs"]), InvalidSignature)
    refused(later.with_raw(case.evidence.raw), InvalidSignature)
    refused(replace(later, roots=SimulatedRoots()), UnknownRoot)


def test_live_quote_of_two_banks(tpm: SoftwareTpm) -> None:
    key = tpm.key("ecdsa")
    claims = case_of(tpm.quote("ecdsa", b"nonce", "sha384:1+sha256:3,4"), key).verify()
    assert {name: len(value) for name, value in claims.measurements.items()} == {
        "sha384.pcr1": 48,
        "pcr3": 32,
        "pcr4": 32,
    }
