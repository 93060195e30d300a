"""An image is built twice alike, boots in an emulated machine, answers, and is refused where a byte of it was changed.

The machine is QEMU's without KVM: its processor is computed. Nothing of it protects anything, so its evidence is
simulated. All else is as on hardware: the kernel, the initial RAM disk, dm-verity, and the way out to the broker.
"""

import json
import mmap
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from tests.deploy import machine
from tests.deploy.test_predict_snp import firmware as snp_firmware
from tools import image_lock

import confide
from confide.deploy import targets
from confide.deploy.image import build
from confide.deploy.image.lock import Lock
from confide.deploy.predict.events import RTMR1
from confide.deploy.predict.pe import authenticode
from confide.deploy.predict.snp import SnpBoot
from confide.deploy.predict.tdx import DirectBoot
from confide.deploy.service import Service
from confide.errors import DeployError
from confide.models.gguf.types import GgufType
from confide.models.gguf.write import write_gguf
from confide.models.source import open_model

pytestmark = pytest.mark.slow

SECONDS = 3000.0
"""For a machine to serve: some minutes alone, many more beside others."""
EMULATED = ("-accel", "tcg", "-machine", "q35", "-cpu", "max,la57=off", "-smp", "1", "-m", "2048")
FOR_TESTS = " console=ttyS0 clearcpuid=cx16 no_timer_check"
"""A console to read. QEMU 7.2 leaves false flags behind an instruction that the kernel then does not use; and on a busy
machine timers tick too late for the kernel, which would panic over them.
"""
POLICY = 'confide-policy = 1\nkind = "simulated"\n\n[[all]]\nrequire = "no-egress"\n'
PASSPHRASE = "a long phrase of your own"


@dataclass(frozen=True)
class Owner:
    """A model's owner with a broker, and the package and recipe of a machine that is to serve it."""

    folder: Path
    package: Path
    recipe: build.Recipe

    def confide(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(*words), env=environment(self.folder), capture_output=True, text=True, check=False, timeout=SECONDS
        )


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "confide", *map(str, words)]


def environment(folder: Path) -> dict[str, str]:
    own = {"CONFIDE_HOME": str(folder / "home"), "CONFIDE_KEYS_PASSPHRASE": PASSPHRASE, "OMP_NUM_THREADS": "1"}
    return os.environ | own | {"PYTHONPATH": str(Path(confide.__file__).parents[1]), "COLUMNS": "200"}


def wheel(path: Path) -> Path:
    """Confide as it is here, as an archive that has what a wheel has of it."""
    source = Path(confide.__file__).parent
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(source.rglob("*")):
            if file.is_file() and "__pycache__" not in file.parts:
                archive.write(file, Path("confide") / file.relative_to(source))
    return path


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the lock names: in a folder that is named, or fetched."""
    for program in build.TOOLS:
        try:
            build.tool(program)
        except DeployError as error:
            pytest.skip(str(error))
    if platform.machine() != "x86_64":
        pytest.skip("the image is for x86-64")
    if given := os.environ.get("CONFIDE_IMAGE_PARTS"):
        return Path(given)
    folder = tmp_path_factory.mktemp("parts")
    try:
        image_lock.fetch(folder)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("the lock's packages cannot be had from here; see docs/deploy.md, A measured image")
    return folder


@pytest.fixture(scope="module")
def owner(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Owner]:
    """With a broker that listens. A machine of QEMU's has its host at 10.0.2.2."""
    folder = tmp_path_factory.mktemp("owner")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    model = write_gguf(open_model("demo"), folder / "demo.gguf", GgufType.F16).path
    made = Owner(folder, folder / "package", None)  # type: ignore[arg-type]
    (folder / "release.toml").write_text(POLICY)
    for words in (
        ("seal", model, "--out", made.package, "--key", folder / "model.key"),
        ("tls", "make-local", "--out", folder / "tls", "--name", "10.0.2.2"),
        ("tee", "simulate", "init", folder / "tee"),
        (
            *("keys", "add", folder / "model.key", "--package", made.package),
            *("--policy", folder / "release.toml", "--simulated-root", folder / "tee/root.pem"),
        ),
    ):
        done = made.confide(*words)
        assert done.returncode == 0, done.stderr
    service = Service.of(made.package, f"https://10.0.2.2:{port}", "/package", 8470)
    lock = Lock.read(image_lock.LOCK.read_bytes())
    authority, confide_wheel = (folder / "tls/ca.pem").read_bytes(), wheel(folder / "confide-0-py3-none-any.whl")
    recipe = build.Recipe(service, lock, parts, confide_wheel, authority, folder / "tee")
    certificate = ("--tls-cert", folder / "tls/server.pem", "--tls-key", folder / "tls/server.key")
    serve = command("keys", "serve", "--offline", "--port", port, *certificate)
    with (folder / "broker.log").open("w") as log:
        broker = subprocess.Popen(serve, env=environment(folder), stdout=log, stderr=log)
    try:
        until = time.monotonic() + 300
        while "Releasing" not in (folder / "broker.log").read_text():
            assert broker.poll() is None, (folder / "broker.log").read_text()
            assert time.monotonic() < until
            time.sleep(0.2)
        yield Owner(folder, made.package, recipe)
    finally:
        broker.terminate()
        broker.wait()


@pytest.fixture(scope="module")
def image(owner: Owner) -> Path:
    out = owner.folder / "image"
    build.build(owner.recipe, owner.package, out)
    return out


@dataclass
class Booted:
    """A running machine. port: on this machine, that leads to its service."""

    process: subprocess.Popen[bytes]
    console: Path
    port: int

    def said(self) -> str:
        return self.console.read_text(errors="replace")

    def wait_for(self, words: str) -> str:
        """Until the machine says so; what it said up to then."""
        until = time.monotonic() + SECONDS
        while words not in self.said():
            assert self.process.poll() is None, self.said()[-4000:]
            assert time.monotonic() < until, self.said()[-4000:]
            time.sleep(0.5)
        return self.said()

    def wait_for_its_end(self) -> str:
        """What a machine said that ends by itself."""
        self.process.wait(SECONDS)
        return self.said()


@contextmanager
def booted(image: Path, line: str, folder: Path) -> Iterator[Booted]:
    """A machine with an image, and a network in which it reaches this one and nothing else."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not there")
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    console = folder / "console"
    console.touch()
    devices: list[str] = ["-device", "virtio-rng-pci", "-device", "virtio-net-pci,netdev=net"]
    devices += ["-netdev", f"user,id=net,hostfwd=tcp:127.0.0.1:{port}-:8470"]
    for name in ("package", "root"):
        devices += ["-drive", f"file={image / name}.img,format=raw,if=none,id={name},readonly=on"]
        devices += ["-device", f"virtio-blk-pci,drive={name},serial={name}"]
    boot = ["-kernel", image / "vmlinuz", "-initrd", image / "initrd", "-append", line + FOR_TESTS]
    shown = ["-nodefaults", "-nographic", "-no-reboot", "-serial", f"file:{console}"]
    process = subprocess.Popen([qemu, *EMULATED, *shown, *boot, *devices], stdin=subprocess.DEVNULL)
    try:
        yield Booted(process, console, port)
    finally:
        process.kill()
        process.wait()


def line_of(image: Path) -> str:
    return str(json.loads((image / "image.json").read_text())["command_line"])


def test_the_same_bytes_again(owner: Owner, image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With other modes, another time zone, and the packages' folder in another place."""
    elsewhere = owner.folder / "elsewhere"
    shutil.copytree(owner.package, elsewhere / "package")
    for path in (elsewhere / "package").iterdir():
        path.chmod(0o600)
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    before = os.umask(0o077)
    try:
        again = build.build(owner.recipe, elsewhere / "package", elsewhere / "image")
    finally:
        os.umask(before)
    first = (image / "image.json").read_bytes()
    assert (elsewhere / "image/image.json").read_bytes() == first
    assert again.files == json.loads(first)["files"]
    assert sorted(path.name for path in image.iterdir()) == [
        *("image.json", "initrd", "package.img", "root.img", "vmlinuz"),
    ]
    shutil.rmtree(elsewhere)


def test_it_is_what_a_target_takes(image: Path, tmp_path: Path) -> None:
    """TDX and SEV-SNP are told of kernel, initial RAM disk and command line, and predict their registers."""
    kernel, initrd = (image / "vmlinuz").read_bytes(), (image / "initrd").read_bytes()
    boot = DirectBoot(machine.firmware(), kernel, line_of(image), initrd, acpi=machine.ACPI)
    service = Service("ab" * 32, "https://keys.example:8471")
    made = targets.tdx(service, targets.Machine(), boot)
    assert made.policy is not None
    assert {"mrtd", "rtmr0", "rtmr1", "rtmr2"} <= made.prediction.measurements.keys()
    assert authenticode(kernel) in {event.digest for event in made.prediction.events if event.register == RTMR1}
    (tmp_path / "ovmf").write_bytes(snp_firmware())
    snp = SnpBoot(tmp_path / "ovmf", image / "vmlinuz", line_of(image), image / "initrd")
    assert len(targets.snp(service, targets.Machine(), snp, None).prediction.measurements["measurement"]) == 48


def test_it_serves_and_is_verified_from_outside(owner: Owner, image: Path) -> None:
    """The broker releases the key to it, a user verifies its evidence, and is answered; one without the root is not."""
    (owner.folder / "user.toml").write_text(
        POLICY + f'\n[[all]]\nrequire = "model"\nsha256 = "{owner.recipe.service.model_digest}"\n'
    )
    with booted(image, line_of(image), owner.folder) as running:
        said = running.wait_for("Serving demo")
        assert "confide: the address is 10.0.2.15" in said
        chat = ("chat", f"https://127.0.0.1:{running.port}", "--ra-tls", "--once", "Once", "--max-tokens", "4")
        policy = ("--policy", owner.folder / "user.toml")
        done = owner.confide(*chat, *policy, "--simulated-root", owner.folder / "tee/root.pem")
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip()
        assert owner.recipe.service.model_digest[:8] in done.stderr + done.stdout
        assert owner.confide(*chat, *policy).returncode != 0
    log = owner.confide("keys", "log", "show").stdout
    assert "released" in log


def changed(image: Path, folder: Path, name: str, find: bytes) -> Path:
    """An image in which one bit is another, in the block of these words or at the end."""
    shutil.copytree(image, folder / "changed")
    with (folder / "changed" / name).open("r+b") as file, mmap.mmap(file.fileno(), 0) as content:
        at = content.find(find) if find else len(content) - 1
        assert at >= 0
        content[at] ^= 1
    return folder / "changed"


@pytest.fixture(scope="module")
def stopped(owner: Owner, image: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """What machines said that end by themselves. All are started at once; none of them asks for a key."""
    place, line = tmp_path_factory.mktemp("stopped"), line_of(image)
    started = {
        "root": (changed(image, place / "root", "root.img", b'"--ra-tls"'), line),
        "package": (changed(image, place / "package", "package.img", b'"model_digest"'), line),
        "another hash": (image, line[:-1] + ("0" if line[-1] != "0" else "1")),
        "no hash": (image, line.replace("roothash=", "nohash=")),
    }
    before = owner.confide("keys", "log", "show").stdout
    with ExitStack() as stack:
        running = {}
        for name, (files, told) in started.items():
            (place / name).mkdir(exist_ok=True)
            running[name] = stack.enter_context(booted(files, told, place / name))
        said = {name: one.wait_for_its_end() for name, one in running.items()}
    assert owner.confide("keys", "log", "show").stdout == before
    for name in ("root", "package"):
        shutil.rmtree(place / name)
    return said


@pytest.mark.parametrize("name", ["root", "package"])
def test_one_bit_and_it_stops(stopped: dict[str, str], name: str) -> None:
    """The block is read, is not what its hash says, and the kernel panics: no key was asked for, nothing is served."""
    assert re.search(r"device-mapper: verity: .* block \d+ is corrupted", stopped[name])
    assert "Kernel panic - not syncing: dm-verity device corrupted" in stopped[name]
    assert "Serving" not in stopped[name]


def test_another_root_hash_and_it_does_not_start(stopped: dict[str, str]) -> None:
    assert "is corrupted" in stopped["another hash"]
    assert "confide: the root is" not in stopped["another hash"]
    assert "confide: the kernel's command line has no single roothash=" in stopped["no hash"]
    assert "Attempted to kill init" in stopped["no hash"]
