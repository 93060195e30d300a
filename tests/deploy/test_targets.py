"""Each target's files: the same bytes for the same input, passed by our linter, a policy only where code is named."""

import base64
import gzip
import hashlib
import io
import json
import tomllib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import typer
import yaml
from lxml import etree
from tests.attest.families.cases import NOW
from tests.attest.families.forged_nitro import Fields, nitro_case
from tests.deploy import enclave_image, machine
from tests.deploy.test_lint import MANIFESTS, REGO
from tests.deploy.test_predict_snp import firmware as snp_firmware

from confide.attest.families.dcap_signature import parse
from confide.attest.families.eventlog import Event, EventLog, replay
from confide.attest.policy import Policy, SimulatedPolicy, appraise
from confide.attest.policy_toml import policy_from_toml
from confide.attest.requirements import AnyOf, AnyRequirement, Azure, Model, Nitro, NoEgress, Snp, Tdx
from confide.cli.app import command_line
from confide.deploy import clouds, targets
from confide.deploy import nitro as enclaves
from confide.deploy.deployment import Deployment
from confide.deploy.lint.linter import lint
from confide.deploy.predict.eif import EnclaveImage
from confide.deploy.predict.events import differences, from_json
from confide.deploy.predict.snp import SnpBoot
from confide.deploy.predict.tdx import AcpiTables, DirectBoot
from confide.deploy.service import Service
from confide.deploy.targets import Machine
from confide.deploy.tuning import Tuning
from confide.errors import ConfideError, DeployError, EventLogMismatch

DIGEST = "ab" * 32
SERVICE = Service(DIGEST, "https://keys.example:8471")
IMAGE = "registry.example/confide@sha256:" + "5c" * 32
GUEST = Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("04" * 48, "02" * 48, "03" * 48)), version="image 1")
DSTACK_GUEST = Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("04" * 48, "02" * 48, "03" * 48, "05" * 48)))
LINE = targets.command_line("cd" * 32)
Make = Callable[[], Deployment]


@pytest.fixture
def booted(tmp_path: Path) -> SnpBoot:
    for name, content in (("ovmf", snp_firmware()), ("kernel", b"kernel"), ("initrd", b"initrd")):
        (tmp_path / name).write_bytes(content)
    return SnpBoot(tmp_path / "ovmf", tmp_path / "kernel", LINE, tmp_path / "initrd")


def gramine(mrenclave: bytes | None = b"\xef" * 32, **tuning: bool) -> Deployment:
    python = "/opt/confide/bin/python3"
    return targets.gramine(SERVICE, python=python, enclave_gib=64, threads=64, mrenclave=mrenclave, **tuning)


def tdx(acpi: AcpiTables | None = machine.ACPI) -> Deployment:
    boot = DirectBoot(machine.firmware(), machine.kernel(), LINE, b"initrd", acpi=acpi)
    return targets.tdx(SERVICE, Machine(), boot)


def snp_domain() -> bytes:
    """Without a prediction, which takes another library."""
    return targets.domain(SERVICE, Machine(), LINE, "snp", processor="EPYC-Milan")


def coco(runtime: str = "kata-qemu-tdx", guest: Policy | None = GUEST, policy: str = REGO) -> Deployment:
    return targets.coco(SERVICE, image=IMAGE, runtime=runtime, agent_policy=policy.encode(), guest=guest)


def helm(guest: Policy | None = GUEST) -> Deployment:
    runtime = "kata-qemu-tdx"
    return targets.helm(SERVICE, image=IMAGE, runtime=runtime, agent_policy=REGO.encode(), guest=guest)


AZURE_IMAGE = (
    "/subscriptions/00000000-0000-0000-0000-000000000000/resourceGroups/private/providers/Microsoft.Compute/galleries/"
    "private/images/confide/versions/1.0.0"
)
PCRS = {"4": "04" * 32, "11": "11" * 32}
AZURE_GUEST = Policy.all_of(Snp(measurement="01" * 48, vmpl=0), Azure(pcrs=PCRS))


def azure(guest: Policy | None = None, *, image: str = AZURE_IMAGE, size: str = "Standard_DC16as_v5") -> Deployment:
    program = "/opt/confide/bin/confide"
    return clouds.azure(SERVICE, program=program, image=image, size=size, secure_boot=True, guest=guest)


def gcp(
    guest: Policy | None = None,
    log: EventLog | None = None,
    *,
    image: str = "projects/private/global/images/confide-1",
    machine: str = "c3-standard-22",
    zone: str = "europe-west4-a",
) -> Deployment:
    program = "/opt/confide/bin/confide"
    return clouds.gcp(SERVICE, program=program, image=image, machine=machine, zone=zone, log=log, guest=guest)


def nitro(image: bytes | None = enclave_image.image(), *, service: Service = SERVICE, **size: int) -> Deployment:
    built = None if image is None else EnclaveImage.read(io.BytesIO(image))
    enclave = enclaves.Enclave(**size)  # type: ignore[arg-type]
    return enclaves.nitro(service, enclave, base=IMAGE, python="/usr/local/bin/python3", image=built)


MAKERS: dict[str, Make] = {
    "gramine": gramine,
    "tdx": tdx,
    "systemd": lambda: targets.systemd(SERVICE, program="/opt/confide/bin/confide", guest=GUEST),
    "container": lambda: targets.container(SERVICE, base=IMAGE, guest=GUEST),
    "coco": coco,
    "helm": lambda: helm(),
    "dstack": lambda: targets.dstack(SERVICE, image=IMAGE, guest=DSTACK_GUEST),
    "azure": lambda: azure(AZURE_GUEST),
    "gcp": lambda: gcp(GUEST),
    "nitro": lambda: nitro(),
}


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_same_input_gives_the_same_bytes(name: str) -> None:
    assert MAKERS[name]().everything() == MAKERS[name]().everything()


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_our_own_files_pass_our_linter(name: str) -> None:
    made = MAKERS[name]().everything()
    linted = [
        lint(one, content)
        for one, content in made.items()
        if one.endswith(
            (
                *(".manifest", ".xml", ".yaml", ".service"),
                *("-compose.json", "azuredeploy.json", "enclave.json", "instance.json"),
            )
        )
        and one != "chart/Chart.yaml"
    ]
    assert linted or name == "container"
    assert all(not report.refused for report in linted)


@pytest.mark.parametrize("name", sorted(MAKERS))
def test_the_policy_asks_for_model_and_machine(name: str) -> None:
    made = MAKERS[name]().everything()
    policy = policy_from_toml(made["policy.toml"].decode())
    kinds = [type(one).__name__ for one in policy.requirements]
    assert kinds[0] == {"gramine": "Sgx", "azure": "Snp", "nitro": "Nitro"}.get(name, "Tdx")
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
        lambda: helm(guest=None),
        lambda: targets.dstack(SERVICE, image=IMAGE, guest=None),
        lambda: azure(),
        lambda: gcp(),
        lambda: nitro(None),
    ],
    ids=["gramine", "tdx", "systemd", "container", "coco", "helm", "dstack", "azure", "gcp", "nitro"],
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
        Policy.all_of(Tdx(rtmrs=("04" * 48, "02" * 48, "03" * 48))),
        Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("", "02" * 48, "03" * 48))),
        Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("04" * 48, "02" * 48, "00" * 48))),
        Policy.all_of(Snp(host_data="01" * 32)),
        Policy.all_of(AnyOf(of=(Snp(measurement="01" * 48), Snp(vmpl=0)))),
        Policy.all_of(Snp(measurement="01" * 48), Azure(secure_boot=True)),
    ],
    ids=range(10),
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


@pytest.mark.parametrize(
    "guest",
    [
        GUEST,
        Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=("04" * 48, "02" * 48, "03" * 48, "00" * 48))),
        Policy.all_of(Snp(measurement="01" * 48)),
    ],
    ids=range(3),
)
def test_a_guest_of_dstacks_that_names_no_app_is_refused(guest: Policy) -> None:
    """All apps of one dstack have the same image, and RTMR 3 alone says which of them runs."""
    with pytest.raises(DeployError, match="rtmrs 0 to 3"):
        targets.dstack(SERVICE, image=IMAGE, guest=guest)


def test_helm() -> None:
    """The pod is the one of coco, and no template has anything that Helm would fill in."""
    made = helm()
    assert made.files["chart/templates/pod.yaml"] == coco().files["pod.yaml"]
    assert made.prediction.measurements == coco().prediction.measurements
    assert not any(b"{{" in content for name, content in made.files.items() if name.startswith("chart/"))
    service, pod = (yaml.safe_load(made.files[f"chart/templates/{name}.yaml"]) for name in ("service", "pod"))
    assert service["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    schema = json.loads(made.files["chart/values.schema.json"])
    validator = jsonschema.Draft7Validator(schema)
    assert validator.is_valid({})
    assert validator.is_valid({"global": {}})
    assert not validator.is_valid({"image": "another"})
    assert not validator.is_valid({"global": {"image": "another"}})


def test_azure() -> None:
    made = azure(AZURE_GUEST)
    (machine,) = json.loads(made.files["azuredeploy.json"])["resources"]
    assert machine["properties"]["storageProfile"]["imageReference"] == {"id": AZURE_IMAGE}
    assert "osProfile" not in machine["properties"]
    assert (
        made.files["confide.service"]
        == targets.systemd(SERVICE, program="/opt/confide/bin/confide", guest=None).files["confide.service"]
    )
    assert made.policy.requirements[:2] == AZURE_GUEST.requirements  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "requirements",
    [
        (Snp(measurement="01" * 48),),
        (Azure(pcrs=PCRS),),
        (Snp(vmpl=0), Azure(pcrs=PCRS)),
        (Tdx(rtmrs=("", "02" * 48)), Azure(pcrs=PCRS)),
        (Snp(measurement="01" * 48), Azure(pcrs={"4": "04" * 32})),
        (Snp(measurement="01" * 48), Azure(pcrs={"11": "11" * 32})),
        (Snp(measurement="01" * 48), Azure(pcrs=PCRS | {"11": "00" * 32})),
        (Snp(measurement="01" * 48), Azure(pcrs={"4": "04" * 32, "9": "09" * 32})),
        (Snp(measurement="01" * 48), AnyOf(of=(Azure(pcrs=PCRS), Azure(secure_boot=True)))),
    ],
    ids=range(9),
)
def test_a_guest_of_azures_that_names_no_code_is_refused(requirements: tuple[AnyRequirement, ...]) -> None:
    """The processor there measures the paravisor alone."""
    with pytest.raises(DeployError, match="azure-cvm with pcrs 4 and 11"):
        azure(Policy(requirements))


def test_a_guest_of_azures_may_be_of_tdx_and_start_by_grub() -> None:
    pcrs = {index: f"{index:0>2}" * 32 for index in ("4", "8", "9")}
    made = azure(Policy.all_of(Tdx(mrtd="01" * 48), Azure(pcrs=pcrs)), size="Standard_DC16es_v5")
    assert made.policy is not None


def test_a_machine_at_google(test_data: Path) -> None:
    """Its real log and quote: what the log leads to is what the hardware signed, and what others are compared with."""
    folder = test_data / "evidence/gcp"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")
    log = replay((folder / "ccel.bin").read_bytes())
    quote = parse((folder / "tdx_quote_v4.bin").read_bytes()).measurements
    rtmrs = tuple(quote[f"rtmr{index}"].hex() for index in range(4))
    made = gcp(Policy.all_of(Tdx(mrtd=quote["mrtd"].hex(), rtmrs=rtmrs)), log)
    assert made.prediction.measurements == {name: quote[name] for name in made.prediction.measurements}
    sources = [one["from"] for one in made.expected()["events"]]  # type: ignore[attr-defined]
    assert sources.count("its inputs") == 31
    expected, registers = from_json(made.everything()["expected.json"])
    assert list(differences(expected, log, registers)) == []
    with pytest.raises(DeployError, match="another rtmr2 than --log"):
        gcp(Policy.all_of(Tdx(mrtd=quote["mrtd"].hex(), rtmrs=(*rtmrs[:2], "00" * 48))), log)
    with pytest.raises(DeployError, match="names no code"):
        gcp(Policy.all_of(Snp(measurement="01" * 48)), log)


def test_a_log_whose_words_are_not_what_was_measured() -> None:
    event = Event(3, 0xD, hashlib.sha384(b"quiet").digest(), b"kernel_cmdline: harmless\0")
    with pytest.raises(EventLogMismatch, match="other data than were measured"):
        gcp(None, EventLog((event,), {}))


def test_a_log_of_another_machine() -> None:
    separator = hashlib.sha384(bytes(4)).digest()
    log = EventLog(tuple(Event(index, 0x4, separator, bytes(4)) for index in (1, 2, 3)), {})
    register = hashlib.sha384(bytes(48) + separator).hexdigest()
    assert gcp(Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=(register,) * 3)), log).policy is not None
    with pytest.raises(DeployError, match="another rtmr2 than --log"):
        gcp(Policy.all_of(Tdx(mrtd="01" * 48, rtmrs=(register, register, "02" * 48))), log)


def tuned(**choices: object) -> Tuning:
    return Tuning.of(**({"huge_pages": False, "prefault": False, "pin": None, "node": None} | choices))  # type: ignore[arg-type]


def test_what_is_tuned() -> None:
    tuning = tuned(huge_pages=True, prefault=True, pin="0-1,8,9", node=0, amx=True)
    line = targets.command_line("cd" * 32, tuning)
    assert line == f"{LINE} transparent_hugepage=always accept_memory=eager"
    boot = DirectBoot(machine.firmware(), machine.kernel(), line, b"initrd", acpi=machine.ACPI)
    made = targets.tdx(SERVICE, Machine(processors=4, tuning=tuning), boot)
    root = etree.fromstring(made.files["confide.xml"])
    pins = [(one.get("vcpu"), one.get("cpuset")) for one in root.iterfind("cputune/vcpupin")]
    assert pins == [("0", "0"), ("1", "1"), ("2", "8"), ("3", "9")]
    assert root.find("numatune/memory").attrib == {"mode": "strict", "nodeset": "0"}
    assert [one.get("name") for one in root.iterfind("cpu/feature")] == ["amx-tile", "amx-int8", "amx-bf16"]
    topology = root.find("cpu/topology").attrib
    assert topology == {"sockets": "1", "cores": "4", "threads": "1"}
    assert root.findtext("os/cmdline") == line
    assert sorted(made.tuning) == ["amx", "huge-pages", "node", "one-thread-a-core", "pinned", "prefault"]
    assert made.expected()["tuning"] == made.tuning
    # What is on the command line is measured, and the rest is not.
    assert made.prediction.measurements["rtmr2"] != tdx().prediction.measurements["rtmr2"]
    assert made.prediction.measurements["rtmr1"] == tdx().prediction.measurements["rtmr1"]
    assert list(tdx().tuning) == ["one-thread-a-core"]


def test_gramine_is_tuned() -> None:
    plain, made = gramine(), gramine(prefault=True, amx=True)
    sgx = tomllib.loads(made.files["confide.manifest"].decode())["sgx"]
    assert (sgx["preheat_enclave"], sgx["cpu_features"]) == (True, {"amx": "required"})
    assert not {"preheat_enclave", "cpu_features"} & set(tomllib.loads(plain.files["confide.manifest"].decode())["sgx"])
    assert sorted(made.tuning) == ["amx", "prefault"]


@pytest.mark.parametrize("pin", ["", "a", "0-", "-1", "0-3-5", "0,0", "0-9999", "3,1-4", "1 2"], ids=range(9))
def test_processors_that_cannot_be_pinned(pin: str) -> None:
    with pytest.raises(DeployError):
        tuned(pin=pin)


def test_as_many_processors_are_pinned_as_there_are(booted: SnpBoot) -> None:
    with pytest.raises(DeployError, match="names 2 processors, and the machine has 4"):
        Machine(processors=4, tuning=tuned(pin="0-1"))
    with pytest.raises(DeployError, match="AMX"):
        targets.snp(SERVICE, Machine(tuning=tuned(amx=True)), booted, None)


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


INJECTIONS = ("a\nb", 'a"b', "a'b", "a b", "a$b", "a%b", "a{{b}}", "a<b", "a&b", "a\\b", "../a", "ä")


@pytest.mark.parametrize("words", INJECTIONS, ids=range(len(INJECTIONS)))
def test_no_name_writes_a_setting(words: str) -> None:
    for make in (
        lambda: Service(DIGEST, f"https://{words}"),
        lambda: Service(DIGEST, f"https://a/{words}"),
        lambda: Service(DIGEST, SERVICE.keys, f"/{words}"),
        lambda: targets.gramine(SERVICE, python=f"/{words}", enclave_gib=64, threads=64),
        lambda: Machine(files=f"/{words}"),
        lambda: targets.command_line(words),
        lambda: targets.systemd(SERVICE, program=f"/{words}", guest=None),
        lambda: targets.container(SERVICE, base=words + IMAGE, guest=None),
        lambda: targets.dstack(SERVICE, image=IMAGE + words, guest=None),
        lambda: targets.coco(SERVICE, image=IMAGE, runtime=words, agent_policy=b"", guest=None),
        lambda: azure(image=AZURE_IMAGE + words),
        lambda: azure(size="Standard_DC16as_v5" + words),
        lambda: gcp(image="projects/private/global/images/a" + words),
        lambda: gcp(machine="c3-standard-22" + words),
        lambda: gcp(zone="europe-west4-a" + words),
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
        lambda: targets.gramine(SERVICE, python="/bin/python", enclave_gib=63, threads=64),
        lambda: targets.container(SERVICE, base="python:3.13", guest=None),
    ],
    ids=range(6),
)
def test_what_is_refused(make: Callable[[], object]) -> None:
    with pytest.raises(DeployError):
        make()


def test_units_leave_the_devices_that_evidence_comes_from() -> None:
    """systemd closes all devices to a unit that allows some, and ProtectClock= allows the clock's (systemd.exec(5))."""
    own = targets.systemd(SERVICE, program="/opt/confide/bin/confide", guest=None).files["confide.service"].decode()
    closing = ("ProtectClock", "PrivateDevices", "DeviceAllow", "DevicePolicy")
    assert not [line for line in own.splitlines() if line.startswith(closing)]
    started = nitro(None).files["confide-enclave.service"].decode()
    allowed = [line for line in started.splitlines() if line.startswith(closing)]
    assert allowed == ["DeviceAllow=/dev/nitro_enclaves rw"]


def test_nitro() -> None:
    """What the enclave runs, what starts it, and what its parent carries to and fro."""
    made = nitro()
    recipe = made.files["Dockerfile"].decode().splitlines()
    assert f"FROM {IMAGE}" in recipe
    assert "COPY package /package" in recipe
    (words,) = [json.loads(line.removeprefix("CMD ")) for line in recipe if line.startswith("CMD ")]
    python = ["/usr/local/bin/python3", "-I", "-m"]
    assert words[:8] == [*python, "confide.deploy.image.enclave", *python, "confide"]
    serve = typer.main.get_command(command_line(["serve"])).commands["serve"]  # type: ignore[attr-defined]
    given = serve.make_context("serve", words[9:]).params
    assert (given["host"], given["port"], given["ra_tls"], given["packages"]) == ("vsock", 8470, True, ["/package"])
    assert (given["keys"], given["keys_through"]) == (SERVICE.keys, "vsock:3:8471")
    assert recipe.index("ENTRYPOINT []") < next(index for index, line in enumerate(recipe) if line.startswith("CMD "))
    assert json.loads(made.files["enclave.json"]) == {
        "enclave_name": "confide",
        "eif_path": "/srv/confide/confide.eif",
        "enclave_cid": 16,
        "memory_mib": 16384,
        "cpu_count": 4,
        "debug_mode": False,
    }
    users, keys = (made.files[f"confide-{name}.service"].decode() for name in ("users", "keys"))
    assert "ExecStart=/usr/bin/socat TCP-LISTEN:8470,reuseaddr,fork VSOCK-CONNECT:16:8470\n" in users
    assert "ExecStart=/usr/bin/socat VSOCK-LISTEN:8471,fork TCP:keys.example:8471\n" in keys
    assert "CAP_NET_BIND_SERVICE" not in users + keys
    started = made.files["confide-enclave.service"].decode()
    assert "ExecStart=/usr/bin/nitro-cli run-enclave --config /srv/confide/enclave.json\n" in started


def test_a_low_port_and_a_broker_at_the_usual_one() -> None:
    files = nitro(None, service=replace(SERVICE, port=443, keys="https://keys.example")).files
    assert b"AmbientCapabilities=CAP_NET_BIND_SERVICE" in files["confide-users.service"]
    assert b"TCP:keys.example:443\n" in files["confide-keys.service"]


def test_nitro_s_policy_names_the_image_and_what_aws_does_not_publish() -> None:
    image = EnclaveImage.read(io.BytesIO(enclave_image.signed()))
    made = nitro(enclave_image.signed())
    assert made.policy is not None
    written = policy_from_toml(made.everything()["policy.toml"].decode())
    assert written == made.policy
    required = written.requirements[0]
    assert required == Nitro(pcrs={str(number): value.hex() for number, value in image.pcrs.items()})
    assert (written.exceptions.allow_tcb, written.exceptions.revocation) == (("Unknown",), "if-available")
    assert set(made.expected()["unpredicted"]) == {"pcr3", "pcr4"}  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("pcrs", "failing"),
    [
        ({0: 0, 1: 1, 2: 2}, set()),
        ({0: 0, 1: 1, 2: 2, 4: 0, 31: 1}, set()),
        ({0: 1, 1: 1, 2: 2}, {"pcr0"}),
        ({0: 0, 1: 1}, {"pcr2"}),
        ({0: None, 1: None, 2: None}, {"pcr0", "pcr1", "pcr2", "debug"}),
    ],
    ids=["as predicted", "others do not count", "another image", "one is not there", "debug mode"],
)
def test_who_meets_nitro_s_policy(pcrs: dict[int, int | None], failing: set[str]) -> None:
    """Documents of nobody's hypervisor, with the predicted registers and others, by the written policy's words."""
    image = EnclaveImage.read(io.BytesIO(enclave_image.image()))
    shown = {number: bytes(48) if of is None else image.pcrs[of] for number, of in pcrs.items()}
    case = nitro_case(Fields(pcrs=shown))
    policy = nitro().policy
    assert policy is not None
    own = SimulatedPolicy.all_of(policy.requirements[0], exceptions=policy.exceptions)
    found = appraise(case.verify(), own, NOW)
    assert {check.code for check in found.failures} == failing
    assert found.trusted is not bool(failing)


def test_an_enclave_has_four_times_its_image_in_memory() -> None:
    """`nitro-cli` starts none with less."""
    image = EnclaveImage({0: b"\1" * 48}, 5 << 30)
    with pytest.raises(DeployError, match="--memory 20"):
        enclaves.Enclave(memory=19).require_room_for(image)
    enclaves.Enclave(memory=20).require_room_for(image)
    for size in ({"memory": 0}, {"memory": 16385}, {"processors": 0}, {"processors": 513}):
        with pytest.raises(DeployError, match="1 to 16384 GiB"):
            enclaves.Enclave(**size)
    with pytest.raises(DeployError, match="--memory 20"):
        enclaves.nitro(SERVICE, enclaves.Enclave(), base=IMAGE, python="/python", image=image)
