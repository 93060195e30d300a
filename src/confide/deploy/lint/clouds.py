"""What machines at Azure, at Google and in dstack, and enclaves at AWS, are asked for with: JSON.

Sources: Microsoft, Azure Resource Manager template reference, virtualMachines; Google, Compute Engine API, instances;
dstack, app-compose.json; AWS, Nitro CLI, `run-enclave --config`.
"""

from collections.abc import Iterator, Mapping
from typing import Final

from confide.deploy.lint import rules
from confide.deploy.lint.commands import in_variable, mapping, sequence
from confide.deploy.lint.containers import check_compose
from confide.deploy.lint.reading import read_yaml
from confide.deploy.lint.rules import Finding
from confide.errors import InvalidManifest

_PROVISIONED: Final = {
    "adminPassword": rules.PASSWORD,
    "customData": rules.UNMEASURED_ENVIRONMENT,
    "secrets": rules.UNMEASURED_ENVIRONMENT,
}
_METADATA: Final = {
    "ssh-keys": rules.SSH,
    "sshkeys": rules.SSH,
    "enable-oslogin": rules.SSH,
    "startup-script": rules.UNMEASURED_ENVIRONMENT,
    "startup-script-url": rules.UNMEASURED_ENVIRONMENT,
    "user-data": rules.UNMEASURED_ENVIRONMENT,
    "gce-container-declaration": rules.UNMEASURED_ENVIRONMENT,
    "shutdown-script": rules.UNMEASURED_ENVIRONMENT,
    "shutdown-script-url": rules.UNMEASURED_ENVIRONMENT,
    "serial-port-enable": rules.SERIAL_CONSOLE,
}
_OFF: Final = ("false", "0", "no", "n", "")


def check_template(template: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of an Azure template, in the resources inside others too.

    InvalidManifest where a part is elsewhere or computed, or where there is no machine.
    """
    machines = 0
    for resource, place in _resources(mapping(_folded(template)), "resources"):
        kind, properties = str(resource.get("type", "")).lower(), _part(resource.get("properties"))
        if kind == "microsoft.compute/virtualmachines":
            machines += 1
            yield from _azure_machine(properties, place)
        if kind == "microsoft.compute/virtualmachinescalesets":
            machines += 1
            yield from _azure_machine(_part(properties.get("virtualmachineprofile")), place)
        if kind.rpartition("/")[2] in ("extensions", "runcommands"):  # alone where it stands inside its machine
            yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place} {kind}")
    if not machines:
        raise InvalidManifest("The template has no machine; give the one that has.")


def _part(value: object) -> dict[str, object]:
    """A table of a template. InvalidManifest for an expression, whose value Azure computes."""
    if isinstance(value, str):
        raise InvalidManifest("A part of the template is an expression, which is not computed here; write it out.")
    return mapping(value)


def _folded(value: object) -> object:
    """With all keys in small letters, since Azure does not tell them apart."""
    if isinstance(value, list):
        return [_folded(one) for one in value]
    if not isinstance(value, dict):
        return value
    made = {str(key).lower(): _folded(one) for key, one in value.items()}
    if len(made) != len(value):
        raise InvalidManifest("A key of the file stands twice but for capitals; write each once.")
    return made


def _resources(template: Mapping[str, object], above: str) -> Iterator[tuple[dict[str, object], str]]:
    """Resources and where they stand, also those inside others."""
    resources = template.get("resources")
    for index, value in enumerate(sequence(resources) or _part(resources).values()):
        resource, place = _part(value), f"{above}[{index}]"
        properties = _part(resource.get("properties"))
        yield resource, place
        if "templatelink" in properties:
            raise InvalidManifest("A part of the template stands in another file (templateLink); write it out.")
        for inner in (resource, _part(properties.get("template"))):
            yield from _resources(inner, f"{place}.resources")


def _azure_machine(machine: Mapping[str, object], place: str) -> Iterator[Finding]:
    security = _part(machine.get("securityprofile"))
    if security.get("securitytype") != "ConfidentialVM":
        yield Finding(rules.NO_CONFIDENTIAL_MACHINE, f"{place}.securityProfile.securityType")
    elif _part(security.get("uefisettings")).get("vtpmenabled") is not True:
        yield Finding(rules.NO_CONFIDENTIAL_MACHINE, f"{place}.securityProfile.uefiSettings.vTpmEnabled")
    profile = _part(machine.get("osprofile"))
    for name, rule in _PROVISIONED.items():
        if profile.get(name.lower()):
            yield Finding(rule, f"{place}.osProfile.{name}")
    if _part(profile.get("linuxconfiguration")).get("ssh"):
        yield Finding(rules.SSH, f"{place}.osProfile.linuxConfiguration.ssh")
    if machine.get("userdata"):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.userData")
    if machine.get("extensionprofile"):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place}.extensionProfile")
    if _part(_part(machine.get("diagnosticsprofile")).get("bootdiagnostics")).get("enabled", False) is not False:
        yield Finding(rules.SERIAL_CONSOLE, f"{place}.diagnosticsProfile.bootDiagnostics")


def check_instance(instance: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of what Google's API is asked for."""
    if mapping(instance.get("confidentialInstanceConfig")).get("confidentialInstanceType") not in ("TDX", "SEV_SNP"):
        yield Finding(rules.NO_CONFIDENTIAL_MACHINE, "confidentialInstanceConfig.confidentialInstanceType")
    for item in map(mapping, sequence(mapping(instance.get("metadata")).get("items"))):
        name, value = str(item.get("key", "")), item.get("value")
        rule = _METADATA.get(name.lower())
        if rule is not None and str(value or "").lower() not in _OFF:
            yield Finding(rule, f"metadata {name}")
        yield from in_variable(name.replace("-", "_"), value, f"metadata {name}")


def check_enclave(enclave: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of what `nitro-cli` is told to start. A console is had of an enclave in debug mode alone."""
    for name in ("debug_mode", "attach_console"):
        if enclave.get(name, False) is not False:
            yield Finding(rules.ENCLAVE_DEBUG, name)


def check_app(app: Mapping[str, object]) -> Iterator[Finding]:
    """Faults of dstack's app-compose.json, and of the compose file in it."""
    if app.get("allowed_envs"):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, "allowed_envs")
    if app.get("public_logs"):
        yield Finding(rules.SERIAL_CONSOLE, "public_logs")
    documents = read_yaml(str(app.get("docker_compose_file", "")))
    if len(documents) != 1 or not mapping(mapping(documents[0]).get("services")):
        raise InvalidManifest("The app's docker_compose_file is not one compose file with services; write it anew.")
    yield from check_compose(mapping(documents[0]))
