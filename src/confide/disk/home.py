"""Where a person's own files lie: the owner key and the owners that are trusted."""

import os
from pathlib import Path

from confide.errors import ConfideError


def home() -> Path:
    """CONFIDE_HOME, else `confide` in the user's configuration folder. It need not exist.

    ConfideError for one that would be another folder wherever a program is started.
    """
    if chosen := os.environ.get("CONFIDE_HOME"):
        folder = Path(chosen)
    else:
        configuration = Path(os.environ.get("XDG_CONFIG_HOME", ""))  # a relative one counts as none, as XDG has it
        folder = (configuration if configuration.is_absolute() else Path.home() / ".config") / "confide"
    if not folder.is_absolute():
        raise ConfideError(f"Your Confide folder {folder} is no absolute path; set CONFIDE_HOME to one that is.")
    return folder


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
