"""Files that a person names on the command line."""

from pathlib import Path
from typing import Final

import typer

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import MalformedEvidence

MAX_FILE_BYTES: Final = 16 << 20


def read_file(path: Path) -> bytes:
    """A file such as evidence, a bundle or a policy. MalformedEvidence where it is larger than any of them."""
    try:
        return read_bounded(path, MAX_FILE_BYTES)
    except FileTooLarge:
        raise MalformedEvidence(
            f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; give the thing itself alone."
        ) from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror})") from None
