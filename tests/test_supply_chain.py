"""What a release is made of: pinned wheels, a bill of materials, an offline installation, the same bytes twice."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.version import Version
from sigstore.dsse._predicate import SLSAPredicateV1_0
from tools import wheel_hashes
from tools.build_release import build
from tools.provenance import predicate
from tools.sbom import bill
from tools.wheel_hashes import hashes, lines, pins, requirements

ROOT = Path(__file__).parents[1]
PYPI = {name: value for name, value in os.environ.items() if not name.startswith("PIP_FIND_LINKS")}
PYPI["PIP_CONFIG_FILE"] = os.devnull  # no wheels of this machine's own


def test_every_pin_has_the_hash_of_its_wheel() -> None:
    pinned = {(name, str(Version(version))) for name, version in pins().items()}
    assert hashes().keys() == pinned, "run make hashes"
    assert len(pinned) > 100


@pytest.mark.parametrize(
    ("url", "fits"),
    [
        ("https://files/a-1.0-py3-none-any.whl", True),
        ("https://files/a-1.0-cp311-cp311-manylinux_2_27_x86_64.manylinux_2_28_x86_64.whl", True),
        ("https://files/a-1.0-cp39-abi3-manylinux_2_28_x86_64.whl", True),
        ("https://files/a-1.0-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("https://files/a-1.0-cp311-cp311-manylinux_2_28_aarch64.whl", False),
        ("https://files/a-1.0-cp311-cp311-win_amd64.whl", False),
        ("https://files/a-1.0.tar.gz", False),
    ],
    ids=range(7),
)
def test_only_wheels_of_the_platform_are_taken(url: str, fits: bool) -> None:
    entry = {"download_info": {"url": url, "archive_info": {"hashes": {"sha256": "0" * 64}}}}
    if fits:
        assert list(lines({"install": [entry]})) == [f"a==1.0 --hash=sha256:{'0' * 64}\n"]
        return
    with pytest.raises(ValueError, match=r"a-1\.0"):
        list(lines({"install": [entry]}))


def test_a_wheel_that_is_not_the_pinned_one_is_no_requirement(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "confide-0.1.0-py3-none-any.whl").write_bytes(b"ours")
    (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(b"a")
    digest = hashlib.sha256(b"a").hexdigest()
    monkeypatch.setattr(wheel_hashes, "hashes", lambda: {("a", "1.0"): digest})
    assert list(requirements(tmp_path)) == [
        f"a==1.0 --hash=sha256:{digest}\n",
        f"confide==0.1.0 --hash=sha256:{hashlib.sha256(b'ours').hexdigest()}\n",
    ]
    (tmp_path / "a-1.0-py3-none-any.whl").write_bytes(b"b")
    with pytest.raises(ValueError, match="not the wheel"):
        list(requirements(tmp_path))


def test_the_bill_of_materials() -> None:
    """It is checked against CycloneDX's schema where it is made; here, that it says what is so."""
    document = json.loads(bill())
    found = {component["name"]: component for component in document["components"]}
    assert found["httpx"]["scope"] == "required"
    assert found["transformers"]["scope"] == "optional"
    assert "pytest" not in found
    typer = found["typer"]
    assert typer["licenses"] == [{"license": {"id": "MIT"}}]
    assert typer["hashes"] == [{"alg": "SHA-256", "content": hashes()["typer", typer["version"]]}]
    requires = {one["ref"]: one.get("dependsOn", []) for one in document["dependencies"]}
    assert found["rich"]["purl"] in requires[typer["purl"]]
    assert typer["purl"] in requires[document["metadata"]["component"]["purl"]]
    assert "timestamp" not in document["metadata"]


@pytest.mark.slow
def test_the_bill_is_the_same_bytes_again(tmp_path: Path) -> None:
    made = []
    for seed in ("1", "2"):
        file = tmp_path / seed
        environment = os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}/src:{ROOT}"}
        subprocess.run([sys.executable, ROOT / "tools" / "sbom.py", file], env=environment, check=True)
        made.append(file.read_bytes())
    assert made[0] == made[1]


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_a_build_is_the_same_bytes_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build(tmp_path / "first")
    monkeypatch.setenv("TZ", "Pacific/Kiritimati")
    monkeypatch.setenv("PYTHONHASHSEED", "7")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "elsewhere"))
    before = os.umask(0o077)
    try:
        second = build(tmp_path / "second")
    finally:
        os.umask(before)
    for one, other in zip(first, second, strict=True):
        assert one.name == other.name
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0 or not shutil.which("unshare"), reason="needs root, for a network namespace")
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="needs the repository")
def test_it_is_installed_where_there_is_no_network(tmp_path: Path) -> None:
    """The recipe of docs/release.md, for the client: every wheel by its hash, in a namespace without an interface."""
    _, wheel = build(tmp_path / "dist")
    wheels = tmp_path / "wheels"
    fetch = [sys.executable, "-m", "pip", "download", "--quiet", "--only-binary", ":all:"]
    fetch += ["--constraint", ROOT / "constraints.txt", "--dest", wheels, wheel]
    if subprocess.run(fetch, env=PYPI, check=False).returncode:
        pytest.skip("the wheels cannot be had from here")
    (tmp_path / "requirements.txt").write_text("".join(requirements(wheels)))
    install = """
        set -e
        [ "$(tail -n +3 /proc/net/dev | cut -d: -f1 | tr -d ' ')" = lo ]  # and that is down
        there/bin/python -m pip install --quiet --no-index --find-links wheels --no-deps --require-hashes \\
            --force-reinstall --requirement requirements.txt
    """
    environment = PYPI | {"CONFIDE_HOME": str(tmp_path), "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    environment.pop("PYTHONPATH", None)

    def run(script: str) -> subprocess.CompletedProcess[str]:
        inside = ["unshare", "--net", "bash", "-c", script]
        return subprocess.run(inside, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)

    done = run(
        f"python -m venv there; {install} there/bin/python -m pip check; there/bin/confide config show chat --json"
    )
    assert done.returncode == 0, done.stderr
    assert "No broken requirements" in done.stdout
    assert json.loads(done.stdout.splitlines()[-1])["services"]["chat"]
    # A wheel that was changed on the way is not installed.
    changed = next(wheels.glob("httpx-*.whl"))
    changed.write_bytes(changed.read_bytes() + b"\0")
    done = run(install)
    assert done.returncode != 0
    assert "DO NOT MATCH THE HASHES" in done.stderr


def test_a_release_says_which_commit_it_was_built_from(tmp_path: Path) -> None:
    """In the form that `sigstore attest` takes, which has its own model of it."""

    def git(*arguments: str) -> str:
        own = (
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example",
            "-c",
            "tag.gpgsign=false",
            "-c",
            "commit.gpgsign=false",
        )
        command = ("git", "-C", str(tmp_path), *own, *arguments)
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    git("init", "--quiet")
    (tmp_path / "file").write_text("one")
    git("add", "file")
    git("commit", "--quiet", "--message", "first")
    with pytest.raises(ValueError, match="Check out the tag"):
        predicate("https://git.example/confide", tmp_path)
    git("tag", "v1.0.0")
    made = predicate("https://git.example/confide", tmp_path)
    read = SLSAPredicateV1_0.model_validate(json.loads(json.dumps(made)))
    (source,) = read.build_definition.resolved_dependencies or ()
    assert source.uri == "git+https://git.example/confide@refs/tags/v1.0.0"
    assert source.digest is not None
    assert source.digest.root == {"gitCommit": git("rev-parse", "HEAD")}
    (tmp_path / "file").write_text("two")
    with pytest.raises(ValueError, match="in no commit"):
        predicate("https://git.example/confide", tmp_path)
