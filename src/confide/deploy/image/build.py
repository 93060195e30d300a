"""Builds the image of a machine: the same bytes from the same package, lock and options, whoever does it.

Nothing is fetched, no script of a package is run, and no right is needed. What runs is dpkg-deb, mksquashfs,
veritysetup, and the Python of the image itself, which compiles what is in it.
"""

import json
import os
import re
import shutil
import stat
import subprocess
import tempfile
import zipfile
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from confide.deploy.image import machine, start
from confide.deploy.image.lock import Lock, sha256_of
from confide.deploy.image.modules import NEEDED, OFFERED, Modules
from confide.deploy.image.trees import Entry, Tree, file, folder, tree_of, write_cpio, write_tar
from confide.deploy.service import Service
from confide.deploy.targets import command_line
from confide.errors import DeployError, InvalidImage
from confide.packages.manifest import MANIFEST_NAME
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.package import SealedPackage
from confide.packages.signing import SIGNATURE_NAME, package_files
from confide.printable import printable

KERNEL, INITRD, ROOT, PACKAGE, SUMMARY = "vmlinuz", "initrd", "root.img", "package.img", "image.json"
TOOLS: Final = {"dpkg-deb": "dpkg", "mksquashfs": "squashfs-tools", "veritysetup": "cryptsetup-bin"}
"""By the program, Debian's package that has it."""
PYTHON: Final = start.NEXT[0][1:]

_LIBRARY: Final = "usr/lib/python3.11"
_WHEELS: Final = "usr/local/lib/python3.11/dist-packages"
_LINKED: Final = ("lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu")
_LINKER: Final = "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"
_KERNEL: Final = re.compile(r"boot/vmlinuz-[^/]+")
_PROGRAM: Final = re.compile(r"(?:usr/)?(?:local/)?s?bin/.+")
_LEFT_OUT: Final = re.compile(r"(?:boot|etc|lib/modules|usr/share|var)(?:/.*)?")
_IN_INITRD: Final = re.compile(
    rf"{PYTHON}|lib64/.+|(?:usr/)?lib/x86_64-linux-gnu/(?:ld-linux-x86-64|libc|libm|libz|libexpat|libffi)[.-].*"
    rf"|{_LIBRARY}/(?!lib-dynload|test/).+|{_LIBRARY}/lib-dynload/_ctypes\..+"
)
"""Python with what `start` imports, and the libraries that it is linked to."""
_NOT_COMPILED: Final = r"/transformers/models/(?!__init__|auto/)|/tests?/"
"""Thousands of modules that hardly any machine imports."""
_KEYS_CA: Final = "etc/confide/keys-ca.pem"
_SIMULATED: Final = "etc/confide/simulated-tee"
_ROOT_HASH: Final = re.compile(r"^Root hash:\s+([0-9a-f]{64})$", re.M)
_SECONDS: Final = 3600.0
"""A package can have a hundred gigabytes."""


@dataclass(frozen=True)
class Recipe:
    """files: the folder with what the lock names. confide: its wheel. keys_ca: who vouches for the broker, PEM.

    simulated_tee: a folder of `confide tee simulate init`, for an image that protects nothing.
    """

    service: Service
    lock: Lock
    files: Path
    confide: Path
    keys_ca: bytes
    simulated_tee: Path | None = None

    @property
    def command(self) -> tuple[str, ...]:
        """What the machine runs."""
        simulated = () if self.simulated_tee is None else ("--tee", "simulated", "--simulated-tee", f"/{_SIMULATED}")
        served = self.service.command("", "--keys-ca", f"/{_KEYS_CA}", *simulated)
        return (f"/{PYTHON}", "-I", "-m", "confide", *served[1:])


@dataclass(frozen=True)
class Verity:
    """What dm-verity needs to open a file's data. root_hash: in hexadecimal. blocks: of data."""

    root_hash: str
    blocks: int


@dataclass(frozen=True)
class Image:
    """What was built. confide: the SHA-256 of its wheel. files: theirs, by name. All in hexadecimal."""

    root_hash: str
    command_line: str
    model_digest: str
    simulated: bool
    confide: str
    files: dict[str, str]

    def as_json(self) -> dict[str, object]:
        """What `image.json` says."""
        return {"confide-image": 1} | asdict(self)


def build(recipe: Recipe, package: Path, out: Path) -> Image:
    """Write kernel, initial RAM disk, root and the package's disk into a folder that is new or empty.

    Raises what `SealedPackage.open` does, DeployError for what is missing or cannot be written, and InvalidImage for
    parts that make no machine.
    """
    for program in TOOLS:
        tool(program)
    manifest = SealedPackage.open(package).manifest
    if manifest.weights is WeightsFormat.SAFETENSORS and not any(
        name.startswith("torch==") for name in recipe.lock.wheels
    ):
        raise DeployError(
            "The package's weights are safetensors, which torch runs, and the lock names no torch; seal a GGUF file, "
            "or add torch and what it needs to a lock of your own."
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        if any(out.iterdir()):
            raise DeployError(f"{out} is not empty; give --out a new folder.")
        found = recipe.lock.find(recipe.files)
        with tempfile.TemporaryDirectory(prefix=".unfinished-image-", dir=out.parent) as place:
            base, draft = Path(place, "base"), Path(place, "image")
            draft.mkdir()
            for name in recipe.lock.debs:
                run(tool("dpkg-deb"), "--extract", found[name], base)
            for wheel in (*(found[name] for name in recipe.lock.wheels), recipe.confide):
                unpack_wheel(wheel, base / _WHEELS)
            compile_all(base)
            parts = tree_of(base)
            disk = write_disk(package_tree(package), draft / PACKAGE)
            root = write_disk(root_tree(parts, recipe, disk), draft / ROOT)
            (draft / KERNEL).write_bytes(kernel_of(parts))
            with (draft / INITRD).open("wb") as initrd:
                write_cpio(initrd_tree(parts, root.blocks), initrd)
            files = {name: sha256_of(draft / name) for name in (INITRD, PACKAGE, ROOT, KERNEL)}
            digest, told = sha256_of(recipe.confide), command_line(root.root_hash)
            simulated = recipe.simulated_tee is not None
            image = Image(root.root_hash, told, manifest.model_digest, simulated, digest, files)
            (draft / SUMMARY).write_text(json.dumps(image.as_json(), indent=2) + "\n")
            draft.rename(out)
    except OSError as error:
        raise DeployError(f"{out} cannot be written ({error.strerror}); give --out a new folder.") from None
    return image


def tool(program: str) -> str:
    """Where a program is, by the PATH and where Debian has root's. DeployError, with what to install."""
    found = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin")
    if found is None or not os.path.isabs(found):
        raise DeployError(f"There is no {program}; run `apt-get install {TOOLS[program]}`.")
    return found


def run(*command: str | Path, environment: Mapping[str, str] | None = None, given: Tree | None = None) -> str:
    """A program to its end. given: what it reads as an archive. Returns what it printed; DeployError where it fails."""
    with tempfile.TemporaryFile() as said:
        stdin = subprocess.DEVNULL if given is None else subprocess.PIPE
        running = subprocess.Popen(  # noqa: S603 - one of TOOLS, or of the image, and no shell
            command, stdin=stdin, stdout=said, stderr=subprocess.STDOUT, env=environment
        )
        try:
            if given is not None and running.stdin is not None:
                with suppress(BrokenPipeError), running.stdin as archive:  # it says below why it reads no more
                    write_tar(given, archive)
            code = running.wait(_SECONDS)
        except subprocess.TimeoutExpired:
            raise DeployError(f"{Path(command[0]).name} does not end; build on a faster machine.") from None
        finally:
            running.kill()
            running.wait()
        said.seek(0)
        words = said.read().decode("utf-8", "replace")
    if code:
        reason = printable(words.strip()[:300])
        raise DeployError(f"{Path(command[0]).name} ends with {code} ({reason}); see that its input is whole.")
    return words


def unpack_wheel(wheel: Path, place: Path) -> None:
    """A wheel's packages (Binary distribution format); its programs are left out. InvalidImage for one that is none."""
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                path = PurePosixPath(name)
                if path.is_absolute() or ".." in path.parts:
                    raise zipfile.BadZipFile(name)
                if path.parts[0].endswith(".data"):
                    if path.parts[1] not in ("purelib", "platlib"):
                        continue
                    path = PurePosixPath(*path.parts[2:])
                if name.endswith("/"):
                    continue
                target = place / path
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(archive.read(name))
    except zipfile.BadZipFile:
        raise InvalidImage(f"{wheel} is no wheel; fetch it again.") from None


def compile_all(base: Path) -> None:
    """Byte code for all of Python, by the image's own Python, since nothing can be written once it runs.

    It is good without a look at its source (PEP 552), so it has no times in it.
    """
    environment = {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
    python = (base / _LINKER, "--library-path", ":".join(str(base / one) for one in _LINKED), base / PYTHON)
    how = ("-qq", "--invalidation-mode", "unchecked-hash", "-s", base, "-p", "/", "-x", _NOT_COMPILED)
    folders = (base / _LIBRARY, base / _WHEELS)
    # -B: what the compiler itself is made of would be written with times and the folder's name, and then be left alone.
    run(*python, "-B", "-s", "-S", "-P", "-m", "compileall", *how, *folders, environment=environment)


def write_disk(tree: Tree, path: Path) -> Verity:
    """A read-only file system with these files, and dm-verity's hashes right behind it, in one file."""
    uncompressed = ("-noI", "-noD", "-noF", "-noX")
    plain = ("-no-xattrs", "-all-root", "-root-mode", "755", "-mkfs-time", "0", "-all-time", "0")
    run(
        tool("mksquashfs"),
        "-",
        path,
        "-tar",
        *uncompressed,
        *plain,
        "-noappend",
        "-processors",
        "1",
        "-quiet",
        "-no-progress",
        given=tree,
    )
    size = path.stat().st_size
    blocks = -(-size // start.BLOCK)
    with path.open("ab") as file:
        file.truncate(blocks * start.BLOCK)
    printed = run(tool("veritysetup"), "format", *verity_arguments(blocks), path, path)
    matched = _ROOT_HASH.search(printed)
    if matched is None:
        raise DeployError("veritysetup prints no root hash; take the one of Debian 12 or later.")
    return Verity(matched[1], blocks)


def verity_arguments(blocks: int) -> tuple[str, ...]:
    """For what `start.verity_table` opens: no header, whose words the host could change, and no salt."""
    size = str(start.BLOCK)
    sizes = ("--data-block-size", size, "--hash-block-size", size, "--data-blocks", str(blocks))
    return ("--no-superblock", "--hash", "sha256", "--salt", "-", *sizes, "--hash-offset", str(blocks * start.BLOCK))


def package_tree(package: Path) -> Tree:
    """A sealed package, without what else lies in its folder."""
    names = (MANIFEST_NAME, SIGNATURE_NAME, *package_files(package))
    return {name: file(package / name) for name in names}


def root_tree(parts: Tree, recipe: Recipe, package: Verity) -> Tree:
    """Libraries, Python, Confide, and what they are to do; no program besides Python."""
    kept = {name: entry for name, entry in parts.items() if not _LEFT_OUT.fullmatch(name)}
    kept = {name: entry for name, entry in kept.items() if name == PYTHON or not _PROGRAM.fullmatch(name)}
    inside = recipe.service.package
    configuration = {"command": recipe.command, "package": {"path": inside, **asdict(package)}}
    user = f"confide:x:{machine.USER}"
    written = {
        "etc/confide/machine.json": json.dumps(configuration, indent=2) + "\n",
        "etc/group": f"root:x:0:\n{user}:\n",
        "etc/hosts": "127.0.0.1 localhost\n",
        "etc/nsswitch.conf": "hosts: files dns\n",
        "etc/passwd": f"root:x:0:0::/:/nonexistent\n{user}:{machine.USER}::/tmp:/nonexistent\n",
    }
    tree = kept | {name: file(text.encode()) for name, text in written.items()} | {_KEYS_CA: file(recipe.keys_ca)}
    tree |= {name: folder() for name in ("dev", "proc", "run", "sys", "tmp", inside[1:])}
    tree["etc/resolv.conf"] = Entry(stat.S_IFLNK, target=machine.RESOLVER)
    if recipe.simulated_tee is not None:
        tree |= {f"{_SIMULATED}/{name}": entry for name, entry in tree_of(recipe.simulated_tee).items()}
    return tree


def initrd_tree(parts: Tree, blocks: int) -> Tree:
    """Python without what it does not need to open a root of so many blocks, and the kernel's modules for that."""
    modules = Modules(parts)
    needed = modules.in_order(NEEDED)
    tree = {name: entry for name, entry in parts.items() if _IN_INITRD.fullmatch(name)}
    for place, chosen in (("needed", needed), ("offered", modules.in_order(OFFERED, needed))):
        tree[f"{start.MODULES[1:]}/{place}"] = folder()
        for index, (name, content) in enumerate(chosen.items()):
            tree[f"{start.MODULES[1:]}/{place}/{index:03}-{name}.ko"] = file(content)
    tree |= {name: folder() for name in ("dev", "proc", "root", "sys")}
    tree[start.ROOT_BLOCKS[1:]] = file(str(blocks).encode())
    source = Path(start.__file__).read_bytes()
    tree["init"] = file(f"#!/{PYTHON} -ISB\n".encode() + source, executable=True)
    return tree


def kernel_of(parts: Tree) -> bytes:
    """InvalidImage where the parts have none, or several."""
    found = [entry for name, entry in parts.items() if _KERNEL.fullmatch(name)]
    if len(found) != 1:
        raise InvalidImage("The lock file has to name exactly one kernel; take the one of the release.")
    return found[0].read()
