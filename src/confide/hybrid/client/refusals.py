"""The client's refusal list: servers whose answers were wrong, until a person takes them off it.

It lies in the person's Confide folder as `distrusted.json`, so that it outlives every shell. A server is known by its
address.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.audit.log import note
from confide.disk.files import read_bounded, replace_file, sync_folder
from confide.disk.home import home, make_home
from confide.errors import RefusalListDamaged, ServerDistrusted
from confide.hybrid.client.dial import authority, websocket_url

FILE_NAME: Final = "distrusted.json"
_MAX_FILE: Final = 1 << 20
_Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]


@dataclass(frozen=True)
class Breach:
    """The first wrong answer: its layer group, the layers in it, and which token of the run it was for, from 0."""

    group: str
    layers: tuple[str, ...]
    token: int


class Distrusted(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A server, for one model, and the first wrong answer: its layer group, layers, and token in that run."""

    server: str
    model_digest: _Digest
    group: str
    layers: tuple[str, ...]
    token: Annotated[int, msgspec.Meta(ge=0)]
    time: str


class RefusalList:
    """The list of one person. folder: where it lies, the Confide folder by default."""

    def __init__(self, folder: Path | None = None) -> None:
        self._folder = folder
        self._path = (folder or home()) / FILE_NAME

    def entries(self) -> list[Distrusted]:
        """Who is on it, oldest first. RefusalListDamaged where the file is not such a list or cannot be read."""
        try:
            return msgspec.json.decode(read_bounded(self._path, _MAX_FILE), type=list[Distrusted])
        except FileNotFoundError:
            return []
        except (OSError, ValueError, RecursionError) as error:  # msgspec's errors are ValueErrors
            raise RefusalListDamaged(
                f"{self._path} is not a list of servers; look at it, and clear it with `confide distrust --clear`."
            ) from error

    def add(self, server: str, model_digest: str, breach: Breach) -> None:
        """Put a server on it, durably."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        entry = Distrusted(websocket_url(server), model_digest, breach.group, breach.layers, breach.token, time)
        content = msgspec.json.encode([*self.entries(), entry])
        if self._folder is None:
            make_home()
        replace_file(self._path, msgspec.json.format(content), mode=0o600)
        note("distrusted", mode="hybrid", peer=entry.server, model=model_digest)

    def clear(self) -> None:
        """Trust everyone again."""
        if self._path.exists():
            self._path.unlink()
            sync_folder(self._path.parent)
            note("forgiven", mode="hybrid")

    def require_trusted(self, server: str, model_digest: str) -> None:
        """ServerDistrusted where the server of this address is on it for this model."""
        asked = authority(websocket_url(server))
        for entry in self.entries():
            if (entry.model_digest, authority(entry.server)) == (model_digest, asked):
                raise ServerDistrusted(
                    f"The server at {entry.server} gave a wrong answer for layer group {entry.group} "
                    f"({', '.join(entry.layers)}), token {entry.token}, on {entry.time}. Find out why; to connect to "
                    "it again, run `confide distrust --clear`."
                )
