"""Domains of libvirt, for TDX and SEV-SNP: XML (libvirt, Domain XML format)."""

import base64
import binascii
import re
from collections.abc import Iterator
from typing import Final

from lxml import etree

from confide.deploy.lint import rules
from confide.deploy.lint.commands import in_command
from confide.deploy.lint.rules import Finding
from confide.errors import InvalidManifest

_VERITY: Final = re.compile(r"(?:roothash|usrhash|systemd\.verity_root_hash|dm-mod\.create|verity\.roothash)=\S+")
_DEBUGGING: Final = re.compile(
    r"(?:init=\S*/(?:sh|bash|dash|busybox)|rdinit=\S*/(?:sh|bash|busybox)|rd\.break\S*|rd\.shell(?:=1)?|single|"
    r"emergency|rescue|(?:rd\.)?systemd\.(?:debug[-_]shell\S*|unit=(?:emergency|rescue)\S*|run(?:=\S*)?)|nokaslr|"
    r"mitigations=off|kgdb\S*)"
)
_RUN_LEVELS: Final = frozenset(("1", "s", "S", "-b"))
"""Words of a command line that are a shell for systemd(1) as `rescue` and `emergency` are."""
_QUOTED: Final = re.compile(r'"[^"]*"?')
_POLICY: Final = re.compile(r"(?:0[xX])?[0-9a-fA-F]{1,16}")
_UNMEASURED: Final = re.compile(r"(?:systemd\.set_credential\S*|ds=nocloud\S*|cloud-config-url=\S*)")
_PASSWORD: Final = re.compile(r"(?i)passw(?:or)?d=[^,\s]")
_KNOWN_IMAGE: Final = re.compile(r"(?i)(?:tdx-guest-ubuntu|cloudimg|genericcloud|nocloud)")
"""Images that are built with a login that everybody knows, or that take one from the host."""
_POLICY_DEBUG: Final = {"tdx": 1 << 0, "sev-snp": 1 << 19}
_CONFIG_ID_BYTES: Final = 48
_OPTIONS: Final = {
    "-acpitable": rules.UNMEASURED_ACPI,
    "-fw_cfg": rules.UNMEASURED_ENVIRONMENT,
    "-smbios": rules.UNMEASURED_ENVIRONMENT,
    "-readconfig": rules.UNMEASURED_ENVIRONMENT,
    "-virtfs": rules.HOST_FILES,
    "-fsdev": rules.HOST_FILES,
    "-gdb": rules.GUEST_DEBUG,
    "-s": rules.GUEST_DEBUG,
}
"""Of QEMU itself, past what libvirt says and what is checked of that."""


def check(domain: etree._Element) -> Iterator[Finding]:
    """Faults of a domain. InvalidManifest where it is none."""
    if _name(domain) != "domain":
        raise InvalidManifest("The XML is no domain of libvirt's; give what `virsh dumpxml` prints.")
    line = domain.findtext("os/cmdline") or ""
    yield from _launch(domain)
    if not line.isascii():
        raise InvalidManifest("The kernel's command line is not ASCII, where parts of a letter are spaces; correct it.")
    yield from _boot(domain, line)
    yield from _disks(domain, line)
    yield from _devices(domain)
    for argument in _arguments(domain):
        yield from _argument(argument)
        yield from _in_line(argument, "qemu:arg")


def _launch(domain: etree._Element) -> Iterator[Finding]:
    security = domain.find("launchSecurity")
    kind = "" if security is None else security.get("type", "")
    if security is None or kind not in _POLICY_DEBUG:
        yield Finding(rules.NO_TEE, "launchSecurity")
        return
    policy = (security.findtext("policy") or "0").strip()
    if not _POLICY.fullmatch(policy):
        raise InvalidManifest("launchSecurity has a policy that is no number; correct it.")
    # libvirt reads it as hexadecimal also without 0x, and a person as decimal.
    if any(bits & _POLICY_DEBUG[kind] for bits in (int(policy, 16), int(policy) if policy.isdecimal() else 0)):
        yield Finding(rules.GUEST_DEBUG, "launchSecurity/policy")
    if kind == "tdx" and not _names_something(security.findtext("mrConfigId") or ""):
        yield Finding(rules.NO_CONFIG_ID, "launchSecurity/mrConfigId")
    if kind == "sev-snp" and security.get("kernelHashes") != "yes":
        yield Finding(rules.UNMEASURED_KERNEL, "launchSecurity/@kernelHashes")


def _names_something(config_id: str) -> bool:
    try:
        content = base64.b64decode(config_id.strip(), validate=True)
    except (binascii.Error, ValueError):
        return False
    return len(content) == _CONFIG_ID_BYTES and any(content)


def _boot(domain: etree._Element, line: str) -> Iterator[Finding]:
    if not (domain.findtext("os/kernel") or "").strip():
        yield Finding(rules.UNMEASURED_KERNEL, "os/kernel")
    yield from _in_line(line, "os/cmdline")
    if _RUN_LEVELS & set(line.split()):
        yield Finding(rules.DEBUGGING_KERNEL, "os/cmdline")
    for table in domain.findall("os/acpi/table"):
        yield Finding(rules.UNMEASURED_ACPI, f"os/acpi/table {table.get('type', '')}")
    for info in domain.findall("sysinfo"):
        yield Finding(rules.UNMEASURED_ENVIRONMENT, f"sysinfo {info.get('type', '')}")


def _in_line(line: str, place: str) -> Iterator[Finding]:
    """Faults of a kernel's command line, whose quotes the kernel and systemd take away."""
    words = re.sub(r"[\"'\\]", "", line).split()
    for word in words:
        if _DEBUGGING.fullmatch(word):
            yield Finding(rules.DEBUGGING_KERNEL, f"{place} {word.partition('=')[0]}")
        if _UNMEASURED.fullmatch(word):
            yield Finding(rules.UNMEASURED_ENVIRONMENT, f"{place} {word.partition('=')[0]}")
        if _PASSWORD.search(word):
            yield Finding(rules.PASSWORD, place)
    yield from in_command(words, place)


def _disks(domain: etree._Element, line: str) -> Iterator[Finding]:
    disks = domain.findall("devices/disk")
    for disk in disks:
        target = disk.find("target")
        place = f"devices/disk {'' if target is None else target.get('dev', '')}".strip()
        if disk.get("device", "disk") != "cdrom" and disk.find("readonly") is None:
            yield Finding(rules.MUTABLE_DISK, place)
        source = disk.find("source")
        if source is not None and any(_KNOWN_IMAGE.search(value) for value in source.attrib.values()):
            yield Finding(rules.PASSWORD, f"{place}/source")
    if disks and not any(_VERITY.fullmatch(word) for word in _QUOTED.sub("x", line).split()):
        yield Finding(rules.UNMEASURED_ROOT, "os/cmdline")


def _devices(domain: etree._Element) -> Iterator[Finding]:
    for element in domain.iter():
        match _name(element):
            case "filesystem" | "shmem":
                yield Finding(rules.HOST_FILES, f"devices/{_name(element)}")
            case "range" if _covers_ssh(element):
                yield Finding(rules.SSH, "devices/interface/portForward")
        if element.get("passwd"):
            yield Finding(rules.PASSWORD, f"{_name(element)}/@passwd")


def _covers_ssh(forwarded: etree._Element) -> bool:
    """Whether a range of forwarded ports leads to port 22 of the guest, which `to` names and `start` otherwise."""
    try:
        first, last = int(forwarded.get("start", "0")), int(forwarded.get("end", forwarded.get("start", "0")))
        to = int(forwarded.get("to", str(first)))
    except ValueError:
        raise InvalidManifest("A range of ports has a number that is none; correct it.") from None
    return to <= 22 <= to + last - first


def _arguments(domain: etree._Element) -> Iterator[str]:
    """What is handed to QEMU itself, past libvirt."""
    for element in domain.iter():
        if _name(element) == "arg":
            yield element.get("value", "")


def _argument(argument: str) -> Iterator[Finding]:
    option = argument.removeprefix("-") if argument.startswith("--") else argument  # QEMU takes both
    if option in _OPTIONS:
        yield Finding(_OPTIONS[option], f"qemu:arg {option}")
    if any(part.startswith("hostfwd=") and part.endswith((":22", "-22")) for part in argument.split(",")):
        yield Finding(rules.SSH, "qemu:arg hostfwd")


def _name(element: etree._Element) -> str:
    return str(etree.QName(element).localname)
