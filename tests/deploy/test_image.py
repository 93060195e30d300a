"""A machine's image: what it is made of, what is in it, and what its first programs take. Booted in test_image_boot."""

import hashlib
import io
import json
import os
import random
import shutil
import stat
import struct
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from ipaddress import IPv4Address
from pathlib import Path

import pytest
from tests.deploy.test_targets import SERVICE
from tests.enclave.serving import eventually
from tests.owners import OWNER

from confide.deploy.image import build, dhcp, enclave, machine, start
from confide.deploy.image.dhcp import Kind, Lease, Question
from confide.deploy.image.lock import MAX_BYTES, Lock
from confide.deploy.image.modules import Modules, depends
from confide.deploy.image.trees import Entry, Tree, file, folder, tree_of, write_cpio, write_tar
from confide.errors import DeployError, InvalidImage
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.manifest import WeightsFormat
from confide.packages.sealed.write import Contents, seal_model

LOCK = Path(__file__).parents[2] / "packaging" / "image.lock"
ROOT_HASH = "5c" * 32


def digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


# -- the lock file -----------------------------------------------------------------------------------------------------

LINES = (
    f"# made\n\ndeb libc6=2.36-9+deb12u13 sha256:{digest(b'c')}\nwheel numpy==2.4.6 sha256:{digest(b'numpy')}\n"
).encode()


def test_a_lock_is_read() -> None:
    lock = Lock.read(LINES)
    assert dict(lock.debs) == {"libc6=2.36-9+deb12u13": digest(b"c")}
    assert dict(lock.wheels) == {"numpy==2.4.6": digest(b"numpy")}


@pytest.mark.parametrize(
    ("raw", "said"),
    [
        (LINES + b"rpm a=1 sha256:" + b"0" * 64, "Line 5 .* another form"),
        (LINES + b"deb ../a=1 sha256:" + b"0" * 64, "another form"),
        (LINES + b"deb a=1 sha256:" + b"0" * 63, "another form"),
        (LINES + b"deb a=1 sha256:" + b"0" * 64 + b"\r", "another form"),
        (LINES + b"deb libc6=2 sha256:" + b"0" * 64, "libc6 again"),
        (LINES + "# \u00e9".encode(), "not ASCII"),
        (b"#" * (MAX_BYTES + 1), "at most 1 MiB"),
    ],
    ids=("kind", "path", "short", "return", "twice", "ascii", "large"),
)
def test_another_lock_is_refused(raw: bytes, said: str) -> None:
    with pytest.raises(InvalidImage, match=said):
        Lock.read(raw)


def test_files_are_found_by_their_digest_alone(tmp_path: Path) -> None:
    lock = Lock.read(LINES)
    (tmp_path / "another.deb").write_bytes(b"c")
    (tmp_path / "numpy-2.4.6.whl").write_bytes(b"changed")
    with pytest.raises(DeployError, match=r"lacks 1 of 2 .*numpy==2\.4\.6"):
        lock.find(tmp_path)
    (tmp_path / "numpy-2.4.6.whl").write_bytes(b"numpy")
    assert lock.find(tmp_path)["libc6=2.36-9+deb12u13"] == tmp_path / "another.deb"
    with pytest.raises(DeployError, match="cannot be read"):
        lock.find(tmp_path / "absent")


def test_the_lock_of_the_release_names_pinned_wheels_and_one_kernel() -> None:
    lock = Lock.read(LOCK.read_bytes())
    wheels = LOCK.with_name("wheels-cp311-linux-x86_64.txt").read_text()
    for name, sha256 in lock.wheels.items():
        assert f"\n{name} --hash=sha256:{sha256}\n" in wheels
    assert sum(name.startswith("linux-image-") for name in lock.debs) == 1


LINKED = {
    "_bz2": "libbz2-1.0",
    "_ctypes": "libffi8",
    "_elementtree": "libexpat1",
    "_hashlib": "libssl3",
    "_lzma": "liblzma5",
    "_sqlite3": "libsqlite3-0",
    "_ssl": "libssl3",
    "_uuid": "libuuid1",
    "pyexpat": "libexpat1",
    "zlib": "zlib1g",
}
"""Debian's package of the library that a module of Python's own is linked to."""
UNMET = {"_crypt", "_curses", "_curses_panel", "_dbm", "_gdbm", "_tkinter", "nis", "readline"}
"""Modules that are linked to libraries which no image has."""
LOADED = """
import pkgutil, sys
from importlib import import_module
for name in ("channel", "disk", "enclave", "ledger", "net", "packages"):
    package = import_module(f"confide.{name}")
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        import_module(module.name)
print(*sys.modules)
"""


def test_the_lock_has_the_libraries_of_what_serving_imports() -> None:
    """Or the machine would start, and its service end."""
    done = subprocess.run([sys.executable, "-c", LOADED], capture_output=True, text=True, check=True, timeout=900)
    loaded, debs = set(done.stdout.split()), {deb.partition("=")[0] for deb in Lock.read(LOCK.read_bytes()).debs}
    assert "_sqlite3" in loaded
    assert not loaded & UNMET
    assert {LINKED[name] for name in loaded & LINKED.keys()} <= debs


# -- trees and archives ------------------------------------------------------------------------------------------------

TREE: Tree = {
    "usr/bin/a": file(b"abc", executable=True),
    "etc/b": file(b"b" * 5),
    "link": Entry(stat.S_IFLNK, target="usr/bin/a"),
}


def newc(raw: bytes) -> list[tuple[str, int, bytes, tuple[int, ...]]]:
    """Names, modes, contents, and the fields that must be nobody's, of an archive for Linux."""
    found, at = [], 0
    while True:
        assert raw[at : at + 6] == b"070701"
        fields = [int(raw[at + 6 + 8 * index : at + 14 + 8 * index], 16) for index in range(13)]
        name = raw[at + 110 : at + 110 + fields[11] - 1].decode()
        at += -(-(110 + fields[11]) // 4) * 4
        content = raw[at : at + fields[6]]
        at += -(-fields[6] // 4) * 4
        if name == "TRAILER!!!":
            assert at == len(raw)
            return found
        found.append((name, fields[1], content, (*fields[2:4], fields[5], *fields[7:11])))


@pytest.fixture(params=("as it is", "as another has it"))
def on_disk(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """TREE, with other times, modes and order the second time."""
    other = request.param != "as it is"
    place = tmp_path / "tree"
    for name in sorted(TREE, reverse=other):
        entry, path = TREE[name], place / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if entry.kind == stat.S_IFLNK:
            path.symlink_to(entry.target)
            continue
        path.write_bytes(entry.read())
        path.chmod((0o700 if other else 0o755) if entry.executable else (0o600 if other else 0o644))
        os.utime(path, (1, 1) if other else (2, 2))
    return place


def test_an_archive_has_nothing_of_the_machine_it_was_made_on(on_disk: Path) -> None:
    packed, tarred = io.BytesIO(), io.BytesIO()
    write_cpio(tree_of(on_disk), packed)
    assert newc(packed.getvalue()) == [
        ("etc", 0o40755, b"", (0,) * 7),
        ("etc/b", 0o100644, b"bbbbb", (0,) * 7),
        ("link", 0o120777, b"usr/bin/a", (0,) * 7),
        ("usr", 0o40755, b"", (0,) * 7),
        ("usr/bin", 0o40755, b"", (0,) * 7),
        ("usr/bin/a", 0o100755, b"abc", (0,) * 7),
    ]
    write_tar(tree_of(on_disk), tarred)
    tarred.seek(0)
    with tarfile.open(fileobj=tarred) as archive:
        members = {one.name: one for one in archive}
        assert archive.extractfile("usr/bin/a").read() == b"abc"  # type: ignore[union-attr]
    assert list(members) == ["etc", "etc/b", "link", "usr", "usr/bin", "usr/bin/a"]
    assert {(one.uid, one.gid, one.mtime, one.uname) for one in members.values()} == {(0, 0, 0, "")}
    assert [members[name].mode for name in ("etc", "etc/b", "usr/bin/a")] == [0o755, 0o644, 0o755]
    assert members["link"].linkname == "usr/bin/a"


def test_a_pipe_is_no_part_of_an_image(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InvalidImage, match="pipe is no file"):
        tree_of(tmp_path)


# -- the kernel's modules ----------------------------------------------------------------------------------------------


def module(needs: str) -> bytes:
    return b"\x7fELF...\0license=GPL\0depends=" + needs.encode() + b"\0name=x\0"


KERNEL: Tree = {
    "lib/modules/6.12/modules.builtin": file(b"kernel/lib/virtio-ring.ko\n"),
    "lib/modules/6.12/kernel/drivers/md/dm-verity.ko": file(module("dm-bufio,dm-mod")),
    "lib/modules/6.12/kernel/drivers/md/dm-bufio.ko": file(module("dm-mod")),
    "lib/modules/6.12/kernel/drivers/md/dm-mod.ko": file(module("virtio_ring")),
    "lib/modules/6.12/kernel/drivers/round.ko": file(module("round")),
}


def test_what_a_module_depends_on_is_loaded_before_it() -> None:
    modules = Modules(KERNEL)
    assert list(modules.in_order(["dm_verity", "dm_mod"])) == ["dm_mod", "dm_bufio", "dm_verity"]
    assert list(modules.in_order(["dm_verity"], ["dm_mod"])) == ["dm_bufio", "dm_verity"]
    assert list(modules.in_order(["virtio_ring", "round"])) == ["round"]
    with pytest.raises(InvalidImage, match="no module tdx_guest"):
        modules.in_order(["tdx_guest"])


@pytest.mark.parametrize("content", [b"", module("") + module("")], ids=("none", "two"))
def test_a_module_that_does_not_say_what_it_needs(content: bytes) -> None:
    with pytest.raises(InvalidImage, match="does not say"):
        depends(content)


def test_one_kernel() -> None:
    with pytest.raises(InvalidImage, match="exactly one kernel"):
        Modules({**KERNEL, "lib/modules/6.1/modules.builtin": file(b"")})
    with pytest.raises(InvalidImage, match="exactly one kernel"):
        build.kernel_of({})


# -- what is in it -----------------------------------------------------------------------------------------------------


def recipe(tmp_path: Path) -> build.Recipe:
    return build.Recipe(SERVICE, Lock.read(LINES), tmp_path, tmp_path / "confide.whl", b"PEM")


PARTS: Tree = {
    **KERNEL,
    "boot/vmlinuz-6.12": file(b"kernel"),
    "bin/sh": file(b"shell", executable=True),
    "usr/sbin/sshd": file(b"ssh", executable=True),
    "usr/local/bin/pip": file(b"pip", executable=True),
    "usr/bin/python3.11": file(b"python", executable=True),
    "usr/lib/python3.11/os.py": file(b"os"),
    "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311.so": file(b"ctypes"),
    "usr/lib/python3.11/lib-dynload/_ssl.cpython-311.so": file(b"ssl"),
    "lib/x86_64-linux-gnu/libc.so.6": file(b"c"),
    "usr/lib/x86_64-linux-gnu/libssl.so.3": file(b"ssl"),
    "etc/machine-id": file(b"id"),
    "var/log/dpkg.log": file(b"log"),
    "usr/share/doc/a": file(b"words"),
}


def test_the_root_has_one_program_and_no_shell(tmp_path: Path) -> None:
    package = build.Verity("ab" * 32, 7)
    tree = build.root_tree(PARTS, recipe(tmp_path), package)
    assert {name for name, entry in tree.items() if entry.executable} == {"usr/bin/python3.11"}
    assert not {name for name in tree if name.startswith(("boot", "lib/modules", "usr/share", "var"))}
    assert {name for name in tree if name.startswith("etc/")} == {
        *("etc/confide/machine.json", "etc/confide/keys-ca.pem", "etc/group", "etc/hosts", "etc/nsswitch.conf"),
        *("etc/passwd", "etc/resolv.conf"),
    }
    told = json.loads(tree["etc/confide/machine.json"].read())
    assert told["package"] == {"path": "/package", "root_hash": "ab" * 32, "blocks": 7}
    assert told["command"][:4] == ["/usr/bin/python3.11", "-I", "-m", "confide"]
    assert told["command"][4:] == [*SERVICE.command("")[1:], "--keys-ca", "/etc/confide/keys-ca.pem"]
    assert "/package" in told["command"]
    assert tree["package"] == folder()


def test_a_simulated_machine_says_so(tmp_path: Path) -> None:
    (tmp_path / "tee").mkdir()
    (tmp_path / "tee/root.pem").write_bytes(b"root")
    made = replace(recipe(tmp_path), simulated_tee=tmp_path / "tee")
    assert made.command[-4:] == ("--tee", "simulated", "--simulated-tee", "/etc/confide/simulated-tee")
    tree = build.root_tree(PARTS, made, build.Verity("ab" * 32, 7))
    assert tree["etc/confide/simulated-tee/root.pem"].read() == b"root"
    assert "simulated" not in " ".join(recipe(tmp_path).command)


def test_the_initial_ram_disk_has_what_opens_the_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "NEEDED", ("dm_verity",))
    monkeypatch.setattr(build, "OFFERED", ("round", "dm_mod"))
    tree = build.initrd_tree(PARTS, 12)
    assert {name for name, entry in tree.items() if entry.kind == stat.S_IFREG} == {
        *("init", "root.blocks", "usr/bin/python3.11", "usr/lib/python3.11/os.py", "lib/x86_64-linux-gnu/libc.so.6"),
        "usr/lib/python3.11/lib-dynload/_ctypes.cpython-311.so",
        *("modules/needed/000-dm_mod.ko", "modules/needed/001-dm_bufio.ko", "modules/needed/002-dm_verity.ko"),
        "modules/offered/000-round.ko",
    }
    assert tree["root.blocks"].read() == b"12"
    assert tree["init"].executable
    assert tree["init"].read() == b"#!/usr/bin/python3.11 -ISB\n" + Path(start.__file__).read_bytes()


def test_the_first_program_needs_the_standard_library_alone() -> None:
    """And runs without `site`, as in the initial RAM disk; it ends, for this is not the first program."""
    source = Path(start.__file__)
    ended = subprocess.run(
        [sys.executable, "-ISBc", f"import runpy; runpy.run_path({str(source)!r})"], capture_output=True, check=False
    )
    assert (ended.returncode, ended.stderr) == (0, b"")


@pytest.fixture
def package(tmp_path: Path) -> Path:
    (tmp_path / "one.gguf").write_bytes(b"weights")
    contents = Contents("made-up", "none", WeightsFormat.GGUF, "f16", {"one.gguf": tmp_path / "one.gguf"})
    seal_model(contents, tmp_path / "sealed", key=ModelKey(b"k" * 32), owner=OWNER)
    return tmp_path / "sealed"


def test_what_else_lies_in_a_packages_folder_is_left_out(package: Path) -> None:
    (package / ".model.key").write_bytes(b"secret")
    (package / "state").mkdir()
    (package / "state/one").write_bytes(b"state")
    assert sorted(build.package_tree(package)) == sorted(["manifest.json", "one.gguf.sealed", "signature.json"])


def wheel(path: Path, *names: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name in names:
            archive.writestr(name, name)
    return path


def test_a_wheel_is_unpacked_without_its_programs(tmp_path: Path) -> None:
    made = wheel(tmp_path / "a.whl", "a/b.py", "a-1.data/purelib/c.py", "a-1.data/scripts/d", "a-1.dist-info/RECORD")
    build.unpack_wheel(made, tmp_path / "there")
    assert {name for name, entry in tree_of(tmp_path / "there").items() if entry.kind == stat.S_IFREG} == {
        *("a/b.py", "c.py", "a-1.dist-info/RECORD"),
    }


@pytest.mark.parametrize("name", ["../a", "/a", "a/../../b"], ids=("up", "absolute", "within"))
def test_a_wheel_that_writes_elsewhere_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(InvalidImage, match="is no wheel"):
        build.unpack_wheel(wheel(tmp_path / "a.whl", name), tmp_path / "there")
    (tmp_path / "b.whl").write_bytes(b"no archive")
    with pytest.raises(InvalidImage, match="is no wheel"):
        build.unpack_wheel(tmp_path / "b.whl", tmp_path / "there")


def test_what_is_missing_is_named(package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name, path: None if name == "veritysetup" else f"/usr/bin/{name}")
    with pytest.raises(DeployError, match="apt-get install cryptsetup-bin"):
        build.build(recipe(tmp_path), package, tmp_path / "out")
    monkeypatch.setattr(shutil, "which", lambda name, path: f"/usr/bin/{name}")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/there").touch()
    with pytest.raises(DeployError, match="not empty"):
        build.build(recipe(tmp_path), package, tmp_path / "out")
    with pytest.raises(DeployError, match="lacks 2 of 2"):
        build.build(recipe(tmp_path), package, tmp_path / "new")


def test_a_program_that_fails_is_told_of() -> None:
    with pytest.raises(DeployError, match=r"ends with 3 \(no \S+\); see"):
        build.run(sys.executable, "-c", "print('no \\x1bescape'); raise SystemExit(3)")
    with pytest.raises(DeployError, match="ends with 1"):
        build.run("false", given={"a": file(b"a" * (1 << 20))})  # which reads nothing of it


def test_byte_code_has_no_times_and_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor that of the compiler itself, which is why it writes none of its own. Twice, test_image_boot compares."""
    ran: list[tuple[object, ...]] = []
    monkeypatch.setattr(build, "run", lambda *words, environment: ran.append((environment, *map(str, words))))
    build.compile_all(tmp_path)
    ((environment, linker, *words),) = ran
    assert environment == {"PYTHONHASHSEED": "0", "LANG": "C.UTF-8"}
    assert str(linker).startswith(str(tmp_path))
    assert "-B" in words[: words.index("-m")]
    assert words[words.index("--invalidation-mode") + 1] == "unchecked-hash"
    assert f"-s {tmp_path} -p / " in " ".join(map(str, words))


# -- dm-verity ---------------------------------------------------------------------------------------------------------


def root_hash_of(data: bytes) -> tuple[str, bytes]:
    """By Linux's description of the format: hashes of blocks in blocks, level by level, the top one first."""
    levels = []
    level = data
    while len(level) > 4096 or not levels:
        hashes = b"".join(hashlib.sha256(level[at : at + 4096]).digest() for at in range(0, len(level), 4096))
        level = hashes.ljust(-(-len(hashes) // 4096) * 4096, b"\0")
        levels.append(level)
    return digest(level), b"".join(reversed(levels))


def test_what_veritysetup_writes_is_what_the_first_program_asks_for(tmp_path: Path) -> None:
    try:
        veritysetup = build.tool("veritysetup")
    except DeployError:
        pytest.skip("veritysetup is not there")
    data = random.Random(1).randbytes(4096 * 200)
    disk = tmp_path / "disk"
    disk.write_bytes(data)
    printed = build.run(veritysetup, "format", *build.verity_arguments(200), disk, disk)
    expected, tree = root_hash_of(data)
    assert expected in printed
    assert disk.read_bytes() == data + tree  # so hashes begin at block 200, with no header
    assert start.verity_table("/dev/vda", expected, 200).split()[3:10] == [
        *("4096", "4096", "200", "200", "sha256", expected, "-"),
    ]


def test_a_disk_is_the_same_bytes_from_other_files(on_disk: Path, tmp_path: Path) -> None:
    """TREE, wherever and however it lies: a file system of root's, of the year 1970."""
    try:
        for program in ("mksquashfs", "veritysetup"):
            build.tool(program)
    except DeployError as error:
        pytest.skip(str(error))
    assert build.write_disk(tree_of(on_disk), tmp_path / "disk") == build.write_disk(TREE, tmp_path / "again")
    assert (tmp_path / "disk").read_bytes() == (tmp_path / "again").read_bytes()
    assert b"bbbbb" in (tmp_path / "disk").read_bytes()  # not compressed


def test_a_changed_block_stops_the_machine() -> None:
    assert start.verity_table("/dev/vda", ROOT_HASH, 200) == (
        f"1 /dev/vda /dev/vda 4096 4096 200 200 sha256 {ROOT_HASH} - 1 panic_on_corruption"
    )


def test_a_request_to_the_device_mapper() -> None:
    """Offsets of struct dm_ioctl and struct dm_target_spec in linux/dm-ioctl.h."""
    raw = bytes(start.dm_request("root", table="1 a", sectors=1600))
    assert struct.unpack_from("=3I3Ii2I", raw) == (4, 0, 0, len(raw), 312, 1, 0, 1, 0)
    assert raw[48:176].rstrip(b"\0") == b"root"
    assert struct.unpack_from("=QQiI", raw, 312) == (0, 1600, 0, 48)
    assert raw[336:352].rstrip(b"\0") == b"verity"
    assert raw[352:] == b"1 a\0\0\0\0\0"
    assert len(start.dm_request("root")) == 312
    assert struct.unpack_from("=I", start.dm_request("root"), 20) == (0,)


@pytest.mark.parametrize(
    "line",
    ["ro", f"ro roothash={ROOT_HASH} roothash={ROOT_HASH}", "roothash=5c", f"roothash={ROOT_HASH[:-1]}Z", "roothash="],
    ids=("none", "two", "short", "letters", "empty"),
)
def test_without_one_root_hash_there_is_no_machine(line: str) -> None:
    with pytest.raises(SystemExit, match="no single roothash="):
        start.root_hash_of(line)


def test_the_command_line_of_the_targets_is_the_one_that_is_read() -> None:
    from confide.deploy.targets import command_line

    assert start.root_hash_of(command_line(ROOT_HASH) + "\n") == ROOT_HASH


def test_a_disk_is_found_by_its_serial_number(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, serial in (("vda", "package"), ("vdb", "root\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "serial").write_text(serial)
    assert start.disk("root", tmp_path) == "/dev/vdb"
    monkeypatch.setattr(start, "SECONDS", -1.0)
    with pytest.raises(SystemExit, match="no disk"):
        start.disk("other", tmp_path)


# -- the two programs --------------------------------------------------------------------------------------------------


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """What the programs would have the kernel do, which it must not do here."""
    made: list[tuple[object, ...]] = []

    def note(name: str, answer: object = None) -> Callable[..., object]:
        def noted(*arguments: object, **_: object) -> object:
            made.append((name, *arguments))
            return answer

        return noted

    for module in (start, machine):
        monkeypatch.setattr(module, "mount", note("mount"))
        monkeypatch.setattr(module, "open_verity", note("verity", "/dev/dm-7"))
        monkeypatch.setattr(module, "disk", lambda serial: f"/dev/{serial}")
    monkeypatch.setattr(start, "load_modules", note("modules"))
    for name in ("chdir", "chroot", "execve", "makedirs"):
        monkeypatch.setattr(os, name, note(name))
    return made


def test_the_first_program_goes_to_the_root_that_it_was_told(
    calls: list[tuple[object, ...]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, text in (("COMMAND_LINE", f"ro roothash={ROOT_HASH} HOME=/\n"), ("ROOT_BLOCKS", "12")):
        (tmp_path / name).write_text(text)
        monkeypatch.setattr(start, name, str(tmp_path / name))
    start.main()
    moved = [("mount", place, f"/root{place}", "", start.MS_MOVE) for place in ("/dev", "/proc", "/sys")]
    guarded = start.MS_RDONLY | start.MS_NODEV | start.MS_NOSUID
    assert calls[4:] == [
        ("verity", "root", "/dev/root", ROOT_HASH, 12),
        ("mount", "/dev/dm-7", "/root", "squashfs", guarded),
        *moved,
        ("chdir", "/root"),
        ("mount", ".", "/", "", start.MS_MOVE),
        ("chroot", "."),
        ("execve", start.NEXT[0], start.NEXT, {}),
    ]
    calls.clear()
    (tmp_path / "COMMAND_LINE").write_text("ro")
    with pytest.raises(SystemExit):
        start.main()
    assert {one[0] for one in calls} == {"mount"}
    assert len(calls) == 3


def test_the_second_mounts_and_then_locks_the_kernel(calls: list[tuple[object, ...]], tmp_path: Path) -> None:
    machine.prepare({"path": "/package", "root_hash": ROOT_HASH, "blocks": 7}, tmp_path)
    assert ("verity", "package", "/dev/package", ROOT_HASH, 7) in calls
    guarded = start.MS_RDONLY | start.MS_NOSUID | start.MS_NODEV | start.MS_NOEXEC
    assert calls[-1] == ("mount", "/dev/dm-7", "/package", "squashfs", guarded)
    assert {one[1] for one in calls if one[0] == "mount"} == {"tmpfs", "configfs", "/dev/dm-7"}
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        **{"sysrq": "0", "modules_disabled": "1"},
        **{"kexec_load_disabled": "1", "unprivileged_bpf_disabled": "1"},
    }


# -- the network -------------------------------------------------------------------------------------------------------

QUESTION = Question(bytes.fromhex("525400123456"), 0x01020304)
OPTIONS = {
    1: bytes((255, 255, 255, 0)),
    3: bytes((10, 0, 2, 2)),
    6: bytes((10, 0, 2, 3)) + bytes((10, 0, 2, 4)),
    51: struct.pack("!I", 86400),
    53: bytes((Kind.ACK,)),
    54: bytes((10, 0, 2, 2)),
}
LEASE = Lease(
    IPv4Address("10.0.2.15"),
    IPv4Address("255.255.255.0"),
    IPv4Address("10.0.2.2"),
    (IPv4Address("10.0.2.3"), IPv4Address("10.0.2.4")),
    bytes((10, 0, 2, 2)),
    86400,
)


def answer(
    changes: dict[int, bytes | None] | None = None, at: dict[int, bytes] | None = None, end: bytes = b"\xff"
) -> bytes:
    """An answer by RFC 2131, figure 1. at: bytes at other offsets than options."""
    head = bytearray(240)
    head[0], head[1], head[2] = 2, 1, 6
    head[4:8], head[16:20], head[28:34] = b"\1\2\3\4", bytes((10, 0, 2, 15)), QUESTION.hardware
    head[236:] = bytes((99, 130, 83, 99))
    for offset, value in (at or {}).items():
        head[offset : offset + len(value)] = value
    options = {code: value for code, value in (OPTIONS | (changes or {})).items() if value is not None}
    return bytes(head) + b"\0\0" + b"".join(bytes((code, len(value))) + value for code, value in options.items()) + end


def test_a_lease() -> None:
    assert QUESTION.answer(answer(), Kind.ACK) == LEASE
    alone = QUESTION.answer(answer({3: None, 6: None}), Kind.ACK)
    assert alone == replace(LEASE, router=None, nameservers=())


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        answer(at={0: b"\1"}),
        answer(at={4: b"\4"}),
        answer(at={28: b"\0"}),
        answer(at={236: b"\0"}),
        answer(at={16: bytes(4)}),
        answer(at={16: bytes((127, 0, 0, 1))}),
        answer({53: bytes((Kind.OFFER,))}),
        answer({53: None}),
        answer({1: bytes((255, 0, 255, 0))}),
        answer({1: bytes((0, 0, 0, 255))}),
        answer({1: bytes(3)}),
        answer({3: bytes(2)}),
        answer({6: bytes(5)}),
        answer({51: bytes(3)}),
        answer({54: None}),
        answer(end=b""),
        answer(end=b"\x0c\xff"),
        answer(end=b"\xff" + bytes(1500)),
    ],
    ids=range(19),
)
def test_what_is_no_whole_answer_to_this_question_is_passed_over(raw: bytes) -> None:
    assert QUESTION.answer(raw, Kind.ACK) is None


def test_a_question() -> None:
    raw = QUESTION.ask(Kind.REQUEST, LEASE)
    assert raw[:12] == b"\1\1\6\0\1\2\3\4\0\0\x80\0"
    assert raw[28:34] == QUESTION.hardware
    assert raw[236:] == b"\x63\x82\x53\x63\x35\1\3\x37\4\1\3\6\x33\x32\4\x0a\0\2\x0f\x36\4\x0a\0\2\2\xff"
    assert b"\x32\4" not in QUESTION.ask(Kind.DISCOVER)


def test_an_address_that_was_granted_stays(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    """Nobody answers, or another address is granted: the machine goes on with its own."""
    used: list[Lease] = []
    granted: list[Lease | None] = [LEASE, None, replace(LEASE, address=IPv4Address("10.0.2.99")), LEASE]
    monkeypatch.setattr(machine, "use", lambda interface, lease: used.append(lease))
    monkeypatch.setattr(dhcp, "obtain", lambda *_: granted.pop(0))
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert machine.renewed("eth0", b"", None) == (LEASE, 1000.0 + 43200)
    assert machine.renewed("eth0", b"", LEASE) == (LEASE, 1060.0)
    assert machine.renewed("eth0", b"", LEASE)[0] == LEASE
    assert machine.renewed("eth0", b"", LEASE)[0] == LEASE
    assert used == [LEASE, LEASE]
    assert "nobody grants the address" in capfd.readouterr().err


def test_an_address_that_the_kernel_does_not_take(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Such as with a router in another network: asked again, and no end of the machine."""

    def refuse(interface: str, lease: Lease) -> None:
        raise OSError(101, "Network is unreachable")

    monkeypatch.setattr(machine, "use", refuse)
    monkeypatch.setattr(dhcp, "obtain", lambda *_: LEASE)
    monkeypatch.setattr("time.monotonic", lambda: 1000.0)
    assert machine.renewed("eth0", b"", None) == (None, 1060.0)
    assert "10.0.2.15 cannot be used (Network is unreachable)" in capfd.readouterr().err


# -- the service's rights ----------------------------------------------------------------------------------------------

RIGHTS = """
import os, resource
from confide.deploy.image import machine
machine.give_up_rights()
words = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(*[words[one].split()[0] for one in ('Uid', 'CapPrm', 'CapEff', 'CapBnd', 'CapAmb', 'NoNewPrivs')])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to give it up")
def test_the_service_keeps_one_capability() -> None:
    environment = {"PYTHONPATH": str(Path(build.__file__).parents[3])}
    ended = subprocess.run(
        [sys.executable, "-c", RIGHTS], env=environment, capture_output=True, text=True, check=True, cwd="/"
    )
    assert ended.stdout.split() == ["65534", *["0000000000000002"] * 4, "1"]


# -- an enclave's program ----------------------------------------------------------------------------------------------

KEPT = """
import sys
from confide.deploy.image import enclave, machine
machine.give_up_rights, machine.AGAIN_SECONDS = lambda: None, 0.05
enclave.settle = lambda kernel: None
enclave.main()
"""


def test_an_enclave_s_service_is_started_again(tmp_path: Path) -> None:
    """Every time that it ends, with an environment that is nobody's to choose."""
    noted = tmp_path / "noted"
    words = ("/bin/sh", "-c", f'echo "$HOME $LANG ${{SECRET-none}}" >> {noted}; exit 3')
    environment = {"PYTHONPATH": str(Path(build.__file__).parents[3]), "SECRET": "a"}
    command = [sys.executable, "-c", KEPT, *words]
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, cwd="/") as running:
        try:
            eventually(lambda: noted.exists() and len(noted.read_text().splitlines()) >= 2)
        finally:
            running.kill()
        assert running.stderr is not None
        assert "confide: the service ended with 3; it is started again" in running.stderr.read()
    assert set(noted.read_text().splitlines()) == {"/tmp C.UTF-8 none"}  # noqa: S108


def test_an_enclave_s_kernel_is_locked_as_far_as_it_can_be(tmp_path: Path) -> None:
    for name in ("sysrq", "modules_disabled"):
        (tmp_path / name).write_text("?")
    enclave.settle(tmp_path)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"sysrq": "0", "modules_disabled": "1"}


def test_a_service_that_is_not_wanted_yet_is_not_started(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[object] = []
    monkeypatch.setattr(machine, "start", lambda command: started.append(command) or 7)
    service = machine.Kept(("a", "b"))
    service.tend(wanted=False)
    assert started == []
    for _ in range(2):
        service.tend()
    assert started == [("a", "b")]
