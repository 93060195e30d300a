"""Which kind of file it is, what is wrong with it, and the report for machines (SARIF).

Source: OASIS, Static Analysis Results Interchange Format (SARIF) 2.1.0.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any, Final
from urllib.parse import quote

from confide.deploy.lint import clouds, containers, domain, gramine, policies, units
from confide.deploy.lint.commands import mapping
from confide.deploy.lint.reading import read_json, read_toml, read_unit, read_xml, read_yaml, text_of
from confide.deploy.lint.rules import RULES, Finding, Severity
from confide.errors import InvalidManifest
from confide.version import VERSION

_KINDS: Final = (
    "a Gramine manifest, initdata or a policy (.toml, .manifest), a domain (.xml), pods or a compose file (.yaml), "
    "an agent policy (.rego), a unit (.service), or an Azure template, an instance of Google's, an enclave of AWS's or "
    "an app of dstack's (.json)"
)


@dataclass(frozen=True)
class Report:
    """What was found in a file, in its order. kind: what it was read as."""

    name: str
    kind: str
    findings: tuple[Finding, ...]

    @property
    def refused(self) -> bool:
        """Whether anything is an error; warnings alone let it pass."""
        return any(finding.rule.severity is Severity.ERROR for finding in self.findings)


def lint(name: str, content: bytes) -> Report:
    """Look for faults in a file. InvalidManifest where it is none of the known kinds, or cannot be read."""
    try:
        text = text_of(content)
        kind, findings = _findings(PurePath(name), text)
        return Report(name, kind, tuple(dict.fromkeys(findings)))
    except InvalidManifest as error:
        raise InvalidManifest(f"{name}: {error}") from None


def _findings(path: PurePath, text: str) -> tuple[str, Iterator[Finding]]:
    match path.suffix:
        case ".service":
            return "a unit", units.check(read_unit(text))
        case ".xml":
            return "a domain", domain.check(read_xml(text))
        case ".rego":
            return "an agent policy", containers.check_policy(text)
        case ".toml" | ".manifest" | ".template" | ".sgx":
            return _toml(text)
        case ".yaml" | ".yml":
            return _yaml(text)
        case ".json":
            return _json(text)
    raise InvalidManifest(f"it is not known what this is; give {_KINDS}.")


def _toml(text: str) -> tuple[str, Iterator[Finding]]:
    if "{{" in text or "{%" in text:
        raise InvalidManifest("It is a template; render it with `gramine-manifest` and check what comes out.")
    document = read_toml(text)
    initdata = isinstance(document.get("data"), dict) and "algorithm" in document
    manifest = any(isinstance(document.get(name), dict) for name in ("loader", "sgx", "libos"))
    policy = "confide-policy" in document
    nothing = "It is none of a Gramine manifest, initdata and a policy; give one of them."
    _require_one((initdata, manifest, policy), nothing)
    if policy:
        return "a policy", policies.check(text)
    if initdata:
        return "initdata", containers.check_initdata(document)
    return "a Gramine manifest", gramine.check(document)


def _yaml(text: str) -> tuple[str, Iterator[Finding]]:
    documents = read_yaml(text)
    compose = len(documents) == 1 and isinstance(mapping(documents[0]).get("services"), dict)
    objects = bool(documents) and all("apiVersion" in mapping(one) and "kind" in mapping(one) for one in documents)
    _require_one((compose, objects), "It has neither services nor Kubernetes objects; give a compose file or pods.")
    if compose:
        return "a compose file", containers.check_compose(mapping(documents[0]))
    return "Kubernetes objects", (found for one in documents for found in containers.check_object(one))


def _json(text: str) -> tuple[str, Iterator[Finding]]:
    document = read_json(text)
    template = "deploymenttemplate.json" in str(document.get("$schema", "")).lower()
    app, instance = "docker_compose_file" in document, "machineType" in document and "disks" in document
    enclave = "eif_path" in document
    nothing = "It is none of the JSON files that are known; give an Azure template, an instance, an enclave or an app."
    _require_one((template, app, instance, enclave), nothing)
    if template:
        return "an Azure template", clouds.check_template(document)
    if app:
        return "an app of dstack's", clouds.check_app(document)
    if enclave:
        return "an enclave of AWS's", clouds.check_enclave(document)
    return "an instance of Google's", clouds.check_instance(document)


def _require_one(kinds: Iterable[bool], nothing: str) -> None:
    """InvalidManifest for what is of no kind, or of several: whoever it is for passes over what it does not know."""
    found = sum(kinds)
    if not found:
        raise InvalidManifest(nothing)
    if found > 1:
        raise InvalidManifest("It has the keys of more than one kind of file, and would be checked as one; divide it.")


def sarif(reports: Iterable[Report]) -> dict[str, Any]:
    """The reports as one SARIF log."""
    ids = sorted(RULES)
    described = [
        {
            "id": name,
            "shortDescription": {"text": RULES[name].sentence},
            "help": {"text": f"Source: {RULES[name].source}."},
            "defaultConfiguration": {"level": RULES[name].severity.value},
        }
        for name in ids
    ]
    results = [
        {
            "ruleId": finding.rule.id,
            "ruleIndex": ids.index(finding.rule.id),
            "level": finding.rule.severity.value,
            "message": {"text": f"{finding.place}: {finding.rule.sentence}"},
            "locations": [
                {
                    "physicalLocation": {"artifactLocation": {"uri": quote(report.name)}},
                    "logicalLocations": [{"fullyQualifiedName": finding.place}],
                }
            ],
        }
        for report in reports
        for finding in report.findings
    ]
    driver = {"name": "confide deploy lint", "version": VERSION, "rules": described}
    return {
        "$schema": "https://json.schemastore.org/sarif-2.1.0.json",
        "version": "2.1.0",
        "runs": [{"tool": {"driver": driver}, "columnKind": "unicodeCodePoints", "results": results}],
    }
