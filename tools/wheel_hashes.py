"""The SHA-256 of each wheel that constraints.txt pins, for CPython 3.11 on Linux and x86-64.

python tools/wheel_hashes.py REPORT.json   # writes them, of what `pip install --dry-run --report` says of the pins
python tools/wheel_hashes.py FOLDER        # compares the wheels in a folder, and prints requirements for exactly those

Of each package it is the one wheel that pip chooses there. `make hashes` does the first, docs/release.md the second.
"""

import hashlib
import json
import re
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

from packaging.utils import canonicalize_name, parse_wheel_filename

ROOT: Final = Path(__file__).resolve().parent.parent
PINS: Final = ROOT / "constraints.txt"
HASHES: Final = ROOT / "packaging" / "wheels-cp311-linux-x86_64.txt"
_HEAD: Final = "# Made by `make hashes`: the wheels of constraints.txt for CPython 3.11 on Linux, x86-64.\n"
_LINE: Final = re.compile(r"(?P<name>\S+)==(?P<version>\S+) --hash=sha256:(?P<sha256>[0-9a-f]{64})")


@cache
def pins() -> dict[str, str]:
    """Versions by normal names, of constraints.txt."""
    lines = PINS.read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(name): version for name, version in (line.split("==") for line in lines)}


@cache
def hashes() -> dict[tuple[str, str], str]:
    """SHA-256 by normal name and version, as the file has them. ValueError for a line that is of another form."""
    found = {}
    for line in HASHES.read_text(encoding="utf-8").removeprefix(_HEAD).splitlines():
        match = _LINE.fullmatch(line)
        if match is None:
            raise ValueError(f"{HASHES} has a line of another form: {line}")
        found[match["name"], match["version"]] = match["sha256"]
    return found


def lines(report: Mapping[str, Any]) -> Iterator[str]:
    """Of pip's installation report. ValueError for what is no wheel of this platform."""
    for entry in report["install"]:
        download = entry["download_info"]
        name, version, _, tags = parse_wheel_filename(download["url"].rpartition("/")[2])
        fits = any(
            tag.platform == "any" or (tag.platform.startswith("manylinux") and tag.platform.endswith("x86_64"))
            for tag in tags
            if tag.interpreter in ("py3", "cp311") or tag.abi == "abi3"
        )
        if not fits:
            raise ValueError(f"{download['url']} is no wheel for CPython 3.11 on Linux and x86-64")
        yield f"{name}=={version} --hash=sha256:{download['archive_info']['hashes']['sha256']}\n"


def requirements(folder: Path) -> Iterator[str]:
    """For `pip install --require-hashes`: the wheels of a folder. ValueError for one that is not pinned as it is.

    Confide's own wheel is taken as it is: its signature speaks for it.
    """
    for path in sorted(folder.iterdir()):
        name, version, _, _ = parse_wheel_filename(path.name)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        if name != "confide" and hashes().get((name, str(version))) != digest:
            raise ValueError(f"{path} is not the wheel that {HASHES.name} pins; its SHA-256 is {digest}")
        yield f"{name}=={version} --hash=sha256:{digest}\n"


def main() -> None:
    """Write them, or compare."""
    given = Path(sys.argv[1])
    if given.is_dir():
        sys.stdout.writelines(list(requirements(given)))
    else:
        made = sorted(lines(json.loads(given.read_text(encoding="utf-8"))))
        HASHES.write_text(_HEAD + "".join(made), encoding="utf-8")


if __name__ == "__main__":
    main()
