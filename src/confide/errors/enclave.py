"""Errors of the enclave mode: the channel, engines, the API and the release of keys."""

from typing import Final, Self

from confide.errors.base import ConfideError
from confide.errors.hybrid import (
    BudgetExhausted,
    LedgerUnavailable,
    LicenceRefused,
    MalformedMessage,
    RateLimited,
    ServerBusy,
    ServerFault,
)
from confide.errors.models import UnreadableDocument


class ChannelError(ConfideError):
    """Something about the encrypted channel to a workload."""

    code = "channel"


class ChannelRefused(ChannelError):
    """What came is not an encrypted request for this workload, or came before."""

    code = "channel-refused"


class ChannelBroken(ChannelError):
    """A encrypted request or answer was cut, changed or moved on its way."""

    code = "channel-broken"


class KeyChanged(ChannelError):
    """The workload has another key than the one that was verified; it has to be verified again."""

    code = "key-changed"

    def __init__(self, message: str, key_id: bytes = b"") -> None:
        """key_id: of the key that it has now, by the word of whoever answered; empty where that is not said."""
        super().__init__(message)
        self.key_id = key_id


class GatewayError(ChannelError):
    """Something before the workload answered in its place: a proxy, a login page, another server."""

    code = "gateway"


class EngineError(ConfideError):
    """The engine that runs a model cannot do what is asked."""

    code = "engine"


class EngineFault(EngineError):
    """The engine failed at an answer, and no request is to blame: ask again, or see what its operator can do."""

    code = "engine-fault"


class PromptRefused(EngineError):
    """A prompt that the model cannot take, for what it is: the request is to blame, not the engine."""

    code = "prompt-refused"


class EngineUnavailable(EngineError):
    """The engine is away, or was closed; nothing is wrong with the request."""

    code = "engine-unavailable"


class PromptTooLong(PromptRefused):
    """A prompt and its answer do not fit the model's context."""

    code = "prompt-too-long"


class AnswerTimedOut(EngineError):
    """The engine gave nothing for too long, or an answer took too long in all."""

    code = "answer-timed-out"


class SelfTestFailed(ConfideError):
    """The engine does not give the answers that it gave when the model was sealed, or its weights have changed."""

    code = "self-test-failed"


class SelfTestMissing(ConfideError):
    """A package has no known answers, or a model gives none that are certain enough to test with."""

    code = "self-test-missing"


class EgressOpen(ConfideError):
    """The process could still open connections or change files, or a connection is open that it should not have."""

    code = "egress-open"


class KeyStoreError(ConfideError):
    """The folder of model keys, or a key in it, cannot be opened, read or written."""

    code = "key-store"


class UnknownModelKey(ConfideError):
    """No model key of this id is kept here."""

    code = "unknown-model-key"


class UnknownReceipt(ConfideError):
    """No receipt of this id is kept here, or not any more."""

    code = "unknown-receipt"


class KeyRefused(ConfideError):
    """A model key is not released to this workload. checks: the codes of those that failed."""

    code = "key-refused"

    def __init__(self, message: str, checks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class NonceRefused(ConfideError):
    """Evidence was made for a nonce that is unknown, used or expired."""

    code = "nonce-refused"


class NotANeighbour(ConfideError):
    """A service that answers its neighbours alone was asked by somebody else. checks: codes of those that failed."""

    code = "not-a-neighbour"

    def __init__(self, message: str, checks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class NeighbourRefused(ConfideError):
    """A service behind the one that was asked is not what it has to be, or does not let that one in."""

    code = "neighbour-refused"


class AuditLogInUse(ConfideError):
    """Another process keeps an audit log locked, or there is one already."""

    code = "audit-log-in-use"


class AuditLogCorrupted(ConfideError):
    """An audit log, of key releases or of a client, does not hold what was written to it."""

    code = "audit-log-corrupted"


class AuditLogUnavailable(ConfideError):
    """An audit log cannot be read or written, for want of disk space most likely; what it is about did not happen."""

    code = "audit-log-unavailable"


class RequestRefused(ConfideError):
    """A request to the API is malformed, or asks for what is not offered."""

    code = "request-refused"

    def __init__(self, message: str, field: str | None = None) -> None:
        """field: of the request, where one is to blame."""
        super().__init__(message)
        self.field = field


class ConversationRefused(RequestRefused):
    """The model's chat template does not take a conversation."""

    code = "conversation-refused"

    def __init__(self, message: str, field: str | None = "messages") -> None:
        super().__init__(message, field)


class RequestTooLarge(RequestRefused):
    """A request is larger than the server takes."""

    code = "request-too-large"


class RequestTimedOut(RequestRefused):
    """A request did not arrive in time."""

    code = "request-timed-out"


class ApiKeyRefused(LicenceRefused):
    """The licence key of a request to the API is missing, unknown, revoked or expired."""

    code = "api-key-refused"


class UnknownCorpus(RequestRefused):
    """A request names another corpus than the one served."""

    code = "unknown-corpus"


class UnknownDocument(RequestRefused):
    """A request names a document that a user's collection does not have."""

    code = "unknown-document"


class CollectionFull(RequestRefused):
    """A user's collection, or the room for all of them, has no place for what is to be added."""

    code = "collection-full"


class CollectionDamaged(ConfideError):
    """What a service's machine kept of a user's collection is not what was written there."""

    code = "collection-damaged"

    @classmethod
    def changed(cls) -> Self:
        """The only one there is: nobody can tell what was changed."""
        return cls(
            "What is kept of this collection was changed or cut on the service's machine; ask its operator for a copy, "
            "or delete it and add your documents again."
        )


class UnknownModel(RequestRefused):
    """A request names another model than the one served."""

    code = "unknown-model"


WORKLOAD_CODES: Final = frozenset(
    error.code
    for error in (
        AnswerTimedOut,
        ApiKeyRefused,
        BudgetExhausted,
        CollectionDamaged,
        CollectionFull,
        ConversationRefused,
        EngineError,
        EngineFault,
        EngineUnavailable,
        LedgerUnavailable,
        NeighbourRefused,
        NonceRefused,
        NotANeighbour,
        PromptRefused,
        PromptTooLong,
        RateLimited,
        RequestRefused,
        RequestTimedOut,
        RequestTooLarge,
        SelfTestFailed,
        ServerBusy,
        ServerFault,
        UnknownCorpus,
        UnknownDocument,
        UnknownModel,
        UnknownReceipt,
        UnreadableDocument,
    )
)
"""The codes that a workload's API may report. A client takes no other error from a workload's word."""

BROKER_CODES: Final = frozenset(
    error.code
    for error in (
        KeyRefused,
        MalformedMessage,
        NonceRefused,
        RequestTimedOut,
        RequestTooLarge,
        ServerBusy,
        ServerFault,
        UnknownModelKey,
    )
)
"""The codes that a key broker may report. A workload takes no other error from a broker's word."""
