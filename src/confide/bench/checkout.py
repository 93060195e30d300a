"""Which code is measured. In a checkout that is a commit and nothing else, or results would be of nobody knows what."""

import os
import subprocess
from pathlib import Path

import confide
from confide.errors import BenchmarkError

_ROOT = Path(confide.__file__).resolve().parents[2]
_CONFIGURATION = ("-c", "core.fsmonitor=false", "-c", "core.untrackedCache=false")


def commit(root: Path = _ROOT) -> str:
    """The commit of the checkout that this program runs from, in hexadecimal; empty for one that was installed.

    Raises BenchmarkError where the checkout has changes or files of its own, and where git cannot say.
    """
    if not (root / ".git").exists():
        return ""
    changes = _git(root, "status", "--porcelain", "--untracked-files=all", "--ignore-submodules=none")
    if changes:
        lines = changes.splitlines()
        raise BenchmarkError(
            f"The checkout in {root} is not as it was committed ({lines[0].strip()}, and {len(lines) - 1} more), so "
            "that nobody could say what was measured; commit or remove that, and write results elsewhere."
        )
    return _git(root, "rev-parse", "HEAD").strip()


def _git(root: Path, *arguments: str) -> str:
    # A GIT_DIR or the like would have git look at another checkout.
    environment = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", *_CONFIGURATION, "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)  # noqa: S603
    except (OSError, subprocess.CalledProcessError) as error:
        raise BenchmarkError(
            f"git cannot say what {root} holds ({type(error).__name__}); install it, or see what `git status` says "
            "there, so that results can name the commit they are of."
        ) from error
    return done.stdout
