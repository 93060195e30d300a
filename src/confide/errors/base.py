"""The root of all errors, and those of any connection."""

from typing import ClassVar

from confide.printable import printable


class ConfideError(Exception):
    """Base of everything Confide raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: int = 1
    """What a command exits with that ends in this; groups of commands may set their own."""

    def __str__(self) -> str:
        """One printable line, wherever it is shown: a file's, a peer's or a workload's words may be a part of it."""
        return printable(super().__str__())


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


class NotInstalled(ConfideError):
    """A library is missing that another role's installation has."""

    code = "not-installed"


class InvalidCertificate(ConfideError):
    """A file of certificates or a private key is missing or is not what it should be."""

    code = "invalid-certificate"


class Unexpected(ConfideError):
    """Something that nobody expected, and whoever maintains this should hear of."""

    code = "unexpected"


class MachineError(ConfideError):
    """The operating system refused."""

    code = "machine"
