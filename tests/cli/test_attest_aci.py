"""`confide attest verify --aci`: a gateway that is asked now, a report that was kept, and what is sent for it."""

import hashlib
import json
import ssl
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from tests.enclave.serving import serving
from tests.receipts.test_verify import NONCE, Scene

from confide.attest.policy_toml import to_toml
from confide.attest.strict import strict_policy
from confide.cli.app import main
from confide.net.tls import make_certificates, server_context
from confide.receipts.keyset import make_keyset, report_data
from confide.receipts.report import MAX_REPORT_BYTES, write_report


@dataclass
class Gateway:
    """answer: in place of the report. nonces: what it was asked for with."""

    scene: Scene
    nonces: list[str] = field(default_factory=list)
    answer: Response | None = None
    nonce: str | None = None

    def app(self) -> Starlette:
        async def report(request: Request) -> Response:
            self.nonces.append(request.query_params["nonce"])
            if self.answer is not None:
                return self.answer
            data = report_data(self.scene.keyset.digest, self.nonce or self.nonces[-1])
            tee = self.scene.tee
            return Response(write_report(self.scene.keyset, data, tee.read(data), tee.collateral()))

        return Starlette(routes=[Route("/v1/aci/attestation", report)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("gateway")


@pytest.fixture(scope="module")
def scene(folder: Path) -> Scene:
    scene = Scene(folder / "tee")
    now = datetime.now(UTC)
    scene.keyset = make_keyset(scene.key.id, scene.key.public, int(now.timestamp()) + 100_000)
    claims = scene.verifier.verify(scene.tee.read(bytes(64)), scene.tee.collateral(), now)
    (folder / "policy.toml").write_text(to_toml(strict_policy(claims)))
    return scene


@pytest.fixture
def gateway(scene: Scene) -> Iterator[tuple[Gateway, str]]:
    gateway = Gateway(scene)
    with serving(gateway.app()) as url:
        yield gateway, url


def run(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: object
) -> tuple[int, str]:
    trust = ("--simulated-root", folder / "tee" / "root.pem", "--policy", folder / "policy.toml")
    monkeypatch.setattr("sys.argv", ["confide", "attest", "verify", *map(str, (*arguments, *trust))])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    out = capsys.readouterr()
    return int(stop.value.code or 0), out.out + out.err


def test_a_gateway_that_is_asked_now(
    gateway: tuple[Gateway, str], folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked, url = gateway
    code, text = run(capsys, monkeypatch, folder, "--aci", url)
    assert (code, "SIMULATED" in text) == (0, True), text
    code, text = run(capsys, monkeypatch, folder, "--aci", f"{url}/v1/aci/attestation", "--json")
    found: dict[str, Any] = json.loads(text)
    assert (code, found["verified"], found["keyset_digest"]) == (0, True, asked.scene.keyset.digest)
    assert {one["code"] for one in found["checks"]} >= {"aci-nonce", "aci-hardware", "aci-expiry"}
    assert found["evidence"]
    assert all(one["clause"] for one in found["checks"])
    first, second = asked.nonces
    assert first != second
    assert len(bytes.fromhex(first)) == 32
    asked.nonce = first  # a report that it made before
    code, text = run(capsys, monkeypatch, folder, "--aci", url)
    assert (code, "aci-nonce" in text) == (10, True)


@pytest.mark.parametrize(
    ("answer", "code", "says"),
    [
        (Response(b"{}"), 20, "malformed-receipt"),
        (Response(b"[" * 100_000), 20, "malformed-receipt"),
        (Response(b" " * (MAX_REPORT_BYTES + 100)), 20, "malformed-receipt"),
        (JSONResponse({"error": {"message": "\x1b[2Jno"}}, 404), 30, "404"),
        (Response(status_code=302, headers={"location": "http://127.0.0.1:1/"}), 30, "302"),
    ],
    ids=["nothing", "deep", "large", "missing", "elsewhere"],
)
def test_what_is_no_report(
    gateway: tuple[Gateway, str],
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    answer: Response,
    code: int,
    says: str,
) -> None:
    asked, url = gateway
    asked.answer = answer
    found, text = run(capsys, monkeypatch, folder, "--aci", url)
    assert (found, says in text) == (code, True), text
    assert "\x1b[2J" not in text


def test_through_tls_that_ends_in_the_workload_or_elsewhere(
    scene: Scene, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made = make_certificates(["127.0.0.1", "localhost"])
    (folder / "tls").mkdir()
    ca, certificate, key = made.write(folder / "tls")
    spki = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    digest = hashlib.sha256(spki.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).hexdigest()
    before = scene.keyset
    context: ssl.SSLContext = server_context(certificate, key)
    with serving(Gateway(scene).app(), context) as url:
        for named, code, outcome in ((digest, 0, "pass"), ("11" * 32, 10, "fail"), ("", 0, "skipped")):
            scene.keyset = make_keyset(scene.key.id, scene.key.public, before.fields.not_after, named)
            found, text = run(capsys, monkeypatch, folder, "--aci", url, "--ca", ca, "--json")
            assert found == code, text
            channel = next(one for one in json.loads(text)["checks"] if one["code"] == "aci-channel")
            assert channel["outcome"] == outcome
    scene.keyset = before


def test_a_report_that_was_kept(
    scene: Scene, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = report_data(scene.keyset.digest, NONCE)
    report, collateral = folder / "report.json", folder / "collateral"
    report.write_bytes(write_report(scene.keyset, data, scene.tee.read(data), scene.tee.collateral()))
    collateral.write_bytes(scene.tee.collateral().documents["dcap"])
    kept = ("--aci", report, "--collateral", collateral)
    assert run(capsys, monkeypatch, folder, *kept, "--nonce", NONCE)[0] == 0
    assert run(capsys, monkeypatch, folder, *kept, "--nonce", "cd" * 32)[0] == 10
    code, text = run(capsys, monkeypatch, folder, *kept)
    assert (code, "aci-nonce" in text) == (10, True)
    # Collateral that the gateway chose is no older than this policy allows.
    assert run(capsys, monkeypatch, folder, "--aci", report, "--nonce", NONCE)[0] == 0
    late = (datetime.now(UTC).year + 1, 12, 31)
    code, text = run(capsys, monkeypatch, folder, *kept, "--nonce", NONCE, "--at", "{}-{}-{}".format(*late))
    assert (code, "aci-expiry" in text) == (10, True)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--aci", "http://127.0.0.1:1", "--at", "2026-01-01"), "asked now"),
        (("--aci", "http://127.0.0.1:1", "--nonce", NONCE), "asked now"),
        (("--aci", "x", "bundle"), "no other evidence"),
        (("--nonce", NONCE, "bundle"), "go with --aci"),
        (("--aci", "nothing", "--nonce", "ab"), "32 bytes"),
        (("--aci", "nothing"), "cannot be read"),
        (("--aci", "http://models.example"), "https"),
    ],
    ids=range(7),
)
def test_wrong_usage(
    scene: Scene,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    says: str,
) -> None:
    code, text = run(capsys, monkeypatch, folder, *arguments)
    assert (code, says in text) == (30, True), text
