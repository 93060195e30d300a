"""The systemd unit of the page on the proxy, and the Containerfile: what of them can be tried without an image."""

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from tests.cli.command import run

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "proxy.md").read_text(encoding="utf-8")
CONTAINERFILE = ROOT / "packaging" / "Containerfile"
DIGEST = "sha256:" + "ab" * 32


def instructions() -> list[tuple[str, str]]:
    """Name and arguments of each line."""
    lines = [line for line in CONTAINERFILE.read_text(encoding="utf-8").splitlines() if line and line[0] != "#"]
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in lines)]


def all_of(name: str) -> list[str]:
    return [rest for found, rest in instructions() if found == name]


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_systemd_takes_the_unit(tmp_path: Path) -> None:
    (block,) = re.findall(r"```ini\n(.*?)```", PAGE, re.DOTALL)
    program = Path(sys.executable).with_name("confide")
    assert "ExecStart=%h/.venv/bin/confide proxy" in block
    unit = tmp_path / "confide-proxy.service"
    unit.write_text(block.replace("%h/.venv/bin/confide", str(program)))
    environment = {"XDG_RUNTIME_DIR": str(tmp_path), "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}
    command = ["systemd-analyze", "verify", "--user", str(unit)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900)
    assert (done.returncode, done.stdout + done.stderr) == (0, "")


def test_the_image_is_built_of_what_is_there() -> None:
    # Not ADD, which fetches from anywhere.
    known = {"ARG", "FROM", "RUN", "WORKDIR", "COPY", "ENV", "VOLUME", "USER", "EXPOSE", "STOPSIGNAL"}
    assert {name for name, _ in instructions()} <= known | {
        "ENTRYPOINT",
        "CMD",
    }
    for sources in all_of("COPY"):
        names = sources.split()[:-1]
        assert names[0].startswith("--from=build") or all((ROOT / name).exists() for name in names), sources
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = dict(line.split("=", 1) for line in all_of("ARG") if "=" in line)["EXTRAS"]
    assert set(extras.split(",")) <= set(project["optional-dependencies"])
    for readme in (project["readme"], *project["license-files"]):
        assert any(readme in sources for sources in all_of("COPY")), readme


@pytest.mark.parametrize(
    ("base", "taken"),
    [
        (f"docker.io/library/python:3.13-slim@{DIGEST}", True),
        ("docker.io/library/python:3.13-slim", False),
        (f"python@{DIGEST}0", False),
        (f"python@{DIGEST[:-1]}", False),
        ("", False),
    ],
)
def test_an_image_without_a_digest_is_not_built_upon(base: str, taken: bool) -> None:
    assert all(argument in ("BASE", "EXTRAS=proxy") for argument in all_of("ARG"))  # no default
    assert {line.split()[0] for line in all_of("FROM")} == {"${BASE}"}
    (check,) = [line for line in all_of("RUN") if "BASE" in line]
    done = subprocess.run(["sh", "-c", check], env={"BASE": base}, capture_output=True, text=True)
    assert (done.returncode == 0) is taken
    assert taken or "digest" in done.stderr


def test_nobody_runs_it_and_it_listens_to_itself() -> None:
    last = [name for name, _ in instructions()]
    assert last.index("USER") > len(last) - 1 - last[::-1].index("RUN")  # nothing is done as root after it
    (user,) = all_of("USER")
    assert all(int(number) >= 1000 for number in user.split(":"))
    (start,), (arguments,) = (list(map(json.loads, all_of(name))) for name in ("ENTRYPOINT", "CMD"))
    assert Path(start[0]).name == "confide"
    assert "--host" not in [*start, *arguments]
    words = [*start[1:], *arguments]
    assert json.loads(run(*words, "--json").stdout)["error"]["code"] == "settings"  # there is no such file here
    refused = run(*words[:1], "https://models.example", "--host", "0.0.0.0", "--json")  # noqa: S104
    assert json.loads(refused.stdout)["error"]["code"] == "insecure-connection"
