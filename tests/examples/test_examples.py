"""The examples run as they stand, each as a program of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).parents[2] / "examples"
LAST_LINES = {
    "exact_product.py": "exact: y == W x for every output",
    "generate_privately.py": "masks for 4049 tokens are left",
}


def run(name: str) -> list[str]:
    # Idle threads of one process must not spin while the other computes.
    environment = os.environ | {"OMP_WAIT_POLICY": "PASSIVE"}
    command = [sys.executable, str(EXAMPLES / name)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, env=environment, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("name", LAST_LINES)
def test_an_example_runs_to_its_end(name: str) -> None:
    assert run(name)[-1] == LAST_LINES[name]


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(LAST_LINES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 60
