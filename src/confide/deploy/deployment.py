"""What a target writes: its files, what will be measured, and the policy for it, the same bytes for the same input.

A policy is written only where it names the code that runs. Without that it would accept any code on genuine hardware.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from typing import Any, Final

from confide.attest.policy import Policy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import AnyRequirement, Azure, Snp, Tdx
from confide.deploy.lint.linter import lint
from confide.deploy.lint.rules import Severity
from confide.deploy.predict.prediction import Prediction
from confide.deploy.service import Service
from confide.errors import DeployError
from confide.extras import named_extras

EXPECTED, POLICY = "expected.json", "policy.toml"

_LINTED: Final = (
    *(".manifest", ".xml", ".yaml", ".service"),
    *("app-compose.json", "azuredeploy.json", "enclave.json", "instance.json", POLICY),
)
_NO_MANIFEST: Final = ("chart/Chart.yaml",)
"""Has such an ending, and says only what the chart is called."""
_GUEST: Final = "the guest's image is not at hand; give a policy that names it with --guest"


@dataclass(frozen=True)
class Deployment:
    """What was made. files: their content by name, without `expected.json` and `policy.toml`.

    policy: None where nothing names the code that runs; then `prediction.unpredicted` says what is missing.
    tuning: why, by the name of each choice that was made for speed.
    """

    target: str
    service: Service
    files: Mapping[str, bytes]
    prediction: Prediction
    policy: Policy | None
    tuning: Mapping[str, str] = field(default_factory=dict)

    def everything(self) -> dict[str, bytes]:
        """All files to write, with prediction and policy. DeployError where our own linter would refuse one."""
        written = {**self.files, EXPECTED: (json.dumps(self.expected(), indent=2) + "\n").encode()}
        if self.policy is not None:
            written[POLICY] = to_toml(self.policy).encode()
        for name, content in written.items():
            if name.endswith(_LINTED) and name not in _NO_MANIFEST:
                broken = [one.rule for one in lint(name, content).findings if one.rule.severity is Severity.ERROR]
                if broken:
                    raise DeployError(f"{name} would have {broken[0].id}; report this as a fault of Confide's.")
        return written

    def expected(self) -> dict[str, object]:
        """What `expected.json` says."""
        return {
            "confide-deploy": 1,
            "target": self.target,
            "model_digest": self.service.model_digest,
            "commitment": self.service.commitment.decode(),
            "policy": None if self.policy is None else POLICY,
            "files": {name: hashlib.sha256(content).hexdigest() for name, content in sorted(self.files.items())},
            "tuning": dict(sorted(self.tuning.items())),
        } | self.prediction.as_json()


def in_guest(
    target: str,
    service: Service,
    files: Mapping[str, bytes],
    guest: Policy | None,
    prediction: Prediction,
    lacks: Callable[[Iterable[AnyRequirement]], str] | None = None,
) -> Deployment:
    """A deployment inside a guest's image, which only a policy for that image can name. DeployError if it does not.

    lacks: what a policy still has to ask for, in words; empty where it names the code. `code_missing` unless given.
    """
    if guest is None:
        unpredicted = {"measurement": _GUEST, **prediction.unpredicted}
        return Deployment(target, service, files, replace(prediction, unpredicted=unpredicted), None)
    if missing := (lacks or code_missing)(guest.requirements):
        raise DeployError(f"The policy of --guest names no code; it has to ask for {missing}.")
    further = (*(() if prediction.requirement is None else (prediction.requirement,)), *service.requirements())
    policy = replace(guest, requirements=(*guest.requirements, *further))
    return Deployment(target, service, files, prediction, policy)


def code_missing(requirements: Iterable[AnyRequirement]) -> str:
    """What requirements lack to name one guest's image: firmware, kernel and command line, and not firmware alone.

    Those inside any-of do not count: one alternative that names nothing would do for any code.
    """
    given = list(requirements)
    if any(isinstance(one, Azure) for one in given):
        return azure_code_missing(given)
    if any(isinstance(one, Snp) and one.measurement for one in given):
        return ""
    missing = tdx_code_missing(given)
    return missing and f"{missing}, or for sev-snp with measurement"


def tdx_code_missing(requirements: Iterable[AnyRequirement], last: int = 2) -> str:
    """The same for machines of TDX: MRTD is firmware, RTMR 0 has ACPI tables, RTMR 1 and 2 are what was started.

    last: the last RTMR that has to be named; 3 where what runs is measured only once the system is up.
    """
    for one in requirements:
        if isinstance(one, Tdx) and one.mrtd and all(map(_is_named, (*(one.rtmrs or ()), *[""] * 4)[: last + 1])):
            return ""
    return f"tdx with mrtd and rtmrs 0 to {last}, none of them zeros"


def azure_code_missing(requirements: Iterable[AnyRequirement]) -> str:
    """The same for Azure's, where the processor measures the paravisor, and its TPM what that started.

    PCR 4 has the programs that the firmware started; PCR 11 what a unified kernel image has in it (systemd-stub(7)), or
    8 and 9 what GRUB was told and which files it read. Zeros are of a register that nothing was measured into.
    """
    given = list(requirements)
    paravisor = any((isinstance(one, Snp) and one.measurement) or (isinstance(one, Tdx) and one.mrtd) for one in given)
    pcrs = [
        {index for index, value in (one.pcrs or {}).items() if _is_named(value)}
        for one in given
        if isinstance(one, Azure)
    ]
    if paravisor and any("4" in named and ("11" in named or {"8", "9"} <= named) for named in pcrs):
        return ""
    return (
        "azure-cvm with pcrs 4 and 11, or 4, 8 and 9, none of them zeros, and for the paravisor: sev-snp with "
        "measurement, or tdx with mrtd"
    )


def _is_named(value: str) -> bool:
    """Whether a register is asked for that something was measured into; those start with zeros."""
    return any(bytes.fromhex(value))


def rendered(name: str, service: Service, **values: Any) -> bytes:
    """A file from its template beside this module."""
    with named_extras():
        import jinja2
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined,
        autoescape=name.endswith(".xml"),
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"quoted": json.dumps, "unquoted": " ".join}
    source = resources.files("confide.deploy").joinpath("templates", f"{name}.j2").read_text(encoding="utf-8")
    return environment.from_string(source).render(service=service, **values).encode()
