"""Files that a person names on the command line."""

from pathlib import Path
from typing import Final

import typer

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import ConfideError, MalformedEvidence

MAX_FILE_BYTES: Final = 16 << 20


def read_file(path: Path, limit: int = MAX_FILE_BYTES, too_large: ConfideError | None = None) -> bytes:
    """A file of at most `limit` bytes, such as evidence, a bundle or a policy.

    Raises `too_large` for a longer one, MalformedEvidence where that is not given.
    """
    try:
        return read_bounded(path, limit)
    except FileTooLarge:
        raise too_large or MalformedEvidence(
            f"{path} is larger than {limit >> 20} MiB; give the thing itself alone."
        ) from None
    except OSError as error:
        raise typer.BadParameter(f"{path} cannot be read ({error.strerror})") from None
