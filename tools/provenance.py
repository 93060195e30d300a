"""Writes what `sigstore attest` says of a release: from which commit it was built, and how.

python tools/provenance.py REPOSITORY > provenance.json

SLSA provenance, version 1 (https://slsa.dev/spec/v1.0/provenance). REPOSITORY is the address that the tag was cloned
from, and the commit is that of this clone. No machine vouches for it: it is the word of whoever signs.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from tools.build_release import ROOT


def predicate(repository: str, folder: Path = ROOT) -> dict[str, Any]:
    """The predicate. ValueError where the clone is not what its commit says, so that something else would be built."""
    if _git(folder, "status", "--porcelain"):
        raise ValueError("The clone has changes that are in no commit; build from a fresh clone of the tag.")
    commit, tag = _git(folder, "rev-parse", "HEAD"), _git(folder, "describe", "--tags", "--exact-match")
    source = f"git+{repository}@refs/tags/{tag}"
    recipe = f"{source}#docs/release.md"
    return {
        "buildDefinition": {
            "buildType": recipe,
            "externalParameters": {"source": source, "command": "make dist"},
            "resolvedDependencies": [{"uri": source, "digest": {"gitCommit": commit}}],
        },
        "runDetails": {"builder": {"id": recipe}},
    }


def _git(folder: Path, *arguments: str) -> str:
    git = subprocess.run(("git", "-C", folder, *arguments), capture_output=True, text=True, check=False)
    if git.returncode:
        raise ValueError(f"git {arguments[0]} says: {git.stderr.strip()} Check out the tag.")
    return git.stdout.strip()


if __name__ == "__main__":
    try:
        json.dump(predicate(sys.argv[1].rstrip("/")), sys.stdout, indent=2)
    except (IndexError, ValueError) as error:
        sys.exit(str(error) if isinstance(error, ValueError) else __doc__)
