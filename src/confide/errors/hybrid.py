"""Errors of the hybrid mode: parameters, licences, the ledger, the protocol, a server that cheats."""

from typing import Final

from confide.errors.base import ConfideError


class InsecureParameters(ConfideError):
    """The parameters asked for miss the security table or the failure probability."""

    code = "insecure-parameters"


class ModelClosed(ConfideError):
    """A hybrid model was closed, or belongs to the parent of this fork; nothing was sent."""

    code = "model-closed"


class RefusalListDamaged(ConfideError):
    """The list of distrusted servers cannot be read."""

    code = "refusal-list-damaged"


class LedgerInUse(ConfideError):
    """Another server process owns the ledger."""

    code = "ledger-in-use"


class LedgerCorrupted(ConfideError):
    """The ledger's files do not hold what was written to them."""

    code = "ledger-corrupted"


class LedgerCopied(ConfideError):
    """The state folder is a copy, or came back from a backup, and may not know what was answered since."""

    code = "ledger-copied"


class LedgerElsewhere(ConfideError):
    """A package's ledger lies in another folder than the one given."""

    code = "ledger-elsewhere"


class LedgerUnavailable(ConfideError):
    """The ledger cannot be written, for want of disk space most likely; nothing was answered."""

    code = "ledger-unavailable"


class ClockWentBackwards(ConfideError):
    """The clock stands before the ledger's last record."""

    code = "clock-went-backwards"


class LicenceError(ConfideError):
    """A licence does not allow what was asked for."""

    code = "licence"


class LicenceRefused(LicenceError):
    """The licence key is missing, unknown, revoked or expired."""

    code = "licence-refused"


class BudgetExhausted(LicenceError):
    """The licence's tokens are used up."""

    code = "budget-exhausted"


class DisclosureLimit(LicenceError):
    """More tokens would let the licensee solve a layer's weights, and the owner has not allowed that."""

    code = "disclosure-limit"


class ProtocolError(ConfideError):
    """The other side did not keep to the protocol."""

    code = "protocol"


class VersionMismatch(ProtocolError):
    """The two sides speak different versions of the protocol."""

    code = "version-mismatch"


class ModelMismatch(ProtocolError):
    """The server's package and the client's shell were not made together."""

    code = "model-mismatch"


class ShellOutdated(ModelMismatch):
    """The server has a newer release of the model than the client's shell is of."""

    code = "shell-outdated"


class MalformedMessage(ProtocolError):
    """A frame is truncated, oversized, of an unknown type or out of bounds."""

    code = "malformed-message"


class UnknownGroup(ProtocolError):
    """The layer group named does not exist in the model served, or is at another server."""

    code = "unknown-group"


class WrongShape(ProtocolError):
    """A payload does not have the width or the number of rows that its group needs."""

    code = "wrong-shape"


class UnknownBlock(ProtocolError):
    """The server has nothing made ahead for these tokens; the same request with their p0 is answered."""

    code = "unknown-block"


class WrongGroups(ProtocolError):
    """The server does not have the layer groups that are asked of it, or names some that the model has not."""

    code = "wrong-groups"


class InvalidPlacement(ConfideError):
    """The servers given do not have a model's layer groups between them, each at one of them and its replicas."""

    code = "invalid-placement"


class ServerBusy(ProtocolError):
    """A limit of the server (connections, memory) is reached for the moment."""

    code = "server-busy"

    def __init__(self, message: str, retry_seconds: float = 1.0) -> None:
        """retry_seconds: after which another try may go better, as far as that is known."""
        super().__init__(message)
        self.retry_seconds = retry_seconds


class RateLimited(ServerBusy):
    """The licence's tokens of the minute are used up."""

    code = "rate-limited"


class ServerFault(ProtocolError):
    """The server failed inside; its own log says why."""

    code = "server-fault"


class IntegrityError(ConfideError):
    """The server's answer is not what the model's layer gives."""

    code = "integrity"


class ServerDistrusted(ConfideError):
    """The server is on this client's refusal list, because an answer of its was wrong."""

    code = "server-distrusted"


WIRE_CODES: Final = frozenset(
    error.code
    for error in (
        BudgetExhausted,
        DisclosureLimit,
        LedgerUnavailable,
        LicenceRefused,
        MalformedMessage,
        ModelMismatch,
        ProtocolError,
        RateLimited,
        ServerBusy,
        ServerFault,
        ShellOutdated,
        UnknownBlock,
        UnknownGroup,
        VersionMismatch,
        WrongShape,
    )
)
"""The codes that a layer server may report. A client takes no other error from a server's word."""


class ClientKeyError(ConfideError):
    """The key that this client signs its own statements with cannot be read or made."""

    code = "client-key"
