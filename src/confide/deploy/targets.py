"""Files for each target: manifests, domains, pods, units, and what will be measured of each.

`clouds` has those of machines whose firmware is a vendor's.
"""

import base64
import gzip
import hashlib
import json
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Final

import tomli_w

from confide.attest.policy import Policy
from confide.attest.requirements import Sgx, Snp, Tdx
from confide.attest.requirements.base import require_hex
from confide.attest.requirements.hardware import SnpTcb
from confide.deploy.deployment import Deployment, in_guest, rendered, tdx_code_missing
from confide.deploy.lint.linter import lint
from confide.deploy.predict.prediction import Prediction
from confide.deploy.predict.snp import SnpBoot
from confide.deploy.predict.tdx import DirectBoot
from confide.deploy.service import Service, require_image, require_path
from confide.deploy.tuning import REASONS, UNTUNED, Tuning
from confide.errors import DeployError
from confide.version import VERSION

_RUNTIMES: Final = {"kata-qemu-tdx": ("sha384", "mrconfigid"), "kata-qemu-snp": ("sha256", "host_data")}
"""By the runtime: the hash of initdata that fits the hardware's field, and that field."""


def gramine(
    service: Service,
    *,
    python: str,
    enclave_gib: int,
    threads: int,
    mrenclave: bytes | None = None,
    prefault: bool = False,
    amx: bool = False,
) -> Deployment:
    """A manifest for `gramine-sgx-sign`. python: of the virtual environment that Confide is installed in.

    mrenclave: what it measures, 32 bytes (`gramine_sign`).
    """
    require_path(python, "Python")
    if enclave_gib not in (1 << power for power in range(1, 11)) or not 4 <= threads <= 1024:
        raise DeployError("An enclave has a power of two of GiB, 2 to 1024, and 4 to 1024 threads.")
    # Gramine has no seccomp; see docs/serving.md, "No way out".
    command = (python, "-m", "confide", *service.command("")[1:], "--insecure-open-egress")
    values: dict[str, Any] = {"python": python, "environment": python.rpartition("/bin/")[0], "command": command}
    values |= {"enclave_gib": enclave_gib, "threads": threads, "prefault": prefault, "amx": amx}
    manifest = rendered("gramine.manifest", service, **values)
    measured, unpredicted, required = {}, {}, None
    if mrenclave is None:
        unpredicted["mrenclave"] = "sign the manifest with gramine-sgx-sign: --sign-with KEY does, or give --mrenclave"
    else:
        measured["mrenclave"] = mrenclave
        required = Sgx(mrenclave=mrenclave.hex(), attributes_clear=("debug",))
    assumptions = ("The files that the manifest trusts are those that are there when it is signed.",)
    prediction = Prediction(measured, unpredicted, assumptions, (), required)
    policy = prediction.policy(*service.requirements(egress_closed=False)) if required else None
    tuning = {name: REASONS[name] for name, chosen in (("prefault", prefault), ("amx", amx)) if chosen}
    return Deployment("gramine", service, {"confide.manifest": manifest}, prediction, policy, tuning)


@dataclass(frozen=True)
class Machine:
    """A virtual machine's size, and where its host keeps its files. memory: in GiB."""

    memory: int = 64
    processors: int = 16
    files: str = "/srv/confide"
    tuning: Tuning = UNTUNED

    def __post_init__(self) -> None:
        require_path(self.files, "the machine's files")
        if not (1 <= self.memory <= 16384 and 1 <= self.processors <= 512):
            raise DeployError("A machine has 1 to 16384 GiB and 1 to 512 processors.")
        self.tuning.require_for(self.processors)


def command_line(root_hash: str, tuning: Tuning = UNTUNED) -> str:
    """What the kernel is told: to run from the root file system of this dm-verity hash, read-only, and never to stop
    for a person. root_hash: 64 hexadecimal digits, as `veritysetup format` prints it."""
    require_hex("root_hash", root_hash, 32)
    return f"ro panic=-1 systemd.verity=yes root=/dev/mapper/root roothash={root_hash}{tuning.arguments}"


def tdx(service: Service, machine: Machine, boot: DirectBoot) -> Deployment:
    """A domain for a TDX machine that boots directly. boot: its memory and MRCONFIGID are set here.

    Without ACPI tables there is no policy: they are programs that the kernel runs, and the host would choose them.
    """
    boot = replace(boot, memory=machine.memory << 30, config_id=service.config_id)
    files = {"confide.xml": domain(service, machine, boot.command_line, "tdx")}
    prediction = boot.predict()
    policy = None if boot.acpi is None else prediction.policy(*service.requirements())
    return Deployment("tdx", service, files, prediction, policy, machine.tuning.reasons)


def snp(service: Service, machine: Machine, boot: SnpBoot, min_tcb: SnpTcb | None) -> Deployment:
    """A domain for an SEV-SNP machine that boots directly. boot: its processors and HOST_DATA are set here."""
    if machine.tuning.amx:
        raise DeployError("AMD's processors have no AMX; leave --amx out.")
    boot = replace(boot, processors=machine.processors, host_data=service.host_data)
    files = {"confide.xml": domain(service, machine, boot.command_line, "snp", processor=boot.processor)}
    prediction = boot.predict(min_tcb)
    policy = prediction.policy(*service.requirements())
    return Deployment("snp", service, files, prediction, policy, machine.tuning.reasons)


def systemd(service: Service, *, program: str, guest: Policy | None) -> Deployment:
    """A unit for the image of a guest."""
    return in_guest("systemd", service, {"confide.service": unit(service, program)}, guest, Prediction({}, {}))


def unit(service: Service, program: str) -> bytes:
    """A hardened unit of systemd. program: where Confide is in the guest."""
    return rendered("confide.service", service, command=service.command(require_path(program, "the program")))


def container(service: Service, *, base: str, guest: Policy | None) -> Deployment:
    """A recipe for an image, built without a network from pinned wheels, and how it is run."""
    recipe = rendered("Containerfile", service, base=require_image(base), command=service.command("confide"))
    return in_guest("container", service, {"Containerfile": recipe}, guest, Prediction({}, {}))


def coco(service: Service, *, image: str, runtime: str, agent_policy: bytes, guest: Policy | None) -> Deployment:
    """A pod of Confidential Containers, and its initdata, whose digest the hardware reports.

    agent_policy: what `genpolicy` wrote for the pod; DeployError where the linter refuses it.
    """
    files, prediction = _pod(service, image, runtime, agent_policy)
    return in_guest("coco", service, files, guest, prediction)


def helm(service: Service, *, image: str, runtime: str, agent_policy: bytes, guest: Policy | None) -> Deployment:
    """The same pod in a chart with a Service before it.

    Nothing in it can be set when it is installed: the initdata's digest is measured, and goes with these very bytes.
    """
    files, prediction = _pod(service, image, runtime, agent_policy)
    chart = {
        "Chart.yaml": rendered("Chart.yaml", service, version=VERSION),
        "values.schema.json": (json.dumps(_NO_VALUES, indent=2) + "\n").encode(),
        "templates/pod.yaml": files["pod.yaml"],
        "templates/service.yaml": rendered("service.yaml", service),
    }
    made = {f"chart/{name}": content for name, content in chart.items()} | {"initdata.toml": files["initdata.toml"]}
    return in_guest("helm", service, made, guest, prediction)


_NO_VALUES: Final = {
    "$schema": "http://json-schema.org/draft-07/schema#",
    "type": "object",
    "properties": {"global": {"type": "object", "maxProperties": 0}},
    "additionalProperties": False,
}
"""Helm itself may add an empty `global`."""


def _pod(service: Service, image: str, runtime: str, agent_policy: bytes) -> tuple[dict[str, bytes], Prediction]:
    if runtime not in _RUNTIMES:
        raise DeployError(f"{runtime!r} is no confidential runtime that is known here; take one of {list(_RUNTIMES)}.")
    if (report := lint("agent.rego", agent_policy)).refused:
        found = ", ".join(sorted(finding.rule.id for finding in report.findings))
        raise DeployError(f"The agent's policy has {found}; see `confide deploy lint`, and write it anew.")
    algorithm, name = _RUNTIMES[runtime]
    data = {"policy.rego": agent_policy.decode()}
    initdata = tomli_w.dumps({"version": "0.1.0", "algorithm": algorithm, "data": data}).encode()
    packed = base64.b64encode(gzip.compress(initdata, mtime=0)).decode()
    values = {"image": require_image(image), "runtime": runtime, "initdata": packed}
    pod = rendered("pod.yaml", service, **values, command=service.command("confide"))
    digest = hashlib.new(algorithm, initdata).digest()
    required = Tdx(mrconfigid=digest.hex()) if name == "mrconfigid" else Snp(host_data=digest.hex())
    return {"initdata.toml": initdata, "pod.yaml": pod}, Prediction({name: digest}, {}, requirement=required)


def dstack(service: Service, *, image: str, guest: Policy | None) -> Deployment:
    """A compose file for dstack, and the app-compose.json that dstack measures.

    guest: has to name RTMR 3 as well. All apps have the same image, and it would do for any of them.
    """
    compose = rendered("compose.yaml", service, image=require_image(image), command=service.command("confide"))
    app = {
        "manifest_version": 2,
        "name": "confide",
        "runner": "docker-compose",
        "docker_compose_file": compose.decode(),
        "kms_enabled": False,
        "gateway_enabled": False,
        "public_logs": False,
        "public_sysinfo": False,
        "allowed_envs": [],
        "no_instance_id": True,
        "secure_time": True,
    }
    content = json.dumps(app, sort_keys=True, separators=(",", ":")).encode()
    files = {"compose.yaml": compose, "app-compose.json": content}
    further = {"rtmr3": "dstack extends compose_hash into it, and the ids of application and instance"}
    prediction = Prediction({"compose_hash": hashlib.sha256(content).digest()}, further)
    return in_guest("dstack", service, files, guest, prediction, partial(tdx_code_missing, last=3))


def domain(service: Service, machine: Machine, line: str, kind: str, processor: str = "") -> bytes:
    """A domain of libvirt's. line: the kernel's command line. kind: tdx or snp. processor: its model, for snp."""
    config_id, host_data = (base64.b64encode(one).decode() for one in (service.config_id, service.host_data))
    values = {"machine": machine, "command_line": line, "kind": kind, "processor": processor}
    return rendered("domain.xml", service, **values, config_id=config_id, host_data=host_data)
