"""`confide deploy`: what a machine is started with, what its hardware will measure of it, and what gives it away.

`lint` exits with 0 where nothing is refused, 10 where something is, and 20 for a file that cannot be read.
"""

import inspect
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final, TypeVar

import typer
from rich.text import Text

from confide.cli import output, rollout
from confide.cli.files import read_file
from confide.cli.options import Json
from confide.cli.tee import WARNING
from confide.errors import DeployError, InvalidImage, InvalidManifest
from confide.printable import printable

if TYPE_CHECKING:
    from confide.attest.policy import Policy
    from confide.attest.requirements.hardware import SnpTcb
    from confide.deploy.deployment import Deployment
    from confide.deploy.lint.linter import Report
    from confide.deploy.predict.eif import EnclaveImage
    from confide.deploy.service import Service

_REFUSED: Final = 10
_VERSION: Final = re.compile(r"[0-9]{1,3}")

app = typer.Typer(
    name="deploy",
    help="Write what a machine is started with and what it will measure; find what gives it away.",
    no_args_is_help=True,
)
app.command("rollout")(rollout.command)

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
Program = Annotated[str, typer.Option(help="Where Confide is in the guest.")]
AgentPolicy = Annotated[Path, typer.Option(help="The agent's policy, as genpolicy wrote it.", dir_okay=False)]
Runtime = Annotated[str, typer.Option(help="kata-qemu-tdx or kata-qemu-snp.")]
Files = Annotated[str, typer.Option(help="Folder on the host with OVMF.fd, vmlinuz, initrd, root.img and package.img.")]
Firmware = Annotated[Path, typer.Option(help="The OVMF that the machine is started with.", dir_okay=False)]
Kernel = Annotated[Path, typer.Option(help="The kernel, with an EFI stub.", dir_okay=False)]
Initrd = Annotated[Path, typer.Option(help="The initial RAM disk.", dir_okay=False)]
RootHash = Annotated[str, typer.Option(help="dm-verity root hash of root.img, as `veritysetup format` prints it.")]
Memory = Annotated[int, typer.Option(help="The machine's memory, in GiB.")]
Processors = Annotated[int, typer.Option(help="The machine's processors.")]
HugePages = Annotated[bool, typer.Option("--huge-pages", help="Large pages in the guest, for all memory.")]
Prefault = Annotated[bool, typer.Option("--prefault", help="Take all memory at the start, and not as it is used.")]
Pin = Annotated[str | None, typer.Option(help="The host's processors, one for each of the machine's, such as 0-15.")]
Node = Annotated[int | None, typer.Option(help="The host's NUMA node whose memory is taken.")]
Amx = Annotated[bool, typer.Option("--amx", help="Start only where the processor has AMX.")]

Writer = TypeVar("Writer", bound=Callable[..., "Deployment"])


def _target(name: str, *, inside: str = "/package") -> Callable[[Writer], Writer]:
    """A command that writes a deployment: what every target is asked, around what this one is.

    The function takes the service, and its own options by name. inside: where the package lies unless it is said.
    """

    def common(
        package: Package, out: Out, keys: Keys, package_path: Inside = inside, port: Port = 8470, json: Json = False
    ) -> None: ...

    def decorate(make: Writer) -> Writer:
        def command(
            package: Path, out: Path, keys: str, package_path: str, port: int, json: bool, **own: object
        ) -> None:
            from confide.deploy.service import Service

            _write(make(Service.of(package, keys, package_path, port), **own), out, json=json)

        asked = inspect.signature(common).parameters
        own = list(inspect.signature(make).parameters.values())[1:]
        parameters = [asked["package"], asked["out"], asked["keys"], *own, *list(asked.values())[3:]]
        command.__doc__ = make.__doc__
        command.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in parameters]
        )
        command.__annotations__ = {one.name: one.annotation for one in parameters}
        app.command(name)(command)
        return make

    return decorate


@_target("gramine", inside="/srv/package")
def gramine(
    service: "Service",
    python: Annotated[
        str, typer.Option(help="Python of the virtual environment with Confide.")
    ] = "/opt/confide/bin/python3",
    enclave_size: Annotated[int, typer.Option(help="GiB, a power of two.")] = 64,
    threads: Annotated[int, typer.Option(help="Threads of the enclave.")] = 64,
    mrenclave: Annotated[
        str | None, typer.Option(help="What was measured, in hexadecimal; without it no policy is written.")
    ] = None,
    sign_with: Annotated[
        Path | None,
        typer.Option(help="Key to measure with: gramine-sgx-sign is run here, where the files are.", dir_okay=False),
    ] = None,
    prefault: Prefault = False,
    amx: Amx = False,
) -> "Deployment":
    """Intel SGX: a manifest for gramine-sgx-sign."""
    from confide.attest.requirements.base import require_hex
    from confide.deploy import gramine_sign, targets

    if mrenclave is not None and sign_with is not None:
        raise typer.BadParameter("give --mrenclave or --sign-with, not both")
    make = partial(
        targets.gramine,
        service,
        python=python,
        enclave_gib=enclave_size,
        threads=threads,
        prefault=prefault,
        amx=amx,
    )
    if sign_with is not None:
        return make(mrenclave=gramine_sign.measured(make().files["confide.manifest"], sign_with))
    if mrenclave is not None:
        require_hex("mrenclave", mrenclave, 32)
    return make(mrenclave=None if mrenclave is None else bytes.fromhex(mrenclave))


@_target("tdx")
def tdx(
    service: "Service",
    firmware: Firmware,
    kernel: Kernel,
    initrd: Initrd,
    root_hash: RootHash,
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
    huge_pages: HugePages = False,
    prefault: Prefault = False,
    pin: Pin = None,
    node: Node = None,
    amx: Amx = False,
) -> "Deployment":
    """Intel TDX: a libvirt domain that boots directly, and its MRTD and RTMRs."""
    from confide.deploy import targets
    from confide.deploy.predict.tdvf import MAX_FIRMWARE_BYTES, PageOrder
    from confide.deploy.predict.tdx import MAX_ACPI_BYTES, MAX_INITRD_BYTES, MAX_KERNEL_BYTES, AcpiTables, DirectBoot
    from confide.deploy.tuning import Tuning

    if measured_after not in list(PageOrder):
        raise typer.BadParameter("--measured-after is page or section")
    tuning = Tuning.of(huge_pages=huge_pages, prefault=prefault, pin=pin, node=node, amx=amx)
    machine = targets.Machine(memory, processors, files, tuning)
    names = ("table-loader", "rsdp", "tables")
    tables = None if acpi is None else AcpiTables(*(_bytes(acpi / name, MAX_ACPI_BYTES) for name in names))
    boot = DirectBoot(
        _bytes(firmware, MAX_FIRMWARE_BYTES),
        _bytes(kernel, MAX_KERNEL_BYTES),
        targets.command_line(root_hash, tuning),
        _bytes(initrd, MAX_INITRD_BYTES),
        acpi=tables,
        page_order=PageOrder(measured_after),
    )
    return targets.tdx(service, machine, boot)


@_target("snp")
def snp(
    service: "Service",
    firmware: Firmware,
    kernel: Kernel,
    initrd: Initrd,
    root_hash: RootHash,
    files: Files = "/srv/confide",
    memory: Memory = 64,
    processors: Processors = 16,
    processor: Annotated[str, typer.Option(help="QEMU's name of the processor.")] = "EPYC-Milan",
    min_tcb: Annotated[
        str | None,
        typer.Option(help="Least versions of the platform, from AMD's bulletins, such as snp=22,microcode=213."),
    ] = None,
    huge_pages: HugePages = False,
    prefault: Prefault = False,
    pin: Pin = None,
    node: Node = None,
) -> "Deployment":
    """AMD SEV-SNP: a libvirt domain that boots directly, and its launch digest."""
    from confide.deploy import targets
    from confide.deploy.predict.snp import SnpBoot
    from confide.deploy.tuning import Tuning

    tuning = Tuning.of(huge_pages=huge_pages, prefault=prefault, pin=pin, node=node)
    machine = targets.Machine(memory, processors, files, tuning)
    boot = SnpBoot(firmware, kernel, targets.command_line(root_hash, tuning), initrd, processor=processor)
    return targets.snp(service, machine, boot, _min_tcb(min_tcb))


@_target("systemd")
def systemd(service: "Service", program: Program = "/opt/confide/bin/confide", guest: Guest = None) -> "Deployment":
    """A unit for the image of a guest."""
    from confide.deploy import targets

    return targets.systemd(service, program=program, guest=_guest(guest))


@_target("container")
def container(
    service: "Service",
    base: Annotated[str, typer.Option(help="The image to start from, with Python, by its digest: NAME@sha256:...")],
    guest: Guest = None,
) -> "Deployment":
    """A recipe for an OCI image that is built without a network, and runs rootless and read-only."""
    from confide.deploy import targets

    return targets.container(service, base=base, guest=_guest(guest))


@_target("coco")
def coco(
    service: "Service",
    image: Image,
    agent_policy: AgentPolicy,
    runtime: Runtime = "kata-qemu-tdx",
    guest: Guest = None,
) -> "Deployment":
    """Confidential Containers: a pod, and initdata with its digest."""
    from confide.deploy import targets

    policy = read_file(agent_policy)
    return targets.coco(service, image=image, runtime=runtime, agent_policy=policy, guest=_guest(guest))


@_target("helm")
def helm(
    service: "Service",
    image: Image,
    agent_policy: AgentPolicy,
    runtime: Runtime = "kata-qemu-tdx",
    guest: Guest = None,
) -> "Deployment":
    """Confidential Containers by Helm: a chart around the pod, in which nothing can be set."""
    from confide.deploy import targets

    policy = read_file(agent_policy)
    return targets.helm(service, image=image, runtime=runtime, agent_policy=policy, guest=_guest(guest))


@_target("dstack")
def dstack(service: "Service", image: Image, guest: Guest = None) -> "Deployment":
    """dstack: a compose file, and app-compose.json with its digest."""
    from confide.deploy import targets

    return targets.dstack(service, image=image, guest=_guest(guest))


@_target("azure")
def azure(
    service: "Service",
    image: Annotated[str, typer.Option(help="One version of an image in a gallery, by its id: /subscriptions/...")],
    size: Annotated[str, typer.Option(help="A confidential size, such as Standard_DC16as_v5.")],
    secure_boot: Annotated[bool, typer.Option(help="Whether the firmware asks for signatures; PCR 7 has it.")] = True,
    program: Program = "/opt/confide/bin/confide",
    guest: Guest = None,
) -> "Deployment":
    """Azure: a template for a confidential machine, and the unit for its image."""
    from confide.deploy import clouds

    return clouds.azure(service, program=program, image=image, size=size, secure_boot=secure_boot, guest=_guest(guest))


@_target("gcp")
def gcp(
    service: "Service",
    image: Annotated[str, typer.Option(help="projects/PROJECT/global/images/NAME.")],
    zone: Annotated[str, typer.Option(help="Such as europe-west4-a.")],
    machine: Annotated[str, typer.Option(help="A machine that has TDX.")] = "c3-standard-22",
    log: Annotated[
        Path | None,
        typer.Option(help="Log (CCEL) of the machine whose evidence --guest is from, to compare others with."),
    ] = None,
    program: Program = "/opt/confide/bin/confide",
    guest: Guest = None,
) -> "Deployment":
    """Google: an instance with TDX, and the unit for its image."""
    from confide.attest.families.eventlog import replay
    from confide.deploy import clouds

    seen = None if log is None else replay(read_file(log))
    return clouds.gcp(service, program=program, image=image, machine=machine, zone=zone, log=seen, guest=_guest(guest))


@_target("nitro")
def nitro(
    service: "Service",
    base: Annotated[str, typer.Option(help="The image to start from, with Python, by its digest: NAME@sha256:...")],
    eif: Annotated[
        Path | None,
        typer.Option(
            help="What nitro-cli built of the Dockerfile; without it nothing is predicted, and no policy is written.",
            dir_okay=False,
        ),
    ] = None,
    python: Annotated[str, typer.Option(help="Python in that image.")] = "/usr/local/bin/python3",
    files: Annotated[
        str, typer.Option(help="Folder on the parent, with confide.eif and enclave.json.")
    ] = "/srv/confide",
    memory: Annotated[int, typer.Option(help="The enclave's memory, in GiB; four times its image at least.")] = 16,
    processors: Annotated[int, typer.Option(help="The enclave's processors.")] = 4,
) -> "Deployment":
    """AWS Nitro: an enclave's image and its PCRs, and what its parent runs."""
    from confide.deploy import nitro as target

    enclave = target.Enclave(memory, processors, files)
    image = None if eif is None else _enclave_image(eif)
    return target.nitro(service, enclave, base=base, python=python, image=image)


@app.command("image")
def image(
    package: Package,
    out: Out,
    keys: Keys,
    keys_ca: Annotated[
        Path, typer.Option(help="PEM file of the authorities that vouch for the broker; the machine has no others.")
    ],
    lock: Annotated[Path, typer.Option(help="What the image is made of: packaging/image.lock.", dir_okay=False)],
    parts: Annotated[Path, typer.Option(help="Folder with the files that the lock names.", file_okay=False)],
    confide: Annotated[Path, typer.Option(help="The wheel of Confide to put in.", dir_okay=False)],
    package_path: Inside = "/package",
    port: Port = 8470,
    insecure_simulated_tee: Annotated[
        Path | None,
        typer.Option(
            help="Folder of `confide tee simulate init` to put in, for tests: such a machine protects nothing.",
            file_okay=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build a machine's kernel, initial RAM disk, read-only root and package disk, the same bytes every time."""
    from confide.deploy.image.build import SUMMARY, Recipe, build
    from confide.deploy.image.lock import MAX_BYTES, Lock
    from confide.deploy.service import Service

    service = Service.of(package, keys, package_path, port)
    recipe = Recipe(
        service, Lock.read(read_file(lock, MAX_BYTES)), parts, confide, read_file(keys_ca), insecure_simulated_tee
    )
    if insecure_simulated_tee is not None:
        output.messages.print(f"[bold red]{WARNING}[/]")
    made = build(recipe, package, out)
    if json:
        output.result({"out": str(out)} | made.as_json())
        return
    output.console.print(Text(f"Wrote {', '.join((*made.files, SUMMARY))} to {out}"), soft_wrap=True)
    output.console.print(Text(f"root hash    {made.root_hash}"), soft_wrap=True)


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
    expected: Annotated[
        Path, typer.Argument(help="What `confide deploy` wrote for tdx or gcp.", metavar="EXPECTED_JSON")
    ],
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
        raise InvalidImage(f"{expected} predicts no register of a TDX machine; give what was written for tdx or gcp.")
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
            (out / name).parent.mkdir(parents=True, exist_ok=True)
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
    for name, why in sorted(made.tuning.items()):
        output.console.print(Text(f"{name:<18} {why}", "dim"), soft_wrap=True)
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

    return read_file(path, MAX_BYTES, InvalidManifest(f"{path} is larger than {MAX_BYTES >> 10} KiB; give it alone."))


def _bytes(path: Path, limit: int) -> bytes:
    from confide.disk.files import read_bounded

    try:
        return read_bounded(path, limit)
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); give the file that is booted.") from None


def _enclave_image(path: Path) -> "EnclaveImage":
    from confide.deploy.predict.eif import EnclaveImage

    try:
        with path.open("rb") as file:
            return EnclaveImage.read(file)
    except OSError as error:
        raise DeployError(f"{path} cannot be read ({error.strerror}); give what `nitro-cli` built.") from None


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
    if not set(versions) <= set(SnpTcb.__struct_fields__) or not all(map(_VERSION.fullmatch, versions.values())):
        raise typer.BadParameter("--min-tcb is NAME=NUMBER with commas, of bootloader, tee, snp, microcode and fmc")
    return SnpTcb(**{name: int(value) for name, value in versions.items()})
