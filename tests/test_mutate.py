"""The tool that breaks lines on purpose: what it calls caught, and that its list fits the code."""

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tools"))

import mutate  # noqa: E402 - a script, not a package

AREAS = ("rlwe", "hybrid", "enclave", "attest", "client")


def test_every_mutation_fits_the_code_and_names_tests_that_exist() -> None:
    mutations = mutate.read_mutations(ROOT / "tools" / "mutations.toml")
    assert [one.name for one in mutations if not one.fits(ROOT)] == []
    assert len(mutations) >= 40
    for area in AREAS:
        assert sum(one.file.startswith(f"src/confide/{area}/") for one in mutations) >= 5, area
    for test in (test for one in mutations for test in one.tests if "::" in test):
        file, _, name = test.partition("::")
        assert f"def {name.partition('[')[0]}(" in (ROOT / file).read_text(), test


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A checkout with a line that a test sees and one that none does."""
    folder = tmp_path / "tree"
    (folder / "src").mkdir(parents=True)
    (folder / "tests").mkdir()
    (folder / "src" / "thing.py").write_text("def seen():\n    return 1\n\n\ndef unseen():\n    return 2\n")
    (folder / "tests" / "test_thing.py").write_text("import thing\n\n\ndef test_it():\n    assert thing.seen() == 1\n")
    return folder


LIST = """
[[mutation]]
name = "caught"
file = "src/thing.py"
old = "return 1"
new = "return 3"
tests = ["tests/test_thing.py"]

[[mutation]]
name = "survives"
file = "src/thing.py"
old = "return 2"
new = "return 3"
tests = ["tests/test_thing.py::test_it"]

[[mutation]]
name = "no-python"
file = "src/thing.py"
old = "def seen():"
new = "def seen("
tests = ["tests/test_thing.py"]

[[mutation]]
name = "hangs"
file = "src/thing.py"
old = "    return 1"
new = "    while True: pass"
tests = ["tests/test_thing.py"]

[[mutation]]
name = "stale"
file = "src/thing.py"
old = "return 7"
new = "return 3"
tests = ["tests/test_thing.py"]
"""


def run(tree: Path, capsys: pytest.CaptureFixture[str], *names: str) -> tuple[int, dict[str, str]]:
    path = tree.parent / "list.toml"
    path.write_text(LIST)
    arguments = ["--tree", str(tree), "--list", str(path), "--json", "--seconds", "20", *names]
    code = mutate.main(arguments)
    said = json.loads(capsys.readouterr().out)
    return code, {one["name"]: one["outcome"] for one in said.get("mutations", [])}


@pytest.mark.slow
def test_only_a_failing_test_catches_a_mutation(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert run(tree, capsys, "caught") == (0, {"caught": "caught"})
    expected = {"survives": "survived", "no-python": "broken", "stale": "stale"}
    assert run(tree, capsys, *expected) == (1, expected)
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


@pytest.mark.slow
def test_one_that_hangs_is_not_caught(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(tree, capsys, "hang*") == (1, {"hangs": "hung"})


def test_tests_that_fail_anyway_say_nothing(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tree / "tests" / "test_thing.py").write_text("def test_it():\n    assert False\n")
    assert run(tree, capsys, "caught") == (1, {})


def test_a_name_that_is_none_is_a_usage_error(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(tree, capsys, "nothing")
