"""The client's refusal list: servers whose answers were wrong, until a person takes them off it.

It lies in the pack folder as `distrusted.json`. A server is known by its address before a connection, and by its
public seed after one.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Final

import msgspec

from confide.disk.files import replace_file, sync_folder
from confide.errors import PackCorrupted, ServerDistrusted
from confide.hybrid.client.address import websocket_url

FILE_NAME: Final = "distrusted.json"
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
    server_seed: _Digest
    model_digest: _Digest
    group: str
    layers: tuple[str, ...]
    token: Annotated[int, msgspec.Meta(ge=0)]
    time: str


class RefusalList:
    """The list of one pack folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / FILE_NAME

    def entries(self) -> list[Distrusted]:
        """Who is on it, oldest first. PackCorrupted where the file is not such a list."""
        try:
            return msgspec.json.decode(self._path.read_bytes(), type=list[Distrusted])
        except FileNotFoundError:
            return []
        except (msgspec.DecodeError, UnicodeDecodeError) as error:
            raise PackCorrupted(
                f"{self._path} is not a list of servers; look at it, and clear it with `confide distrust`."
            ) from error

    def add(self, server: str, server_seed: bytes, model_digest: str, breach: Breach) -> None:
        """Put a server on it, durably."""
        time = datetime.now(UTC).isoformat(timespec="seconds")
        url, seed = websocket_url(server), server_seed.hex()
        entry = Distrusted(url, seed, model_digest, breach.group, breach.layers, breach.token, time)
        content = msgspec.json.encode([*self.entries(), entry])
        replace_file(self._path, msgspec.json.format(content), mode=0o600)

    def clear(self) -> None:
        """Trust everyone again."""
        if self._path.exists():
            self._path.unlink()
            sync_folder(self._folder)

    def require_trusted(self, model_digest: str, *, server: str | None = None, seed: bytes | None = None) -> None:
        """ServerDistrusted where the server of this address, or of this public seed, is on it for this model."""
        names = {websocket_url(server) if server else None, seed.hex() if seed else None}
        for entry in self.entries():
            if entry.model_digest == model_digest and names & {entry.server, entry.server_seed}:
                raise ServerDistrusted(
                    f"The server at {entry.server} gave a wrong answer for layer group {entry.group} "
                    f"({', '.join(entry.layers)}), token {entry.token}, on {entry.time}. Find out why; to connect to "
                    f"it again, run `confide distrust {self._folder} --clear`."
                )
