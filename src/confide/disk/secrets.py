"""Secrets of programs that have nobody to ask: in a file, in a variable, or handed out by systemd as credentials.

Never on a command line, which every user of a machine can read. What a secret opens, its reader knows.
"""

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from confide.disk.files import FileTooLarge, read_bounded
from confide.errors import InvalidSettings

LICENCE: Final = "licence"
OWNER_PASSPHRASE: Final = "owner-passphrase"  # noqa: S105 - what it is called, as those below
KEYS_PASSPHRASE: Final = "keys-passphrase"  # noqa: S105
HTTP_PROXY_PASSWORD: Final = "http-proxy-password"  # noqa: S105
LEDGER_PASSWORD: Final = "ledger-password"  # noqa: S105
_MAX_BYTES: Final = 4096


@dataclass(frozen=True)
class Secret:
    """One line of text. source: where it was found, such as `environment CONFIDE_LICENCE`; may be shown."""

    text: str = field(repr=False)
    source: str


def variable(name: str) -> str:
    """The environment variable of a secret: CONFIDE_KEYS_PASSPHRASE for `keys-passphrase`."""
    return f"CONFIDE_{name.upper().replace('-', '_')}"


def find_secret(name: str) -> Secret | None:
    """A secret of its variable, else of the file of its name in $CREDENTIALS_DIRECTORY; None where neither has one.

    Raises InvalidSettings for a credential that is no line of text, or a folder of credentials that is not absolute.
    """
    if text := os.environ.get(variable(name)):
        return Secret(text, f"environment {variable(name)}")
    folder = os.environ.get("CREDENTIALS_DIRECTORY")
    if not folder:
        return None
    path = Path(folder) / name
    if not path.is_absolute():
        raise InvalidSettings("CREDENTIALS_DIRECTORY is no absolute path, as systemd sets it; give one, or unset it.")
    return Secret(read_secret(path), f"file {path}") if path.exists() or path.is_symlink() else None


def read_secret(path: Path) -> str:
    """The line of text in a file. InvalidSettings, without a word of it, for anything else."""
    try:
        text = read_bounded(path, _MAX_BYTES).decode().rstrip("\r\n")
    except FileTooLarge as error:
        raise InvalidSettings(f"{path} is too large for a secret of one line; give the file that holds it.") from error
    except UnicodeDecodeError:
        raise InvalidSettings(f"{path} holds no text; give a file with the secret in one line.") from None
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read ({error.strerror}); give a file with the secret.") from error
    if not text or not text.isprintable():
        raise InvalidSettings(f"{path} does not hold one line of text; give a file with the secret in one line.")
    return text
