"""Each target's files: the same bytes for the same input, passed by our linter, a policy only where code is named."""

import base64
import gzip
import hashlib
import json
import shutil
import subprocess
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import typer
import yaml
from lxml import etree
from tests.deploy import machine
from tests.deploy.test_lint import MANIFESTS, REGO
from tests.deploy.test_predict_snp import firmware as snp_firmware

from confide.attest.policy import Policy
from confide.attest.policy_toml import policy_from_toml
from confide.attest.requirements import AnyOf, Model, NoEgress, Snp, Tdx
from confide.cli.app import command_line
from confide.deploy import targets
from confide.deploy.lint.linter import lint
from confide.deploy.predict.snp import SnpBoot
from confide.deploy.predict.tdx import AcpiTables, DirectBoot
from confide.deploy.service import Service
from confide.deploy.targets import Deployment, Machine
from confide.errors import ConfideError, DeployError

DIGEST = "ab" * 32
SERVICE = Service(DIGEST, "https://keys.example:8471")
IMAGE = "registry.example/confide@sha256:" + "5c" * 32
GUEST = Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("", "02" * 48, "03" * 48)), version="image 1")
LINE = targets.command_line("cd" * 32)
Make = Callable[[], Deployment]


@pytest.fixture
def booted(tmp_path: Path) -> SnpBoot:
    for name, content in (("ovmf", snp_firmware()), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    return SnpBoot(tmp_path / "ovmf", tmp_path / "kernel", LINE, tmp_path / "initrd")


def gramine(mrenclave: str | None = "ef" * 32) -> Deployment:
    python = "/opt/confide/bin/python3"
    return targets.gramine(SERVICE, python=python, enclave_gib=64, threads=64, mrenclave=mrenclave)


def tdx(acpi: AcpiTables | None = machine.ACPI) -> Deployment:
    boot = DirectBoot(machine.firmware(), machine.kernel(), LINE, b"initrd", acpi=acpi)
    return targets.tdx(SERVICE, Machine(), boot)


def coco(runtime: str = "kata-qemu-tdx", guest: Policy | None = GUEST, policy: str = REGO) -> Deployment:
    return targets.coco(SERVICE, image=IMAGE, runtime=runtime, agent_policy=policy.encode(), guest=guest)


MAKERS: dict[str, Make] = {
    "gramine": gramine,
    "tdx": tdx,
    "systemd": lambda: targets.systemd(SERVICE, program="/opt/confide/bin/confide", guest=GUEST),
    "container": lambda: targets.container(SERVICE, base=IMAGE, guest=GUEST),
    "coco": coco,
    "dstack": lambda: targets.dstack(SERVICE, image=IMAGE, guest=GUEST),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_same_input_gives_the_same_bytes(name: str) -> None:
    assert MAKERS[name]().everything() == MAKERS[name]().everything()


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_our_own_files_pass_our_linter(name: str) -> None:
    made = MAKERS[name]().everything()
    linted = [
        lint(one, content) for one, content in made.items() if one.endswith((".manifest", ".xml", ".yaml", ".service"))
    ]
    assert linted or name == "container"
    assert all(not report.refused for report in linted)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_policy_asks_for_model_and_machine(name: str) -> None:
    made = MAKERS[name]().everything()
    policy = policy_from_toml(made["policy.toml"].decode())
    kinds = [type(one).__name__ for one in policy.requirements]
    assert kinds[0] in ("Sgx", "Tdx")
    assert Model(sha256=DIGEST) in policy.requirements
    assert (NoEgress() in policy.requirements) == (name != "gramine")
    expected = json.loads(made["expected.json"])
    assert expected["files"] == {
        one: hashlib.sha256(content).hexdigest()
        for one, content in made.items()
        if one not in ("expected.json", "policy.toml")
    }


@pytest.mark.parametrize(
    "make",
    [
        lambda: gramine(None),
        lambda: tdx(None),
        lambda: targets.systemd(SERVICE, program="/bin/confide", guest=None),
        lambda: targets.container(SERVICE, base=IMAGE, guest=None),
        lambda: coco(guest=None),
        lambda: targets.dstack(SERVICE, image=IMAGE, guest=None),
    ],
    ids=["gramine", "tdx", "systemd", "container", "coco", "dstack"],
)
def test_without_the_code_there_is_no_policy(make: Make) -> None:
    """It would accept whatever runs on genuine hardware."""
    made = make().everything()
    assert "policy.toml" not in made
    expected = json.loads(made["expected.json"])
    assert expected["policy"] is None
    assert {"measurement", "mrenclave", "rtmr0"} & set(expected["unpredicted"])


@pytest.mark.parametrize(
    "guest",
    [
        Policy.all_of(),
        Policy.all_of(Model(sha256=DIGEST)),
        Policy.all_of(Tdx(mrtd="01" * 48)),
        Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("02" * 48, "02" * 48))),
        Policy.all_of(Tdx(rtmrs=("", "02" * 48, "03" * 48))),
        Policy.all_of(Snp(host_data="01" * 32)),
        Policy.all_of(AnyOf(of=(Snp(measurement="01" * 48), Snp(vmpl=0)))),
    ],
    ids=range(7),
)
def test_a_guest_that_names_no_code_is_refused(guest: Policy) -> None:
    with pytest.raises(DeployError, match="names no code"):
        coco(guest=guest)


def test_the_command_is_one_that_confide_serve_takes() -> None:
    """By the command line's own parser, and it listens beyond this machine only with TLS."""
    serve = typer.main.get_command(command_line(["serve"])).commands["serve"]  # type: ignore[attr-defined]
    for words in (SERVICE.command("confide"), SERVICE.command("confide", "--insecure-open-egress")):
        given = serve.make_context("serve", list(words[2:])).params
        assert given["packages"] == ["/package"]
        assert (given["keys"], given["port"]) == (SERVICE.keys, 8470)
        assert (given["host"], given["ra_tls"], given["insecure_no_tls"]) == ("0.0.0.0", True, False)  # noqa: S104


def test_gramine() -> None:
    manifest = tomllib.loads(gramine().files["confide.manifest"].decode())
    assert manifest["loader"]["argv"][:4] == ["/opt/confide/bin/python3", "-m", "confide", "serve"]
    assert "--insecure-open-egress" in manifest["loader"]["argv"]
    mounted = {mount["uri"] + "/" for mount in manifest["fs"]["mounts"] if "uri" in mount}
    trusted = manifest["sgx"]["trusted_files"]
    assert {"file:/package/", "file:/opt/confide/"} <= mounted & set(trusted)
    (required,) = [one for one in gramine().policy.requirements if hasattr(one, "mrenclave")]  # type: ignore[union-attr]
    assert required.mrenclave == "ef" * 32


def test_tdx() -> None:
    made = tdx()
    root = etree.fromstring(made.files["confide.xml"])
    assert root.findtext("os/cmdline") == LINE
    assert base64.b64decode(root.findtext("launchSecurity/mrConfigId") or "") == SERVICE.config_id
    (required,) = [one for one in made.policy.requirements if isinstance(one, Tdx)]  # type: ignore[union-attr]
    assert required.mrconfigid == SERVICE.config_id.hex()
    assert all(required.rtmrs or ())
    again = DirectBoot(machine.firmware(), machine.kernel(), LINE, b"initrd", 64 << 30, machine.ACPI, SERVICE.config_id)
    assert made.prediction == again.predict()


def test_snp(booted: SnpBoot) -> None:
    pytest.importorskip("sevsnpmeasure")
    made = targets.snp(SERVICE, Machine(processors=4), booted, None)
    assert made.everything() == targets.snp(SERVICE, Machine(processors=4), booted, None).everything()
    root = etree.fromstring(made.files["confide.xml"])
    assert root.findtext("vcpu") == "4"
    assert base64.b64decode(root.findtext("launchSecurity/hostData") or "") == SERVICE.host_data
    other = targets.snp(SERVICE, Machine(processors=8), booted, None)
    assert made.prediction.measurements["measurement"] != other.prediction.measurements["measurement"]
    assert made.prediction.measurements["host_data"] == SERVICE.host_data


@pytest.mark.parametrize(
    ("runtime", "name", "algorithm"),
    [("kata-qemu-tdx", "mrconfigid", "sha384"), ("kata-qemu-snp", "host_data", "sha256")],
)
def test_coco(runtime: str, name: str, algorithm: str) -> None:
    made = coco(runtime)
    pod = yaml.safe_load(made.files["pod.yaml"])
    initdata = made.files["initdata.toml"]
    packed = pod["metadata"]["annotations"]["io.katacontainers.config.hypervisor.cc_init_data"]
    assert gzip.decompress(base64.b64decode(packed)) == initdata
    document = tomllib.loads(initdata.decode())
    assert document["data"]["policy.rego"] == REGO
    assert document["algorithm"] == algorithm
    assert made.prediction.measurements == {name: hashlib.new(algorithm, initdata).digest()}
    assert pod["spec"]["containers"][0]["command"] == list(SERVICE.command("confide"))
    assert any(getattr(one, name, None) for one in made.policy.requirements)  # type: ignore[union-attr]


def test_an_agent_policy_that_lets_in_is_refused() -> None:
    with pytest.raises(DeployError, match="exec-allowed"):
        coco(policy=(MANIFESTS / "bad/exec.rego").read_text())


def test_dstack() -> None:
    files = MAKERS["dstack"]().files
    app = json.loads(files["app-compose.json"])
    assert app["docker_compose_file"].encode() == files["compose.yaml"]
    compose_hash = hashlib.sha256(files["app-compose.json"]).digest()
    assert MAKERS["dstack"]().prediction.measurements["compose_hash"] == compose_hash


def test_a_file_that_our_linter_refuses_is_not_written() -> None:
    made = gramine()
    bad = made.files["confide.manifest"].replace(b"sgx.debug = false", b"sgx.debug = true")
    with pytest.raises(DeployError, match="sgx-debug"):
        replace(made, files={"confide.manifest": bad}).everything()


def test_another_model_or_broker_is_another_commitment() -> None:
    others = (Service("cd" * 32, SERVICE.keys), Service(DIGEST, "https://keys.example:8472"))
    assert len({one.config_id for one in (SERVICE, *others)}) == 3
    assert len({one.host_data for one in (SERVICE, *others)}) == 3
    assert Service(DIGEST, SERVICE.keys, port=1).config_id == SERVICE.config_id


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    tool = shutil.which("systemd-analyze")
    if tool is None:
        pytest.skip("systemd-analyze is not there")
    unit = tmp_path / "confide.service"
    unit.write_bytes(targets.systemd(SERVICE, program="/bin/true", guest=None).files["confide.service"])
    checked = subprocess.run([tool, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "confide.service" not in checked.stderr
    unit.write_text(unit.read_text().replace("UMask=0077", "UMusk=0077"))
    checked = subprocess.run([tool, "verify", unit], capture_output=True, text=True, timeout=60, check=False)
    assert "UMusk" in checked.stderr  # it does read it


INJECTIONS = ("a\nb", 'a"b', "a'b", "a b", "a$b", "a%b", "a{{b}}", "a<b", "a&b", "a\\b", "../a", "ä")


@pytest.mark.parametrize("words", INJECTIONS, ids=range(len(INJECTIONS)))
def test_no_name_writes_a_setting(words: str) -> None:
    for make in (
        lambda: Service(DIGEST, f"https://{words}"),
        lambda: Service(DIGEST, f"https://a/{words}"),
        lambda: Service(DIGEST, SERVICE.keys, f"/{words}"),
        lambda: targets.gramine(SERVICE, python=f"/{words}", enclave_gib=64, threads=64, mrenclave=None),
        lambda: targets.gramine(SERVICE, python="/p/bin/python", enclave_gib=64, threads=64, mrenclave=words),
        lambda: Machine(files=f"/{words}"),
        lambda: targets.command_line(words),
        lambda: targets.systemd(SERVICE, program=f"/{words}", guest=None),
        lambda: targets.container(SERVICE, base=words + IMAGE, guest=None),
        lambda: targets.dstack(SERVICE, image=IMAGE + words, guest=None),
        lambda: targets.coco(SERVICE, image=IMAGE, runtime=words, agent_policy=b"", guest=None),
    ):
        with pytest.raises(ConfideError):
            make()


@pytest.mark.parametrize(
    "make",
    [
        lambda: Service(DIGEST, "http://keys.example"),
        lambda: Service(DIGEST, SERVICE.keys, port=0),
        lambda: Machine(memory=0),
        lambda: Machine(processors=1000),
        lambda: targets.gramine(SERVICE, python="/bin/python", enclave_gib=63, threads=64, mrenclave=None),
        lambda: targets.container(SERVICE, base="python:3.13", guest=None),
    ],
    ids=range(6),
)
def test_what_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DeployError):
        make()
