"""What Gramine's own tool measures of a manifest: it is run, and its SIGSTRUCT is read.

The tool reads every trusted file, so this has to run where the files are. What it signs is thrown away: a signature has
a date in it, and MRENCLAVE has none.
"""

import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from confide.disk.files import read_bounded
from confide.errors import DeployError
from confide.printable import printable

TOOL: Final = "gramine-sgx-sign"
SECONDS: Final = 1800.0
"""It hashes the package, which can be a hundred gigabytes."""

SIGSTRUCT_BYTES: Final = 1808
_HEADERS: Final = {
    0: bytes.fromhex("06000000e10000000000010000000000"),
    24: bytes.fromhex("01010000600000006000000001000000"),
}
"""Where constant bytes stand (Intel SDM, volume 3D, SIGSTRUCT: HEADER and HEADER2)."""
_ENCLAVE_HASH: Final = 960


def measured(manifest: bytes, key: Path) -> bytes:
    """MRENCLAVE of a manifest, 32 bytes. key: to sign with (PEM, RSA of 3072 bits and exponent 3).

    DeployError where the tool is not installed, or does not sign.
    """
    tool = shutil.which(TOOL)
    if tool is None or not os.path.isabs(tool):
        raise DeployError(
            f"{TOOL} is not on the PATH; install Gramine where the files are, or sign there and give --mrenclave."
        )
    with tempfile.TemporaryDirectory() as folder:
        source, signature = Path(folder, "confide.manifest"), Path(folder, "confide.sig")
        source.write_bytes(manifest)
        files = ("--manifest", source, "--output", f"{source}.sgx", "--sigfile", signature, "--key", key.absolute())
        said = Path(folder, "said")
        with said.open("wb") as words:  # a file, for a program that it leaves behind would keep a pipe open
            try:
                ended = subprocess.run(  # noqa: S603 - an absolute path, and no shell
                    [tool, *files], stdout=subprocess.DEVNULL, stderr=words, timeout=SECONDS, check=False, cwd=folder
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                reason = printable(str(error))[:200]
                raise DeployError(f"{TOOL} does not end or start ({reason}); sign by hand.") from None
        if ended.returncode:
            reason = printable(said.read_bytes()[-300:].decode("utf-8", "replace")).strip()
            raise DeployError(f"{TOOL} does not sign ({reason}); run this where the files are.")
        try:
            return mrenclave_of(read_bounded(signature, SIGSTRUCT_BYTES))
        except OSError as error:
            raise DeployError(f"{TOOL} wrote no signature that can be read ({error.strerror}); sign by hand.") from None


def mrenclave_of(sigstruct: bytes) -> bytes:
    """ENCLAVEHASH of a SIGSTRUCT, 32 bytes. DeployError where it is none."""
    if len(sigstruct) != SIGSTRUCT_BYTES or any(
        sigstruct[at : at + len(constant)] != constant for at, constant in _HEADERS.items()
    ):
        raise DeployError(f"The signature is no SIGSTRUCT of SGX, of {SIGSTRUCT_BYTES} bytes; update Gramine.")
    return sigstruct[_ENCLAVE_HASH : _ENCLAVE_HASH + 32]
