"""Where a person's own files lie: the owner key and the owners that are trusted."""

import os
from pathlib import Path


def home() -> Path:
    """CONFIDE_HOME, else `confide` in the user's configuration folder. It need not exist."""
    if chosen := os.environ.get("CONFIDE_HOME"):
        return Path(chosen)
    configuration = os.environ.get("XDG_CONFIG_HOME")
    return (Path(configuration) if configuration else Path.home() / ".config") / "confide"


def make_home() -> Path:
    """The same, made where it is missing, closed to others."""
    folder = home()
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return folder
