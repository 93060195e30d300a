"""`confide plan --machines` as an owner runs it: what each machine serves, and the file that clients connect by."""

import json
import sys
from pathlib import Path

import pytest
from tests.hybrid.server.world import SHAPES, model

from confide.cli import app
from confide.hybrid.groups import Groups
from confide.hybrid.placement import Placement
from confide.packages.signing import sign_package
from confide.rlwe.parameters import RING_DEGREE
from owners import OWNER

SIZES = [rows * (columns + RING_DEGREE) for rows, columns in SHAPES]
A, B, C, D = (f"wss://{letter}.example:8470" for letter in "abcd")


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A server's package without its matrices, which planning does not read."""
    folder = tmp_path_factory.mktemp("package")
    sign_package(folder, model().signed.manifest, OWNER)
    return folder


def confide(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["confide", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        app.main()
    return int(exit.value.code or 0)


def test_machines_and_replicas_are_planned_and_written(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "placement.toml"
    servers = [word for address in (A, B, C, D) for word in ("--server", address)]
    assert confide(monkeypatch, "plan", package, "--machines", 2, *servers, "--out", out, "--json") == 0
    assert json.loads(capsys.readouterr().out) == {
        "model_digest": model().signed.manifest.model_digest,
        "machines": [
            {"groups": "0", "bytes": SIZES[0], "servers": [A, C]},
            {"groups": "1-2", "bytes": SIZES[1] + SIZES[2], "servers": [B, D]},
        ],
        "placement": str(out),
    }
    placement, first, last = Placement.read(out), Groups.parse("0"), Groups.parse("1-2")
    placement.require_model(model().signed.manifest)
    assert placement.servers == ((A, first), (B, last), (C, first), (D, last))
    # A file that is there is not replaced.
    assert confide(monkeypatch, "plan", package, "--machines", 2, *servers, "--out", out) != 0


def test_a_person_sees_what_to_start(
    package: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(app.output.console, "width", 100)
    assert confide(monkeypatch, "plan", package, "--machines", 3) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[2:]] == ["0", "1", "2"]
    assert f"confide serve {package} --groups" in " ".join(printed.err.split())


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--machines", 4], "invalid-placement"),
        (["--machines", 2, "--server", A], "2 times"),
        (["--machines", 2, "--out", "x"], "--server for each machine"),
        (["--machines", 1, "--server", "ftp://a"], "not the address"),
        (["--server", A], "go with --machines"),
    ],
    ids=["too many", "too few addresses", "no addresses", "no address", "no machines"],
)
def test_what_cannot_be_planned_is_refused(
    package: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[object],
    says: str,
) -> None:
    assert confide(monkeypatch, "plan", package, *arguments) != 0
    printed = capsys.readouterr()
    assert says in " ".join((printed.out + printed.err).replace("│", " ").split())
