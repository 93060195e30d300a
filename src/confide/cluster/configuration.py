"""The file that says which servers a cluster runs."""

import re
from pathlib import Path
from typing import Annotated, Final

import msgspec
from msgspec import Meta

from confide.disk.files import read_guarded
from confide.errors import InvalidSettings
from confide.shallow_toml import require_shallow

_MAX_BYTES: Final = 1 << 20
_MAX_MARKS: Final = 10_000
_OURS: Final = re.compile(r"--(?:port|metrics-port|json)(?:=.*)?", re.DOTALL)
"""Options of `confide serve` that whoever starts it here chooses."""

_Argument = Annotated[str, Meta(min_length=1, max_length=4096, pattern=r"\A[^\x00]*\Z")]


class Server(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    """A server, and how many of it.

    serve: the arguments of `confide serve`, without those in _OURS. least, most: how many run. load: at how many
    requests in line, or of a layer server connections, for each that runs there is one more. cpus, memory_gib: what Ray
    sets aside for each. start_seconds: to start in. quiet_seconds: of less work, before there is one less.
    """

    name: Annotated[str, Meta(pattern=r"\A[a-z][a-z0-9-]{0,62}\Z")]
    serve: Annotated[tuple[_Argument, ...], Meta(min_length=1, max_length=256)]
    least: Annotated[int, Meta(ge=1, le=1000)] = 1
    most: Annotated[int, Meta(ge=1, le=1000)] | None = None
    load: Annotated[float, Meta(gt=0, le=1e6)] = 8.0
    cpus: Annotated[float, Meta(ge=0, le=1024)] = 1.0
    memory_gib: Annotated[float, Meta(ge=0, le=1 << 16)] = 0.0
    start_seconds: Annotated[float, Meta(gt=0, le=86_400)] = 600.0
    quiet_seconds: Annotated[float, Meta(ge=0, le=86_400)] = 300.0

    @property
    def largest(self) -> int:
        """How many there are at most."""
        return self.least if self.most is None else self.most


class _Document(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="kebab"):
    confide_cluster: Annotated[int, Meta(ge=1, le=1)]
    server: Annotated[tuple[Server, ...], Meta(min_length=1, max_length=256)]


def read_cluster(path: Path) -> tuple[Server, ...]:
    """The servers of a file. InvalidSettings where it cannot be read, others can change it, or it says something else.

    Others must not change it, for it says what is started here.
    """
    try:
        text = read_guarded(path, _MAX_BYTES).decode()
        require_shallow(text, str(path), InvalidSettings, _MAX_MARKS)
        servers = msgspec.toml.decode(text, type=_Document).server
    except OSError as error:
        raise InvalidSettings(f"{path} cannot be read ({error.strerror}); give the file of your servers.") from error
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        raise InvalidSettings(f"{path} cannot be understood: {str(error)[:300]}. Correct that place.") from None
    names = [server.name for server in servers]
    for server in servers:
        if names.count(server.name) > 1:
            raise InvalidSettings(f"{path} has two servers called {server.name}; give each a name of its own.")
        if server.largest < server.least:
            raise InvalidSettings(f"{path} has more of {server.name} at least than at most; correct that.")
        if taken := next(filter(_OURS.fullmatch, server.serve), None):
            raise InvalidSettings(f"{path} gives {server.name} {taken[:40]}, which is chosen here; leave it out.")
    return servers
