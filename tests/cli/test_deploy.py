"""`confide deploy` as a person or a script runs it."""

import json
import sys
from pathlib import Path

import pytest
from tests.attest.families.test_eventlog import log_of
from tests.deploy import enclave_image, machine
from tests.deploy.test_gramine_sign import sigstruct
from tests.deploy.test_lint import MANIFESTS
from tests.deploy.test_predict_snp import firmware as snp_firmware
from tests.deploy.test_targets import AZURE_IMAGE
from tests.owners import OWNER

from confide.attest.policy_toml import policy_from_toml
from confide.cli import main
from confide.deploy.image import build as image
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.write import Contents, seal_model


def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *words: object) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["confide", "deploy", *map(str, words)])
    monkeypatch.setenv("COLUMNS", "120")
    with pytest.raises(SystemExit) as stop:
        main()
    printed = capsys.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "one.gguf").write_bytes(b"weights")
    contents = Contents("made-up", "none", WeightsFormat.GGUF, "f16", {"one.gguf": tmp_path / "one.gguf"})
    seal_model(contents, tmp_path / "sealed", key=ModelKey(b"k" * 32), owner=OWNER)
    for name, content in (
        ("OVMF.fd", machine.firmware()),
        ("vmlinuz", machine.kernel()),
        ("initrd", b"initrd"),
        ("table-loader", machine.ACPI.loader),
        ("rsdp", machine.ACPI.rsdp),
        ("tables", machine.ACPI.tables),
        ("OVMF-snp.fd", snp_firmware()),
    ):
        (tmp_path / name).write_bytes(content)
    return tmp_path / "sealed"


KEYS = ("--keys", "https://keys.example:8471")


def booted(package: Path, firmware: str = "OVMF.fd") -> tuple[object, ...]:
    files = package.parent
    return (
        *("--firmware", files / firmware, "--kernel", files / "vmlinuz", "--initrd", files / "initrd"),
        *("--root-hash", "cd" * 32),
    )


def test_tdx(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = package.parent / "out"
    line = ("tdx", package, "--out", out, *KEYS, *booted(package), "--acpi", package.parent)
    code, shown, _ = run(capsys, monkeypatch, *line)
    assert code == 0
    assert "Wrote confide.xml, expected.json, policy.toml" in shown
    expected = json.loads((out / "expected.json").read_text())
    policy = policy_from_toml((out / "policy.toml").read_text())
    assert policy.requirements[0].mrtd == expected["measurements"]["mrtd"]  # type: ignore[union-attr]
    code, _, err = run(capsys, monkeypatch, *line)
    assert code == 1
    assert "not empty" in err
    code, shown, _ = run(capsys, monkeypatch, *line[:3], package.parent / "again", *line[4:], "--json")
    assert code == 0
    assert json.loads(shown)["measurements"] == expected["measurements"]
    assert (package.parent / "again/expected.json").read_bytes() == (out / "expected.json").read_bytes()
    assert run(capsys, monkeypatch, "lint", out / "confide.xml")[0] == 0


def test_compare(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out, log = package.parent / "out", package.parent / "log"
    run(capsys, monkeypatch, "tdx", package, "--out", out, *KEYS, *booted(package))
    line = "ro panic=-1 systemd.verity=yes root=/dev/mapper/root roothash=" + "cd" * 32 + " initrd=initrd\0"
    good = [(3, 6, line.encode("utf-16-le")), (3, 6, b"initrd"), (1, 8, b"what was not predicted")]
    log.write_bytes(log_of(good))
    code, shown, _ = run(capsys, monkeypatch, "compare", out / "expected.json", log, "--json")
    assert code == 10
    found = json.loads(shown)["differences"]
    assert {one["register"] for one in found} == {"rtmr1"}
    log.write_bytes(log_of([(3, 6, b"init=/bin/sh\0\x1b[2J"), *good[1:], (4, 13, b"late")]))
    code, shown, _ = run(capsys, monkeypatch, "compare", out / "expected.json", log)
    assert code == 10
    assert "rtmr2 event 1  expected kernel command line, the log has tag" in shown
    assert "rtmr3 event 1  expected nothing, the log has boot loader late" in shown
    assert "\x1b" not in shown
    assert run(capsys, monkeypatch, "compare", log, log)[0] == 1


def test_snp(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("sevsnpmeasure")
    out = package.parent / "out"
    line = ("snp", package, "--out", out, *KEYS, *booted(package, "OVMF-snp.fd"))
    for versions in ("snp=22,speed=1", "snp=" + "9" * 5000, "snp=\u0662"):
        assert run(capsys, monkeypatch, *line, "--min-tcb", versions)[0] == 2
    assert run(capsys, monkeypatch, *line, "--min-tcb", "snp=22,microcode=213")[0] == 0
    (required, *_) = policy_from_toml((out / "policy.toml").read_text()).requirements
    assert required.min_tcb.microcode == 213  # type: ignore[union-attr]


def test_gramine(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = package.parent / "out"
    code, shown, err = run(capsys, monkeypatch, "gramine", package, "--out", out, *KEYS)
    assert code == 0
    assert "not predicted: sign the manifest" in shown
    assert "No policy was written" in err
    assert not (out / "policy.toml").exists()


def test_those_in_a_guest(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    guest = package.parent / "guest.toml"
    guest.write_text(
        'confide-policy = 1\nkind = "production"\n[[all]]\nrequire = "sev-snp"\nmeasurement = "' + "01" * 48 + '"\n'
    )
    image = ("registry.example/confide@sha256:" + "5c" * 32,)
    rego = MANIFESTS / "good/agent.rego"
    for words in (
        ("systemd",),
        ("container", "--base", *image),
        ("coco", "--image", *image, "--agent-policy", rego, "--runtime", "kata-qemu-snp"),
        ("helm", "--image", *image, "--agent-policy", rego, "--runtime", "kata-qemu-snp"),
    ):
        out = package.parent / words[0]
        code, _, err = run(capsys, monkeypatch, words[0], package, "--out", out, *KEYS, *words[1:], "--guest", guest)
        assert code == 0, err
        assert "01" * 48 in (out / "policy.toml").read_text()
    line = ("dstack", package, "--out", package.parent / "dstack", *KEYS, "--image", *image, "--guest", guest)
    code, _, err = run(capsys, monkeypatch, *line)  # which runs on TDX
    assert code == 1
    assert "rtmrs 0 to 3" in err
    guest.write_text('confide-policy = 1\nkind = "production"\n')
    line = ("systemd", package, "--out", package.parent / "x", *KEYS, "--guest", guest)
    assert run(capsys, monkeypatch, *line)[0] == 1
    assert not (package.parent / "x").exists()


def test_nitro_takes_two_runs(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One for what the image is built of, and one for what came of it."""
    folder, image = package.parent, "registry.example/python@sha256:" + "5c" * 32
    line = ("nitro", package, *KEYS, "--base", image)
    code, shown, err = run(capsys, monkeypatch, *line, "--out", folder / "first")
    assert code == 0, err
    assert "not predicted: build the image with `nitro-cli build-enclave`" in shown
    assert "No policy was written" in err
    (folder / "confide.eif").write_bytes(enclave_image.image())
    code, shown, err = run(capsys, monkeypatch, *line, "--out", folder / "second", "--eif", folder / "confide.eif")
    assert code == 0, err
    expected = json.loads((folder / "second/expected.json").read_text())
    (required, *_) = policy_from_toml((folder / "second/policy.toml").read_text()).requirements
    assert required.pcrs["0"] == expected["measurements"]["pcr0"]  # type: ignore[union-attr]
    assert "pcr3         not predicted: the role of the parent's instance" in shown
    for name in ("Dockerfile", "enclave.json", "confide-keys.service"):
        assert (folder / "first" / name).read_bytes() == (folder / "second" / name).read_bytes()
    (folder / "confide.eif").write_bytes(enclave_image.image()[:-1])
    for eif, says in ((folder / "confide.eif", "ends within"), (folder / "none.eif", "cannot be read")):
        code, _, err = run(capsys, monkeypatch, *line, "--out", folder / "third", "--eif", eif)
        assert code == 1
        assert says in err
    assert not (folder / "third").exists()


def test_gramine_is_measured_by_its_tool(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    tool = package.parent / "bin/gramine-sgx-sign"
    tool.parent.mkdir()
    (package.parent / "sig").write_bytes(sigstruct())
    tool.write_text(f'#!/bin/sh\ngrep -q preheat_enclave "$2" && cp {package.parent}/sig "$6"\n')
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tool.parent}:/usr/bin:/bin")
    out, key = package.parent / "out", package.parent / "initrd"
    line = ("gramine", package, "--out", out, *KEYS, "--sign-with", key)
    assert run(capsys, monkeypatch, *line, "--mrenclave", "00" * 32)[0] == 2
    code, shown, _ = run(capsys, monkeypatch, *line, "--prefault")
    assert code == 0
    assert bytes(range(32)).hex() in shown
    assert "prefault" in shown
    (required, *_) = policy_from_toml((out / "policy.toml").read_text()).requirements
    assert required.mrenclave == bytes(range(32)).hex()  # type: ignore[union-attr]


def test_machines_at_vendors(
    package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = package.parent / "log"
    log.write_bytes(log_of([(2, 0x4, bytes(4))]))
    for words in (
        ("azure", "--image", AZURE_IMAGE, "--size", "Standard_DC16as_v5", "--no-secure-boot"),
        ("gcp", "--image", "projects/a/global/images/b", "--zone", "europe-west4-a", "--log", log),
    ):
        out = package.parent / words[0]
        code, shown, err = run(capsys, monkeypatch, words[0], package, "--out", out, *KEYS, *words[1:])
        assert code == 0, err
        assert "the vendor's, and no file at hand says it" in shown
        assert "No policy was written" in err
    template = json.loads((package.parent / "azure/azuredeploy.json").read_text())
    security = template["resources"][0]["properties"]["securityProfile"]
    assert security["uefiSettings"] == {"secureBootEnabled": False, "vTpmEnabled": True}
    assert run(capsys, monkeypatch, "compare", package.parent / "gcp/expected.json", log)[0] == 0


def test_lint(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    good, bad = MANIFESTS / "good/tdx.xml", MANIFESTS / "bad/ssh.xml"
    code, shown, _ = run(capsys, monkeypatch, "lint", good)
    assert code == 0
    assert "passed" in shown
    code, shown, _ = run(capsys, monkeypatch, "lint", good, bad)
    assert code == 10
    assert "error   ssh" in shown
    code, shown, _ = run(capsys, monkeypatch, "lint", bad, "--json")
    assert code == 10
    (file,) = json.loads(shown)["files"]
    assert [one["rule"] for one in file["findings"]] == ["ssh"]
    code, shown, _ = run(capsys, monkeypatch, "lint", bad, "--sarif")
    assert code == 10
    assert json.loads(shown)["runs"][0]["results"][0]["ruleId"] == "ssh"
    (tmp_path / "a.xml").write_text("<domain")
    assert run(capsys, monkeypatch, "lint", tmp_path / "a.xml")[0] == 20
    (tmp_path / "b.xml").write_bytes(bytes(1 << 20))
    assert run(capsys, monkeypatch, "lint", tmp_path / "b.xml")[0] == 20
    assert run(capsys, monkeypatch, "lint", tmp_path / "none.xml")[0] == 2


def test_image(package: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """What is built, tests/deploy/test_image_boot.py sees; here, what is asked for and shown."""
    files, asked = package.parent, []

    def build(recipe: image.Recipe, folder: Path, out: Path) -> image.Image:
        asked.append((recipe, folder, out))
        return image.Image(
            "5c" * 32, "ro", "ab" * 32, recipe.simulated_tee is not None, "cd" * 32, {"initrd": "ef" * 32}
        )

    monkeypatch.setattr(image, "build", build)
    (files / "lock").write_text(f"deb libc6=2.36 sha256:{'0' * 64}\n")
    (files / "ca.pem").write_bytes(b"PEM")
    (files / "confide.whl").touch()
    line = (
        *("image", package, "--out", files / "out", *KEYS, "--keys-ca", files / "ca.pem", "--lock", files / "lock"),
        *("--parts", files, "--confide", files / "confide.whl"),
    )
    code, shown, err = run(capsys, monkeypatch, *line)
    assert code == 0, err
    assert "Wrote initrd, image.json" in shown
    assert "root hash    " + "5c" * 32 in shown
    assert "SIMULATED" not in err
    (recipe, folder, out) = asked.pop()
    assert (folder, out, recipe.keys_ca, recipe.files) == (package, files / "out", b"PEM", files)
    assert dict(recipe.lock.debs) == {"libc6=2.36": "0" * 64}
    code, shown, err = run(capsys, monkeypatch, *line, "--insecure-simulated-tee", files, "--json")
    assert code == 0
    assert json.loads(shown)["simulated"] is True
    assert "SIMULATED" in err
    assert asked.pop()[0].simulated_tee == files
    (files / "lock").write_bytes(b"deb")
    code, _, err = run(capsys, monkeypatch, *line)
    assert code == 1
    assert "another form" in err
