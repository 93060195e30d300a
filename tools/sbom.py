"""Writes the bill of materials of an installation of `confide[all]`, as CycloneDX 1.6 in JSON: `make sbom`.

python tools/sbom.py FILE

Components are what is installed here, each with its licence, what it requires, and the SHA-256 of its pinned wheel.
Those of the plain installation are `required`, those of extras `optional`. The same installation gives the same bytes:
there is no time in it, unless SOURCE_DATE_EPOCH says one.
"""

import hashlib
import os
import sys
import tomllib
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path
from typing import Final

from cyclonedx.contrib.license.factories import LicenseFactory
from cyclonedx.model import HashAlgorithm, HashType
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentScope, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from cyclonedx.schema import SchemaVersion
from cyclonedx.validation.json import JsonStrictValidator
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tools.wheel_hashes import ROOT, hashes, pins

_ROOT_NAME: Final = "confide"


def bill() -> str:
    """The document. ValueError where something installed is not of the pinned version, or not installed."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    core = list(_named(project["dependencies"]))
    extras = [*core, *_of_extra("all", project["optional-dependencies"])]
    plain, every = _closure(core), _closure(extras)
    root = _component(_ROOT_NAME, project["version"], ComponentType.APPLICATION, [project["license"]])
    made = {name: _library(found, required=name in plain) for name, found in every.items()}
    bom = Bom(components=made.values())
    bom.metadata.component = root
    bom.register_dependency(root, [made[name] for name in sorted({_name(one) for one in extras})])
    for name, found in every.items():
        bom.register_dependency(
            made[name], [made[one] for one in sorted(map(_name, _requires(found, every))) if one in made]
        )
    epoch = os.environ.get("SOURCE_DATE_EPOCH")
    bom.metadata.timestamp = datetime.fromtimestamp(int(epoch), UTC) if epoch else None  # type: ignore[assignment]
    parts = "\n".join(sorted(str(component.purl) for component in (root, *made.values())))
    bom.serial_number = uuid.UUID(bytes=hashlib.sha256(parts.encode()).digest()[:16], version=4)
    text = JsonV1Dot6(bom).output_as_string(indent=2) + "\n"
    problem = JsonStrictValidator(SchemaVersion.V1_6).validate_str(text)
    if problem is not None:
        raise ValueError(f"the bill is not CycloneDX 1.6: {str(problem)[:300]}")
    return text


def _of_extra(extra: str, extras: Mapping[str, list[str]]) -> Iterator[Requirement]:
    for requirement in _named(extras[extra]):
        if _name(requirement) == _ROOT_NAME:
            for inner in requirement.extras:
                yield from _of_extra(inner, extras)
        else:
            yield requirement


def needed(extra: str, without: Collection[str] = ()) -> dict[str, Distribution]:
    """What an installation of `confide[extra]` has, by normal names. ValueError as `bill`.

    without: normal names of what is left out, with what nothing else brings.
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    roots = [*_named(project["dependencies"]), *_of_extra(extra, project["optional-dependencies"])]
    return _closure(roots, without)


def _closure(roots: Iterable[Requirement], without: Collection[str] = ()) -> dict[str, Distribution]:
    """What these bring, and what those bring in turn, by normal names."""
    found: dict[str, Distribution] = {}
    extras: dict[str, set[str]] = {}
    pending = list(roots)
    while pending:
        requirement = pending.pop()
        name = _name(requirement)
        if name in without or (name in found and requirement.extras <= extras[name]):
            continue
        found[name] = _installed(name)
        extras.setdefault(name, set()).update(requirement.extras)
        pending += [one for one in map(Requirement, found[name].requires or []) if _applies(one, extras[name])]
    return dict(sorted(found.items()))


def _installed(name: str) -> Distribution:
    try:
        found = distribution(name)
    except PackageNotFoundError:
        raise ValueError(f"{name} is not installed; run `make` first") from None
    pinned = pins().get(name)
    if pinned is None or Version(found.version).public != Version(pinned).public:
        raise ValueError(f"{name} {found.version} is installed, and {pinned or 'nothing'} is pinned in constraints.txt")
    return found


def _requires(found: Distribution, every: Mapping[str, Distribution]) -> Iterator[Requirement]:
    """What it requires of what is there, by whichever extra."""
    names = found.metadata.get_all("Provides-Extra") or []
    return (one for one in map(Requirement, found.requires or []) if _applies(one, names) and _name(one) in every)


def _applies(requirement: Requirement, extras: Iterable[str]) -> bool:
    marker = requirement.marker
    return marker is None or any(marker.evaluate({"extra": extra}) for extra in ("", *extras))


def _named(requirements: Iterable[str]) -> Iterator[Requirement]:
    return (one for one in map(Requirement, requirements) if _applies(one, ()))


def _name(requirement: Requirement) -> str:
    return canonicalize_name(requirement.name)


def _library(found: Distribution, *, required: bool) -> Component:
    name = canonicalize_name(found.name)
    stated = [found.metadata["License-Expression"] or found.metadata["License"] or ""]
    classifiers = found.metadata.get_all("Classifier") or []
    if not stated[0] or "\n" in stated[0]:
        stated = [one.rpartition(" :: ")[2] for one in classifiers if one.startswith("License ::")]
    component = _component(name, found.version, ComponentType.LIBRARY, stated)
    component.scope = ComponentScope.REQUIRED if required else ComponentScope.OPTIONAL
    digest = hashes().get((name, found.version))  # of another build than the pinned wheel's there is none
    if digest is not None:
        component.hashes.add(HashType(alg=HashAlgorithm.SHA_256, content=digest))
    return component


def _component(name: str, version: str, kind: ComponentType, licences: Iterable[str]) -> Component:
    purl = PackageURL("pypi", name=name, version=version)
    licence = LicenseFactory()
    made = [licence.make_from_string(one) for one in licences if one]
    return Component(name=name, version=version, type=kind, purl=purl, bom_ref=str(purl), licenses=made)


def main() -> None:
    """Write it."""
    path = Path(sys.argv[1])
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(bill(), encoding="utf-8")


if __name__ == "__main__":
    main()
