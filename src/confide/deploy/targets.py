"""Files for each target, the same bytes for the same input: manifests, what will be measured, and the policy for it.

A policy is written only where it names the code that runs. Without that it would accept any code on genuine hardware.
"""

import base64
import gzip
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from importlib import resources
from typing import Any, Final

import tomli_w

from confide.attest.policy import Policy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import AnyRequirement, Sgx, Snp, Tdx
from confide.attest.requirements.base import require_hex
from confide.attest.requirements.hardware import SnpTcb
from confide.deploy.lint.linter import lint
from confide.deploy.predict.prediction import Prediction
from confide.deploy.predict.snp import SnpBoot
from confide.deploy.predict.tdx import DirectBoot
from confide.deploy.service import Service, require_image, require_path
from confide.errors import DeployError
from confide.extras import named_extras

EXPECTED, POLICY = "expected.json", "policy.toml"

_LINTED: Final = (".manifest", ".xml", ".yaml", ".rego", ".service")
_GUEST: Final = "the guest's image is not at hand; give a policy that names it with --guest"
_RUNTIMES: Final = {"kata-qemu-tdx": ("sha384", "mrconfigid"), "kata-qemu-snp": ("sha256", "host_data")}
"""By the runtime: the hash of initdata that fits the hardware's field, and that field."""


@dataclass(frozen=True)
class Deployment:
    """What was made. files: their content by name, without `expected.json` and `policy.toml`.

    policy: None where nothing names the code that runs; then `prediction.unpredicted` says what is missing.
    """

    target: str
    service: Service
    files: Mapping[str, bytes]
    prediction: Prediction
    policy: Policy | None

    def everything(self) -> dict[str, bytes]:
        """All files to write, with prediction and policy. DeployError where our own linter would refuse one."""
        for name, content in self.files.items():
            if name.endswith(_LINTED) and (report := lint(name, content)).refused:
                raise DeployError(
                    f"{name} would have {report.findings[0].rule.id}; report this as a fault of Confide's."
                )
        written = {**self.files, EXPECTED: (json.dumps(self.expected(), indent=2) + "\n").encode()}
        return written if self.policy is None else {**written, POLICY: to_toml(self.policy).encode()}

    def expected(self) -> dict[str, object]:
        """What `expected.json` says."""
        return {
            "confide-deploy": 1,
            "target": self.target,
            "model_digest": self.service.model_digest,
            "commitment": self.service.commitment.decode(),
            "policy": None if self.policy is None else POLICY,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.files.items())},
        } | self.prediction.as_json()


def gramine(service: Service, *, python: str, enclave_gib: int, threads: int, mrenclave: str | None) -> Deployment:
    """A manifest for `gramine-sgx-sign`. python: of the virtual environment that Confide is installed in.

    mrenclave: what `gramine-sgx-sign` printed, 64 hexadecimal digits.
    """
    require_path(python, "Python")
    if enclave_gib not in (1 << power for power in range(1, 11)) or not 4 <= threads <= 1024:
        raise DeployError("An enclave has a power of two of GiB, 2 to 1024, and 4 to 1024 threads.")
    # Gramine has no seccomp; see docs/serving.md, "No way out".
    command = (python, "-m", "confide", *service.command("")[1:], "--insecure-open-egress")
    values = {"python": python, "environment": python.rpartition("/bin/")[0], "command": command}
    manifest = _rendered("gramine.manifest", service, values, enclave_gib=enclave_gib, threads=threads)
    measured, unpredicted, required = {}, {}, None
    if mrenclave is None:
        unpredicted["mrenclave"] = "sign the manifest with gramine-sgx-sign, and give what it prints with --mrenclave"
    else:
        require_hex("mrenclave", mrenclave, 32)
        measured["mrenclave"] = bytes.fromhex(mrenclave)
        required = Sgx(mrenclave=mrenclave, attributes_clear=("debug",))
    assumptions = ("The files that the manifest trusts are those that are there when it is signed.",)
    prediction = Prediction(measured, unpredicted, assumptions, (), required)
    policy = prediction.policy(*service.requirements(egress_closed=False)) if required else None
    return Deployment("gramine", service, {"confide.manifest": manifest}, prediction, policy)


@dataclass(frozen=True)
class Machine:
    """A virtual machine's size, and where its host keeps its files. memory: in GiB."""

    memory: int = 64
    processors: int = 16
    files: str = "/srv/confide"

    def __post_init__(self) -> None:
        require_path(self.files, "the machine's files")
        if not (1 <= self.memory <= 16384 and 1 <= self.processors <= 512):
            raise DeployError("A machine has 1 to 16384 GiB and 1 to 512 processors.")


def command_line(root_hash: str) -> str:
    """What the kernel is told: to run from the root file system of this dm-verity hash, read-only, and never to stop
    for a person. root_hash: 64 hexadecimal digits, as `veritysetup format` prints it."""
    require_hex("root_hash", root_hash, 32)
    return f"ro panic=-1 systemd.verity=yes root=/dev/mapper/root roothash={root_hash}"


def tdx(service: Service, machine: Machine, boot: DirectBoot) -> Deployment:
    """A domain for a TDX machine that boots directly. boot: its memory and MRCONFIGID are set here.

    Without ACPI tables there is no policy: they are programs that the kernel runs, and the host would choose them.
    """
    boot = replace(boot, memory=machine.memory << 30, config_id=service.config_id)
    domain = _domain(service, machine, boot.command_line, "tdx")
    prediction = boot.predict()
    policy = None if boot.acpi is None else prediction.policy(*service.requirements())
    return Deployment("tdx", service, {"confide.xml": domain}, prediction, policy)


def snp(service: Service, machine: Machine, boot: SnpBoot, min_tcb: SnpTcb | None) -> Deployment:
    """A domain for an SEV-SNP machine that boots directly. boot: its processors and HOST_DATA are set here."""
    boot = replace(boot, processors=machine.processors, host_data=service.host_data)
    domain = _domain(service, machine, boot.command_line, "snp", processor=boot.processor)
    prediction = boot.predict(min_tcb)
    return Deployment("snp", service, {"confide.xml": domain}, prediction, prediction.policy(*service.requirements()))


def systemd(service: Service, *, program: str, guest: Policy | None) -> Deployment:
    """A unit for the image of a guest."""
    values = {"command": service.command(require_path(program, "the program"))}
    unit = _rendered("confide.service", service, values)
    return _in_guest("systemd", service, {"confide.service": unit}, guest, {})


def container(service: Service, *, base: str, guest: Policy | None) -> Deployment:
    """A recipe for an image, built without a network from pinned wheels, and how it is run."""
    recipe = _rendered("Containerfile", service, {"base": require_image(base), "command": service.command("confide")})
    return _in_guest("container", service, {"Containerfile": recipe}, guest, {})


def coco(service: Service, *, image: str, runtime: str, agent_policy: bytes, guest: Policy | None) -> Deployment:
    """A pod of Confidential Containers, and its initdata, whose digest the hardware reports.

    agent_policy: what `genpolicy` wrote for the pod; DeployError where the linter refuses it.
    """
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
    pod = _rendered("pod.yaml", service, values | {"command": service.command("confide")})
    digest = hashlib.new(algorithm, initdata).digest()
    required = Tdx(mrconfigid=digest.hex()) if name == "mrconfigid" else Snp(host_data=digest.hex())
    return _in_guest("coco", service, {"initdata.toml": initdata, "pod.yaml": pod}, guest, {name: digest}, required)


def dstack(service: Service, *, image: str, guest: Policy | None) -> Deployment:
    """A compose file for dstack, and the app-compose.json that dstack measures."""
    values = {"image": require_image(image), "command": service.command("confide")}
    compose = _rendered("compose.yaml", service, values)
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
    measured = {"compose_hash": hashlib.sha256(content).digest()}
    made = _in_guest("dstack", service, files, guest, measured)
    further = {"rtmr3": "dstack extends compose_hash into it, and the ids of application and instance"}
    return replace(made, prediction=replace(made.prediction, unpredicted={**made.prediction.unpredicted, **further}))


def _in_guest(
    target: str,
    service: Service,
    files: Mapping[str, bytes],
    guest: Policy | None,
    measured: Mapping[str, bytes],
    required: AnyRequirement | None = None,
) -> Deployment:
    """A deployment inside a guest's image, which only a policy for that image can name."""
    # Not inside any-of: one alternative that names nothing would do for any code.
    if guest is not None and not any(map(_names_code, guest.requirements)):
        raise DeployError(
            "The policy of --guest names no code; it has to ask for tdx with mrtd and rtmrs 1 and 2, or for sev-snp "
            "with measurement."
        )
    unpredicted = {"measurement": _GUEST} if guest is None else {}
    prediction = Prediction(measured, unpredicted, (), (), required)
    further = (*(() if required is None else (required,)), *service.requirements())
    policy = None if guest is None else replace(guest, requirements=(*guest.requirements, *further))
    return Deployment(target, service, files, prediction, policy)


def _names_code(one: AnyRequirement) -> bool:
    """Whether a requirement holds for one image: for TDX firmware, kernel and command line, and not firmware alone."""
    if isinstance(one, Tdx):
        return bool(one.mrtd and one.rtmrs and all((*one.rtmrs, "", "", "")[1:3]))
    return isinstance(one, Snp) and bool(one.measurement)


def _domain(service: Service, machine: Machine, line: str, kind: str, **further: object) -> bytes:
    values = {"machine": machine, "command_line": line, "kind": kind}
    values["config_id"] = base64.b64encode(service.config_id).decode()
    values["host_data"] = base64.b64encode(service.host_data).decode()
    return _rendered("domain.xml", service, values, **further)


def _rendered(name: str, service: Service, values: Mapping[str, Any], **further: object) -> bytes:
    with named_extras():
        import jinja2
    quoted: dict[str, Callable[[Any], str]] = {"quoted": json.dumps, "unquoted": " ".join}
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=name.endswith(".xml"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters.update(quoted)
    source = resources.files("confide.deploy").joinpath("templates", f"{name}.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(service=service, **values, **further).encode()
