"""Break lines that matter, one at a time, and see whether a test notices.

Each entry of a list (`mutations.toml` beside this file) names a file, a text that stands in it once, what to put in its
place, and the tests that must fail then. Every one is applied to a copy of the tree of its own; the tree itself is only
read, and may be any checkout of this repository:

    python tools/mutate.py                         all of them
    python tools/mutate.py pads 'attest-*'         those whose names match
    python tools/mutate.py --tree ../other --json

Exits with 1 where a mutation survives, hangs or can't be applied, or where its tests fail without it.
"""

import argparse
import contextlib
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path

HERE = Path(__file__).resolve().parent
SECONDS = 300.0
"""For the tests of one mutation."""
_COPIED = ("src", "tests", "fuzz", "tools", "benchmarks", "examples", "docs", "pyproject.toml", "constraints.txt")
_PASSED, _FAILED = 0, 1


class Outcome(StrEnum):
    """What became of a mutation. Only a test that fails catches one: a module that cannot be imported tests nothing."""

    CAUGHT = "caught"
    SURVIVED = "survived"
    HUNG = "hung"
    BROKEN = "broken"
    STALE = "stale"


@dataclass(frozen=True)
class Mutation:
    """old stands once in the file, a path below the tree. tests: arguments of pytest."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]

    def fits(self, tree: Path) -> bool:
        """Whether it can be applied, and its tests exist."""
        path = tree / self.file
        known = all((tree / test.partition("::")[0]).exists() for test in self.tests)
        return known and path.is_file() and path.read_text().count(self.old) == 1 and self.old != self.new

    def apply(self, tree: Path) -> None:
        path = tree / self.file
        path.write_text(path.read_text().replace(self.old, self.new))


@dataclass(frozen=True)
class Result:
    """seconds: that the tests took. said: the end of what they printed, where they did not do what they should."""

    name: str
    file: str
    outcome: Outcome
    seconds: float
    said: str = ""


def read_mutations(path: Path) -> list[Mutation]:
    """The list. ValueError where two have one name, or one has no tests."""
    entries = tomllib.loads(path.read_text())["mutation"]
    found = [Mutation(**(entry | {"tests": tuple(entry["tests"])})) for entry in entries]
    if len({one.name for one in found}) != len(found) or not all(one.tests for one in found):
        raise ValueError(f"{path} has two mutations of one name, or one without tests")
    return found


@contextmanager
def copied(tree: Path) -> Iterator[Path]:
    """A copy to break. Nothing of it is kept."""
    with tempfile.TemporaryDirectory(prefix="confide-mutation-") as folder:
        copy = Path(folder) / "tree"
        copy.mkdir()
        for name in _COPIED:
            source = tree / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__", ".*"))
            elif source.exists():
                shutil.copy2(source, copy / name)
        yield copy


def run_tests(copy: Path, tree: Path, tests: Sequence[str], seconds: float) -> tuple[int | None, str]:
    """pytest's exit status, None where it took too long, and the end of what it printed."""
    environment = os.environ | {"PYTHONPATH": str(copy / "src"), "PYTHONDONTWRITEBYTECODE": "1"}
    data = tree.parent / "shared"
    if data.is_dir():
        environment.setdefault("CONFIDE_TEST_DATA", str(data))
    command = [sys.executable, "-m", "pytest", "-q", "-x", "--no-header", "-p", "no:cacheprovider", *tests]
    with subprocess.Popen(
        command,
        cwd=copy,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as ran:
        try:
            said, _ = ran.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            return None, ""
        finally:
            with contextlib.suppress(ProcessLookupError):  # whatever a broken line has left running
                os.killpg(ran.pid, signal.SIGKILL)
    return ran.returncode, said[-2000:]


def try_mutation(mutation: Mutation, tree: Path, seconds: float = SECONDS) -> Result:
    """Apply it to a copy and run its tests there."""
    started = time.monotonic()
    outcome, said = Outcome.STALE, ""
    if mutation.fits(tree):
        with copied(tree) as copy:
            mutation.apply(copy)
            status, said = run_tests(copy, tree, mutation.tests, seconds)
        known = {None: Outcome.HUNG, _PASSED: Outcome.SURVIVED, _FAILED: Outcome.CAUGHT}
        outcome = known.get(status, Outcome.BROKEN)
    quiet = outcome in (Outcome.CAUGHT, Outcome.STALE)
    return Result(mutation.name, mutation.file, outcome, round(time.monotonic() - started, 1), "" if quiet else said)


def untouched(mutations: Sequence[Mutation], tree: Path, seconds: float) -> str:
    """Empty where all tests pass without a mutation; otherwise what they print. Without that, failing means nothing."""
    tests = dict.fromkeys(test for one in mutations if one.fits(tree) for test in one.tests)
    if not tests:
        return ""
    with copied(tree) as copy:
        status, said = run_tests(copy, tree, list(tests), seconds * len(tests))
    return "" if status == _PASSED else said or "the tests took too long"


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the selection and report."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("names", nargs="*", help="names or patterns of mutations; all by default")
    parser.add_argument("--list", type=Path, default=HERE / "mutations.toml", help="another list of mutations")
    parser.add_argument("--tree", type=Path, default=HERE.parent, help="the checkout to take the copies of")
    parser.add_argument("--seconds", type=float, default=SECONDS, help="for the tests of one mutation")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    given = parser.parse_args(arguments)
    tree = given.tree.resolve()
    mutations = [
        one
        for one in read_mutations(given.list)
        if not given.names or any(fnmatch.fnmatch(one.name, name) for name in given.names)
    ]
    if not mutations:
        parser.error("no mutation has such a name")
    started = time.monotonic()
    failing = untouched(mutations, tree, given.seconds)
    if failing:
        print(json.dumps({"error": failing}) if given.json else f"The tests fail without any mutation:\n{failing}")
        return 1
    results = []
    for mutation in mutations:
        results.append(result := try_mutation(mutation, tree, given.seconds))
        if not given.json:
            print(f"{result.outcome:<9} {result.seconds:6.1f} s  {result.name}", flush=True)
    caught = sum(result.outcome is Outcome.CAUGHT for result in results)
    if given.json:
        total = {"caught": caught, "of": len(results), "seconds": round(time.monotonic() - started, 1)}
        print(json.dumps({"tree": str(tree), **total, "mutations": [asdict(result) for result in results]}))
    else:
        print(f"{caught} of {len(results)} caught in {time.monotonic() - started:.0f} s.")
    return 0 if caught == len(results) else 1


if __name__ == "__main__":
    sys.exit(main())
