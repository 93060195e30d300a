"""A client's installation, without the libraries of other roles: it verifies, chats, and says what it lacks."""

import contextlib
import json
import os
import re
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

import httpx
import pytest
from tests.client.workload import MODEL, FakeWorkload, serving, simulated

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
_NAME = re.compile(r"[A-Za-z0-9._-]+")
BLOCKER = """
import sys

class Missing:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in MISSING:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Missing())
"""


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def installed_with(requirements: list[str]) -> set[str]:
    """The distributions that these requirements bring, and what those bring in turn, without extras."""
    found: set[str] = set()
    pending = list(requirements)
    while pending:
        requirement = pending.pop()
        match = _NAME.match(requirement)
        if match is None or "extra ==" in requirement or normal(match[0]) in found:
            continue
        found.add(normal(match[0]))
        with contextlib.suppress(metadata.PackageNotFoundError):  # one for another platform
            pending += metadata.requires(match[0]) or []
    return found


def without(requirements: list[str]) -> set[str]:
    """The modules that are here, and would not be with no more than these requirements."""
    kept = installed_with(requirements) | {"confide"}
    return {
        module
        for module, distributions in metadata.packages_distributions().items()
        if module != "confide" and not any(normal(one) in kept for one in distributions)
    }


@pytest.fixture(scope="module")
def missing() -> set[str]:
    """What `pip install confide` does not bring."""
    return without(PROJECT["dependencies"])


def command(folder: Path, missing: set[str], *arguments: str) -> list[str]:
    """`confide` where these modules are not there."""
    start = folder / "start.py"
    start.write_text(f"MISSING = {missing!r}\n{BLOCKER}\nfrom confide.cli import main\nmain()\n")
    return [sys.executable, "-P", str(start), *arguments]


def run(folder: Path, missing: set[str], *arguments: str) -> subprocess.CompletedProcess[str]:
    started = command(folder, missing, *arguments)
    return subprocess.run(started, capture_output=True, text=True, timeout=120, env=dict(os.environ), check=False)


@pytest.fixture(scope="module")
def fake(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[FakeWorkload, Path]]:
    folder = tmp_path_factory.mktemp("workload") / "tee"
    with serving(simulated(folder, model_digest="ab" * 32)) as running:
        yield running, folder / "root.pem"


def test_what_is_blocked_is_what_other_roles_have(missing: set[str]) -> None:
    assert {"torch", "transformers", "starlette", "tokenizers", "xllamacpp"} <= missing
    assert not {"httpx", "openai", "cryptography", "typer", "numpy", "msgspec"} & missing


def test_chat(tmp_path: Path, missing: set[str], fake: tuple[FakeWorkload, Path]) -> None:
    running, root = fake
    done = run(tmp_path, missing, "chat", running.url, "--simulated-root", str(root), "--once", "hello", "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["text"] == "olleh"


def test_connect(tmp_path: Path, missing: set[str], fake: tuple[FakeWorkload, Path]) -> None:
    running, root = fake
    program = tmp_path / "program.py"
    program.write_text(
        f"MISSING = {missing!r}\n{BLOCKER}\nimport confide\n"
        f"with confide.connect({running.url!r}, simulated_root={str(root)!r}) as session:\n"
        "    print(session.chat('hello'), ''.join(session.chat('hello', stream=True)), session.trust.protection)\n"
    )
    done = subprocess.run(
        [sys.executable, "-P", str(program)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.stdout.startswith("olleh olleh none (SIMULATED"), done.stderr


def test_policies_and_bundles_are_read(tmp_path: Path, missing: set[str]) -> None:
    (tmp_path / "policy.toml").write_text('confide-policy = 1\nkind = "production"\n')
    done = run(tmp_path, missing, "attest", "policy", "check", str(tmp_path / "policy.toml"), "--json")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("plan", "demo"),
        ("chat", "ws://127.0.0.1:1", "--shell", "folder", "--once", "a"),
        ("split", "demo", "--out", "folder"),
        ("proxy", "https://models.example"),
    ],
)
def test_what_another_role_needs_is_named(tmp_path: Path, missing: set[str], arguments: tuple[str, ...]) -> None:
    done = run(tmp_path, missing, *arguments, "--json")
    error = json.loads(done.stdout)["error"]
    assert (done.returncode, error["code"]) == (1, "not-installed"), done.stderr
    assert f"pip install 'confide[{'proxy' if arguments[0] == 'proxy' else 'hybrid'}]'" in error["message"]


def test_the_proxy_needs_no_torch(
    tmp_path: Path, fake: tuple[FakeWorkload, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A model in a trusted environment is served, and of one in the hybrid mode it is said what is missing."""
    running, root = fake
    extras = PROJECT["optional-dependencies"]
    missing = without([*PROJECT["dependencies"], *extras["broker"], *extras["proxy"]])
    assert {"torch", "transformers"} <= missing
    assert not {"starlette", "prometheus_client"} & missing
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    models = tmp_path / "models.toml"
    shell = '\n[[model]]\nname = "shell"\nshell = "client"\nserver = "ws://127.0.0.1:1"\n'
    models.write_text(f'confide-proxy = 1\n[[model]]\nurl = "{running.url}"\nsimulated-root = "{root}"\n{shell}')
    started = command(tmp_path, missing, "proxy", "--models", str(models), "--port", "0", "--json")
    with subprocess.Popen(started, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            url = json.loads(process.stdout.readline())["url"]
            until = time.monotonic() + 30
            while "verifying" in (found := httpx.get(f"{url}/health", trust_env=False).text):
                assert time.monotonic() < until
                time.sleep(0.05)
            there, lacking = json.loads(found)["backends"]
            assert (there["models"], there["state"]) == ([MODEL], "ready")
            assert (lacking["state"], lacking["code"]) == ("refused", "not-installed")
            assert "pip install 'confide[hybrid]'" in lacking["reason"]
        finally:
            process.terminate()


def test_every_module_of_another_role_has_its_extra() -> None:
    from confide.extras import EXTRAS

    extras = PROJECT["optional-dependencies"]
    modules = metadata.packages_distributions()
    for module, extra in EXTRAS.items():
        wanted = {normal(name) for name in modules.get(module, [module])}  # by its own name where it is not installed
        brought = list(extras[extra])
        for other in re.findall(r"confide\[([\w,]+)\]", " ".join(brought)):
            brought += [requirement for name in other.split(",") for requirement in extras[name]]
        assert wanted & {normal(_NAME.match(one)[0]) for one in brought if _NAME.match(one)}, module  # type: ignore[index]
