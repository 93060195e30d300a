"""`confide deploy`: what a machine is started with, what its hardware will measure of it, and what gives it away.

`lint` exits with 0 where nothing is refused, 10 where something is, and 20 for a file that cannot be read.
"""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.text import Text

from confide.cli import output
from confide.cli.files import read_file
from confide.cli.options import Json
from confide.errors import DeployError, InvalidImage, InvalidManifest
from confide.printable import printable

if TYPE_CHECKING:
    from confide.attest.policy import Policy
    from confide.attest.requirements.hardware import SnpTcb
    from confide.deploy.lint.linter import Report
    from confide.deploy.targets import Deployment

_REFUSED: Final = 10

app = typer.Typer(
    name="deploy",
    help="Write what a machine is started with and what it will measure; find what gives it away.",
    no_args_is_help=True,
)

Package = Annotated[Path, typer.Argument(help="The folder that `confide seal` wrote.", metavar="PACKAGE")]
Out = Annotated[Path, typer.Option(help="Folder to write; it must be empty or not exist.")]
Keys = Annotated[str, typer.Option(help="Address of the owner's key broker, https://HOST:PORT.")]
Inside = Annotated[str, typer.Option("--package-path", help="Where the package lies in the machine.")]
Port = Annotated[int, typer.Option(help="Port to serve on.")]
Image = Annotated[str, typer.Option(help="The container image, by its digest: NAME@sha256:...")]
Guest = Annotated[
    Path | None,
    typer.Option(help="A policy that names the guest's image, to add to; without one no policy is written."),
]
Files = Annotated[str, typer.Option(help="Folder on the host with OVMF.fd, vmlinuz, initrd, root.img and package.img.")]
Firmware = Annotated[Path, typer.Option(help="The OVMF that the machine is started with.", dir_okay=False)]
Kernel = Annotated[Path, typer.Option(help="The kernel, with an EFI stub.", dir_okay=False)]
Initrd = Annotated[Path, typer.Option(help="The initial RAM disk.", dir_okay=False)]
RootHash = Annotated[str, typer.Option(help="dm-verity root hash of root.img, as `veritysetup format` prints it.")]
Memory = Annotated[int, typer.Option(help="The machine's memory, in GiB.")]
Processors = Annotated[int, typer.Option(help="The machine's processors.")]


@app.command("gramine")
def gramine(
    package: Package,
    out: Out,
    keys: Keys,
    package_path: Inside = "/srv/package",
    port: Port = 8470,
    python: Annotated[
        str, typer.Option(help="Python of the virtual environment with Confide.")
    ] = "/opt/confide/bin/python3",
    enclave_size: Annotated[int, typer.Option(help="GiB, a power of two.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of the enclave.")] = 64,
    mrenclave: Annotated[
        str | None, typer.Option(help="What gramine-sgx-sign printed; without it no policy is written.")
    ] = None,
    json: Json = False,
) -> None:
    """Intel SGX: a manifest for gramine-sgx-sign."""
    from confide.deploy import targets
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    made = targets.gramine(service, python=python, enclave_gib=enclave_size, threads=threads, mrenclave=mrenclave)
    _write(made, out, json=json)


@app.command("tdx")
def tdx(
    package: Package,
    out: Out,
    keys: Keys,
    firmware: Firmware,
    kernel: Kernel,
    initrd: Initrd,
    root_hash: RootHash,
    package_path: Inside = "/package",
    port: Port = 8470,
    files: Files = "/srv/confide",
    memory: Memory = 64,
    processors: Processors = 16,
    acpi: Annotated[
        Path | None,
        typer.Option(help="Folder with QEMU's table-loader, rsdp and tables; without it no policy is written."),
    ] = None,
    measured_after: Annotated[
        str, typer.Option(help="How the host has firmware measured: after each `page`, or after each `section`.")
    ] = "page",
    json: Json = False,
) -> None:
    """Intel TDX: a libvirt domain that boots directly, and its MRTD and RTMRs."""
    from confide.deploy import targets
    from confide.deploy.predict.tdvf import MAX_FIRMWARE_BYTES, PageOrder
    from confide.deploy.predict.tdx import MAX_ACPI_BYTES, MAX_INITRD_BYTES, MAX_KERNEL_BYTES, AcpiTables, DirectBoot
    from confide.deploy.service import Service

    if measured_after not in list(PageOrder):
        raise typer.BadParameter("--measured-after is page or section")
    service = Service.of(package, keys, package_path, port)
    machine = targets.Machine(memory, processors, files)
    names = ("table-loader", "rsdp", "tables")
    tables = None if acpi is None else AcpiTables(*(_bytes(acpi / name, MAX_ACPI_BYTES) for name in names))
    boot = DirectBoot(
        _bytes(firmware, MAX_FIRMWARE_BYTES),
        _bytes(kernel, MAX_KERNEL_BYTES),
        targets.command_line(root_hash),
        _bytes(initrd, MAX_INITRD_BYTES),
        acpi=tables,
        page_order=PageOrder(measured_after),
    )
    _write(targets.tdx(service, machine, boot), out, json=json)


@app.command("snp")
def snp(
    package: Package,
    out: Out,
    keys: Keys,
    firmware: Firmware,
    kernel: Kernel,
    initrd: Initrd,
    root_hash: RootHash,
    package_path: Inside = "/package",
    port: Port = 8470,
    files: Files = "/srv/confide",
    memory: Memory = 64,
    processors: Processors = 16,
    processor: Annotated[str, typer.Option(help="QEMU's name of the processor.")] = "EPYC-Milan",
    min_tcb: Annotated[
        str | None,
        typer.Option(help="Least versions of the platform, from AMD's bulletins, such as snp=22,microcode=213."),
    ] = None,
    json: Json = False,
) -> None:
    """AMD SEV-SNP: a libvirt domain that boots directly, and its launch digest."""
    from confide.deploy import targets
    from confide.deploy.predict.snp import SnpBoot
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    machine = targets.Machine(memory, processors, files)
    boot = SnpBoot(firmware, kernel, targets.command_line(root_hash), initrd, processor=processor)
    _write(targets.snp(service, machine, boot, _min_tcb(min_tcb)), out, json=json)


@app.command("systemd")
def systemd(
    package: Package,
    out: Out,
    keys: Keys,
    package_path: Inside = "/package",
    port: Port = 8470,
    program: Annotated[str, typer.Option(help="Where Confide is in the guest.")] = "/opt/confide/bin/confide",
    guest: Guest = None,
    json: Json = False,
) -> None:
    """A unit for the image of a guest."""
    from confide.deploy import targets
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    _write(targets.systemd(service, program=program, guest=_guest(guest)), out, json=json)


@app.command("container")
def container(
    package: Package,
    out: Out,
    keys: Keys,
    base: Annotated[str, typer.Option(help="The image to start from, with Python, by its digest: NAME@sha256:...")],
    package_path: Inside = "/package",
    port: Port = 8470,
    guest: Guest = None,
    json: Json = False,
) -> None:
    """A recipe for an OCI image that is built without a network, and runs rootless and read-only."""
    from confide.deploy import targets
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    _write(targets.container(service, base=base, guest=_guest(guest)), out, json=json)


@app.command("coco")
def coco(
    package: Package,
    out: Out,
    keys: Keys,
    image: Image,
    agent_policy: Annotated[Path, typer.Option(help="The agent's policy, as genpolicy wrote it.", dir_okay=False)],
    package_path: Inside = "/package",
    port: Port = 8470,
    runtime: Annotated[str, typer.Option(help="kata-qemu-tdx or kata-qemu-snp.")] = "kata-qemu-tdx",
    guest: Guest = None,
    json: Json = False,
) -> None:
    """Confidential Containers: a pod, and initdata with its digest."""
    from confide.deploy import targets
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    policy = read_file(agent_policy)
    made = targets.coco(service, image=image, runtime=runtime, agent_policy=policy, guest=_guest(guest))
    _write(made, out, json=json)


@app.command("dstack")
def dstack(
    package: Package,
    out: Out,
    keys: Keys,
    image: Image,
    package_path: Inside = "/package",
    port: Port = 8470,
    guest: Guest = None,
    json: Json = False,
) -> None:
    """dstack: a compose file, and app-compose.json with its digest."""
    from confide.deploy import targets
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    _write(targets.dstack(service, image=image, guest=_guest(guest)), out, json=json)


@app.command("lint")
def lint(
    files: Annotated[
        list[Path],
        typer.Argument(help="Gramine manifests, domains, pods, agent policies, compose files, units.", metavar="FILE…"),
    ],
    sarif: Annotated[bool, typer.Option("--sarif", help="Print a SARIF 2.1.0 log.")] = False,
    json: Json = False,
) -> None:
    """Refuse what would give secrets away. Exits with 0 passed, 10 refused, 20 for a file that cannot be read."""
    from confide.deploy.lint import linter

    reports = [linter.lint(str(path), _manifest(path)) for path in files]
    refused = any(report.refused for report in reports)
    if sarif:
        output.result(linter.sarif(reports))
    elif json:
        output.result({"refused": refused, "files": [_as_json(report) for report in reports]})
    else:
        for report in reports:
            _show(report)
    raise typer.Exit(_REFUSED if refused else 0)


@app.command("compare")
def compare(
    expected: Annotated[Path, typer.Argument(help="What `confide deploy tdx` wrote.", metavar="EXPECTED_JSON")],
    log: Annotated[Path, typer.Argument(help="The CCEL table's log of the machine.", metavar="LOG")],
    json: Json = False,
) -> None:
    """Name the events in which a TDX machine's log differs from what was predicted. Exits with 10 where any does.

    Nothing is verified: that the log is the machine's, `confide attest verify --event-log` says.
    """
    from confide.attest.families.eventlog import replay
    from confide.deploy.predict.events import differences, from_json

    events, registers = from_json(read_file(expected))
    if not registers:
        raise InvalidImage(f"{expected} predicts no register of a TDX machine; give what `confide deploy tdx` wrote.")
    found = list(differences(events, replay(read_file(log)), registers))
    if json:
        output.result({"differences": [asdict(one) for one in found]})
    for one in () if json else found:
        seen = "nothing" if one.seen is None else printable(one.seen)
        place = f"{one.register} event {one.index + 1}"
        output.console.print(Text(f"{place}  expected {one.expected or 'nothing'}, the log has {seen}"), soft_wrap=True)
    if not json and not found:
        output.console.print("The log is as predicted.")
    raise typer.Exit(_REFUSED if found else 0)


def _write(made: "Deployment", out: Path, *, json: bool) -> None:
    written = made.everything()
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DeployError(f"{out} is not empty; give --out a new folder.")
        for name, content in sorted(written.items()):
            (out / name).write_bytes(content)
    except OSError as error:
        raise DeployError(f"{out} cannot be written ({error.strerror}); give --out another folder.") from None
    if json:
        output.result({"out": str(out)} | made.expected())
        return
    output.console.print(Text(f"Wrote {', '.join(sorted(written))} to {out}"), soft_wrap=True)
    for name, value in sorted(made.prediction.measurements.items()):
        output.console.print(Text(f"{name:<12} {value.hex()}"), soft_wrap=True)
    for name, why in sorted(made.prediction.unpredicted.items()):
        output.console.print(Text(f"{name:<12} not predicted: {why}", "yellow"), soft_wrap=True)
    if made.policy is None:
        output.note("No policy was written: without what is missing above it would accept code that nobody chose.")


def _show(report: "Report") -> None:
    verdict = ("refused", "bold red") if report.refused else ("passed", "green")
    output.console.print(Text.assemble(f"{report.name}, {report.kind}: ", verdict), soft_wrap=True)
    for finding in report.findings:
        colour = "red" if finding.rule.severity.value == "error" else "yellow"
        heading = Text.assemble(f"  {finding.rule.severity.value:<8}", (finding.rule.id, colour), f"  {finding.place}")
        output.console.print(heading, soft_wrap=True)
        output.console.print(Text(f"          {finding.rule.sentence}"), soft_wrap=True)
        output.console.print(Text(f"          {finding.rule.source}", "dim"), soft_wrap=True)


def _as_json(report: "Report") -> dict[str, Any]:
    findings = [
        {"rule": one.rule.id, "severity": one.rule.severity.value, "place": one.place, "sentence": one.rule.sentence}
        for one in report.findings
    ]
    return {"name": report.name, "kind": report.kind, "refused": report.refused, "findings": findings}


def _manifest(path: Path) -> bytes:
    from confide.deploy.lint.reading import MAX_BYTES
    from confide.disk.files import FileTooLarge, read_bounded

    try:
        return read_bounded(path, MAX_BYTES)
    except FileTooLarge:
        raise InvalidManifest(f"{path} is larger than {MAX_BYTES >> 10} KiB; give it alone.") from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror})") from None


def _bytes(path: Path, limit: int) -> bytes:
    from confide.disk.files import read_bounded

    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); give the file that is booted.") from None


def _guest(path: Path | None) -> "Policy | None":
    from confide.attest.policy_toml import policy_from_toml

    if path is None:
        return None
    try:
        return policy_from_toml(read_file(path).decode())
    except UnicodeDecodeError:
        raise typer.BadParameter(f"{path} is not UTF-8 text") from None


def _min_tcb(text: str | None) -> "SnpTcb | None":
    from confide.attest.requirements.hardware import SnpTcb

    if text is None:
        return None
    versions = dict(part.partition("=")[::2] for part in text.split(","))
    if not set(versions) <= set(SnpTcb.__struct_fields__) or not all(map(str.isdecimal, versions.values())):
        raise typer.BadParameter("--min-tcb is NAME=NUMBER with commas, of bootloader, tee, snp, microcode and fmc")
    return SnpTcb(**{name: int(value) for name, value in versions.items()})
