"""What the image of a machine is made of, by version and digest: packaging/image.lock.

python tools/image_lock.py write           # asks Debian's mirror by apt-get, and the file of the pinned wheels
python tools/image_lock.py fetch FOLDER    # gets the files that it names, by apt-get and pip

Debian's packages are the newest of bookworm at that moment, and the kernel that of its backports: evidence takes Linux
6.7 or later. The wheels are those of `confide[server]`, without torch, which models in llama.cpp do not need.
"""

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final
from urllib.parse import unquote

from confide.deploy.image.lock import Lock
from tools.sbom import needed
from tools.wheel_hashes import ROOT, hashes

LOCK: Final = ROOT / "packaging" / "image.lock"
PACKAGES: Final = (
    *("libpython3.11-minimal", "libpython3.11-stdlib", "python3.11-minimal"),
    *("libbz2-1.0", "libc6", "libcrypt1", "libexpat1", "libffi8", "libgcc-s1", "libgomp1", "liblzma5", "libssl3"),
    *("libsqlite3-0", "libstdc++6", "libuuid1", "zlib1g"),
)
"""Python, and the libraries that it, its modules and the wheels are linked to."""
KERNEL: Final = "linux-image-cloud-amd64"
BACKPORTS: Final = "bookworm-backports"
_SOURCES: Final = "".join(
    f"deb [signed-by=/usr/share/keyrings/debian-archive-keyring.gpg] http://deb.debian.org/{suite} main\n"
    for suite in (
        *("debian bookworm", "debian bookworm-updates", f"debian {BACKPORTS}"),
        "debian-security bookworm-security",
    )
)
_URI: Final = re.compile(r"'\S+' (?P<name>[^_ ]+)_(?P<version>[^_ ]+)_\w+\.deb \d+ SHA256:(?P<sha256>[0-9a-f]{64})")
_IMAGE: Final = re.compile(r"Depends: (linux-image-\S+)")
_HEAD: Final = """\
# Made by tools/image_lock.py: what `confide deploy image` puts into an image, of Debian 12, for CPython 3.11 on x86-64.
"""


@contextmanager
def own_apt() -> Iterator[list[str]]:
    """Options with which apt's programs know bookworm and its backports, and nothing of this machine."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        folder.chmod(0o755)  # for apt's own user
        (folder / "lists/partial").mkdir(parents=True)
        (folder / "sources.list").write_text(_SOURCES)
        (folder / "status").touch()
        own = {
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": "-",
            "Dir::Etc::Preferences": "-",
            "Dir::Etc::PreferencesParts": "-",
            "Dir::State::Lists": folder / "lists",
            "Dir::State::Status": folder / "status",
            "Dir::Cache": folder,
            "APT::Architecture": "amd64",
        }
        options = [f"--option={name}={value}" for name, value in own.items()]
        _run("apt-get", *options, "update")
        yield options


def debs() -> list[str]:
    """Of Debian, by its own signed lists."""
    with own_apt() as options:
        depends = _run("apt-cache", *options, "--target-release", BACKPORTS, "depends", KERNEL)
        (kernel,) = _IMAGE.findall(depends)
        printed = _run("apt-get", *options, "download", "--print-uris", *PACKAGES)
        printed += _run("apt-get", *options, "--target-release", BACKPORTS, "download", "--print-uris", kernel)
    found = [_URI.fullmatch(line) for line in printed.splitlines()]
    lines = [f"deb {one['name']}={unquote(one['version'])} sha256:{one['sha256']}\n" for one in found if one]
    if len(lines) != len(PACKAGES) + 1:
        raise ValueError(f"apt-get names {len(lines)} packages and not {len(PACKAGES) + 1}: {printed}")
    return sorted(lines)


def wheels() -> list[str]:
    """Those that are pinned."""
    found = {name: one.version for name, one in needed("server", without={"torch"}).items()}
    return [f"wheel {name}=={version} sha256:{hashes()[name, version]}\n" for name, version in found.items()]


def fetch(folder: Path) -> None:
    """What the lock names, into a folder. CalledProcessError for a version that Debian's mirror has no more."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = Lock.read(LOCK.read_bytes())
    with own_apt() as options:
        _run("apt-get", *options, "download", *lock.debs, folder=folder)
    requirements = folder / "requirements.txt"
    requirements.write_text("".join(f"{name} --hash=sha256:{digest}\n" for name, digest in lock.wheels.items()))
    pip = (
        sys.executable,
        "-m",
        "pip",
        "download",
        "--quiet",
        "--no-deps",
        "--only-binary",
        ":all:",
        "--require-hashes",
    )
    _run(*pip, "--dest", str(folder), "--requirement", str(requirements))
    lock.find(folder)


def _run(*command: str, folder: Path | None = None) -> str:
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, cwd=folder).stdout


def main() -> None:
    """Write it, or fetch."""
    if sys.argv[1] == "fetch":
        fetch(Path(sys.argv[2]).resolve())
    else:
        LOCK.write_text(_HEAD + "".join(debs() + wheels()), encoding="ascii")


if __name__ == "__main__":
    main()
