"""Every target for a while under atheris, which looks for inputs that reach new code."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from fuzz.targets import CORPUS

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("atheris") is None, reason="atheris is not installed; it has no wheel for this Python"
    ),
]
SECONDS = 20


@pytest.mark.parametrize("name", sorted(path.name for path in CORPUS.iterdir()))
def test_atheris_finds_nothing(name: str) -> None:
    command = [sys.executable, "-m", "fuzz", name, "--seconds", str(SECONDS)]
    ran = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True, timeout=300)
    assert ran.returncode == 0, ran.stdout + ran.stderr
