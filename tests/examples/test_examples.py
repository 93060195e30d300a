"""The examples run as they stand, each as a program of its own."""

import json
from pathlib import Path

import pytest
from tests.cli.command import run_script

EXAMPLES = Path(__file__).parents[2] / "examples"
LAST_LINES = {
    "certified_training.py": "all three certificates are verified: True",
    "encrypted_attention.py": "the same tokens in every mode: True",
    "exact_product.py": "exact: y == W x for every output",
    "generate_privately.py": "24 tokens, 768 round trips",
    "graph_of_services.py": "not trusted: guard",
}


def run(script: Path) -> list[str]:
    done = run_script(script)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


SLOW = {"certified_training.py", "encrypted_attention.py", "generate_privately.py", "graph_of_services.py"}
"""What they do, tests of training, of attention, of graphs and the notebook do with less."""


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in LAST_LINES])
def test_an_example_runs_to_its_end(name: str) -> None:
    assert run(EXAMPLES / name)[-1] == LAST_LINES[name]


@pytest.mark.slow
def test_the_notebook_runs_to_its_end(tmp_path: Path) -> None:
    """Its cells one after another, as a kernel would run them."""
    cells = json.loads((EXAMPLES / "notebook.ipynb").read_text())["cells"]
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"))
    printed = run(script)
    assert printed.count("the same tokens: True") == 2
    assert "protection: hybrid" in printed


def test_every_example_is_run() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == set(LAST_LINES)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.name)
def test_an_example_is_short(path: Path) -> None:
    assert len(path.read_text().splitlines()) < 90
