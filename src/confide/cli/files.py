"""Files that a person names on the command line."""

from pathlib import Path
from typing import Final

import typer

from confide.errors import MalformedEvidence

MAX_FILE_BYTES: Final = 16 << 20


def read_file(path: Path) -> bytes:
    """A file such as evidence, a bundle or a policy. MalformedEvidence where it is larger than any of them."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE_BYTES + 1)
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror})") from None
    if len(data) > MAX_FILE_BYTES:
        raise MalformedEvidence(f"{path} is larger than {MAX_FILE_BYTES >> 20} MiB; give the thing itself alone.")
    return data
