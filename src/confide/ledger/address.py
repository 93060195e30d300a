"""Where a ledger is: the folder of a file, or the address of a PostgreSQL database."""

import string
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Self
from urllib.parse import SplitResult, parse_qsl, quote, unquote, urlencode, urlsplit

from confide.disk.secrets import LEDGER_PASSWORD, variable
from confide.errors import InvalidSettings
from confide.net.loopback import is_loopback

PREFIX: Final = "postgresql://"
_MAX_ADDRESS: Final = 2048
_PORT: Final = 5432
_NAME: Final = frozenset(string.ascii_letters + string.digits + "-._")


@dataclass(frozen=True)
class DatabaseAddress:
    """A PostgreSQL database; holds no secret.

    host: a name or address, or the folder of a Unix socket. authority: PEM file of the authorities that may vouch for
    the server; None only on this machine, where there is no TLS then.
    """

    host: str
    port: int
    database: str
    user: str
    authority: Path | None = None

    @classmethod
    def parse(cls, text: str) -> Self:
        """`postgresql://USER@HOST[:PORT]/DATABASE[?sslrootcert=FILE]`, or `postgresql://USER@/DATABASE?host=FOLDER`.

        InvalidSettings for anything else, above all for one with a password, or for a server elsewhere without TLS.
        """
        if not text.startswith(PREFIX) or len(text) > _MAX_ADDRESS or not text.isprintable():
            raise _malformed()
        try:
            parts = urlsplit(text)
            port = parts.port or _PORT
            options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query), max_num_fields=2)
        except ValueError:
            raise _malformed() from None
        if parts.password is not None:  # not quoted: that would show it
            raise InvalidSettings(
                "A password in a ledger's address can be read by others; take it out, and give it in "
                f"{variable(LEDGER_PASSWORD)}, or as the credential {LEDGER_PASSWORD}."
            )
        return cls._of(parts, port, dict(options))

    @classmethod
    def _of(cls, parts: SplitResult, port: int, options: dict[str, str]) -> Self:
        host, user, database = parts.hostname or "", unquote(parts.username or ""), unquote(parts.path[1:])
        socket, authority = options.pop("host", ""), options.pop("sslrootcert", "")
        sane = frozenset(database + user) <= _NAME and user and database and not parts.fragment and not options
        if not sane or bool(host) == bool(socket) or (socket and not socket.startswith("/")):
            raise _malformed()
        if not host.isascii() or "," in host or (authority and not Path(authority).is_absolute()):
            raise _malformed()
        if host and not is_loopback(host) and not authority:
            raise InvalidSettings(
                f"The ledger's server {host} is not this machine, and needs TLS; add ?sslrootcert=FILE to its address, "
                "with the PEM file of the authority that vouches for it."
            )
        return cls(host or socket, port, database, user, Path(authority) if authority else None)

    def __str__(self) -> str:
        options = {"sslrootcert": str(self.authority)} if self.authority else {}
        host = f"[{self.host}]" if ":" in self.host else self.host
        if self.host.startswith("/"):
            options, host = {"host": self.host} | options, ""
        query = f"?{urlencode(options, safe='/')}" if options else ""
        return f"{PREFIX}{quote(self.user)}@{host}:{self.port}/{quote(self.database)}{query}"


Place = Path | DatabaseAddress
"""The state folder of a file, or a database."""


def parse_place(text: str) -> Place:
    """What a person names. InvalidSettings for an address that is none."""
    return DatabaseAddress.parse(text) if text.partition(":")[0] in ("postgresql", "postgres") else Path(text)


def _malformed() -> InvalidSettings:
    return InvalidSettings(
        f"A ledger's address is {PREFIX}USER@HOST/DATABASE, and has letters, digits, dots and dashes for its names; "
        "it may end in ?sslrootcert=/FILE. Write it so."
    )
