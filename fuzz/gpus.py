"""What comes from GPUs, from NVIDIA's services and from builders of releases."""

import functools
import json
from base64 import b64encode
from collections.abc import Callable
from datetime import timedelta

from tests.attest.fake_sigstore import IDENTITY, ISSUER, SIGNED, FakeSigstore, Signing, statement
from tests.attest.families.forged_nvidia import BLOCKS, DEVICE, ROOT, gpu_case
from tests.attest.families.forged_rim import RIM_AUTHORITY, RIM_SIGNER, manifest, response
from tests.attest.made_up import NOW
from tests.attest.test_gpu_tokens import SERVICE, bundle

from confide.attest.evidence_files import read_collateral, read_evidence
from confide.attest.families.nvidia_report import Report
from confide.attest.families.nvidia_rim import ReferenceManifest
from confide.attest.ocsp import OcspResponses
from confide.attest.release import Signer, verify_release
from confide.attest.requirements import VerifierService
from confide.attest.tokens import verify_token
from confide.errors import AttestationError

LATER = SIGNED + timedelta(days=1)


def gpu_report(data: bytes) -> None:
    """The SPDM messages, and what goes from them into addresses."""
    report = Report.parse(data)
    for name in (report.driver_manifest("GH100"), report.vbios_manifest()):
        if name is not None and not name.replace("_", "").replace(".", "").replace("-", "").isalnum():
            raise AssertionError("an address was taken from a report")


def gpu_json(data: bytes) -> None:
    """NVIDIA's lists."""
    read_evidence(b"[" + data)


def reference_manifest(data: bytes) -> None:
    """XML and its signature: what is accepted is what was signed here."""
    found = ReferenceManifest.read(data, "manifest")
    if found.measurements != {index: (value,) for index, value in BLOCKS.items()}:
        raise AssertionError("a changed manifest was taken")


def ocsp(data: bytes) -> None:
    """Responses, by the issuer that they have to be signed by."""
    OcspResponses(data).check(DEVICE.certificate, ROOT.certificate, gpu_case().now)


def gpu_tokens(data: bytes) -> None:
    """A bundle of tokens."""
    verify_token(data, [SERVICE, VerifierService("trustee", "x", SERVICE.keys)], NOW)


@functools.cache
def _sigstore() -> tuple[FakeSigstore, Signer]:
    made = FakeSigstore()
    return made, Signer(IDENTITY, ISSUER, made.trusted_root())


def release(data: bytes) -> None:
    """A Sigstore bundle: what is accepted is what was signed here."""
    found = verify_release(data, _sigstore()[1], LATER)
    if [one.values for one in found.measurements] != [{"mrtd": "ab" * 48}]:
        raise AssertionError("a changed release was taken")


def gpu_collateral(data: bytes) -> None:
    """Files of collateral, told by their content."""
    try:
        read_collateral([data])
    except AttestationError:
        return


def _bundle() -> bytes:
    return _sigstore()[0].release(Signing(statement({"family": "tdx", "values": {"mrtd": "ab" * 48}})))


def _json() -> bytes:
    case = gpu_case()
    report, chain = case.evidence.raw, case.collateral.documents["chain"]
    return json.dumps([{"evidence": b64encode(report).decode(), "certificate": b64encode(chain).decode()}]).encode()


TARGETS: dict[str, Callable[[bytes], None]] = {
    "gpu-report": gpu_report,
    "gpu-json": gpu_json,
    "reference-manifest": reference_manifest,
    "ocsp": ocsp,
    "gpu-tokens": gpu_tokens,
    "gpu-collateral": gpu_collateral,
    "release": release,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "gpu-report": lambda: [gpu_case().evidence.raw],
    "gpu-json": lambda: [_json()[1:], b'["JWT", "x"], {}]'],
    "reference-manifest": lambda: [manifest(BLOCKS, "550.1")],
    "ocsp": lambda: [response(DEVICE, ROOT) + response(RIM_SIGNER, RIM_AUTHORITY)],
    "gpu-tokens": lambda: [bundle()],
    "gpu-collateral": lambda: [manifest(BLOCKS, "550.1"), response(DEVICE, ROOT), b'{"mediaType": "x"}'],
    "release": lambda: [_bundle()],
}
