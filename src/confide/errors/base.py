"""The root of all errors, and those of any connection."""

from typing import ClassVar


class ConfideError(Exception):
    """Base of everything Confide raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: int = 1
    """What a command exits with that ends in this; groups of commands may set their own."""


class ConnectionLost(ConfideError):
    """The server cannot be reached, or the connection broke."""

    code = "connection-lost"


class AddressUnavailable(ConfideError):
    """An address or port cannot be listened on."""

    code = "address-unavailable"


class ServerSilent(ConnectionLost):
    """The server took the connection and then did not answer for too long."""

    code = "server-silent"


class InsecureConnection(ConfideError):
    """A plain connection to something that is not this machine was refused."""

    code = "insecure-connection"


class UntrustedCertificate(InsecureConnection):
    """What answers could not prove that it is the server named."""

    code = "untrusted-certificate"


class InvalidCertificate(ConfideError):
    """A file of certificates or a private key is missing or is not what it should be."""

    code = "invalid-certificate"


def printable(words: str, most: int = 300) -> str:
    """A peer's words as they may be shown: of bounded length, and with nothing a terminal would obey."""
    return "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in words[:most])
