"""Where a person's own files lie: the owner key and the owners that are trusted."""

import os
from pathlib import Path

from confide.errors import ConfideError


def home() -> Path:
    """CONFIDE_HOME, else `confide` in the user's configuration folder. It need not exist."""
    if chosen := os.environ.get("CONFIDE_HOME"):
        return Path(chosen)
    configuration = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / "confide"


def make_home() -> Path:
    """The same, made where it is missing, closed to others. ConfideError where it cannot be."""
    folder = home()
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    except OSError as error:
        raise ConfideError(
            f"Your Confide folder {folder} cannot be made ({error.strerror}); set CONFIDE_HOME to a folder of yours."
        ) from error
    return folder
