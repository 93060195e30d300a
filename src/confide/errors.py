"""One tree of typed errors. Every message is a sentence that says what to do next.

Each class has a stable `code`, which is what crosses the wire and what `--json` prints; nothing secret ever
enters a message.
"""

from typing import ClassVar


class ConfideError(Exception):
    """Base of everything Confide raises on purpose."""

    code: ClassVar[str] = "error"
    exit_code: int = 1
    """What a command exits with that ends in this; groups of commands may set their own."""


class InsecureParameters(ConfideError):
    """The parameters asked for miss the security table, the drowning ratio or the failure probability."""

    code = "insecure-parameters"


class ModelNotSupported(ConfideError):
    """The model's architecture cannot be split."""

    code = "model-not-supported"


class InvalidPackage(ConfideError):
    """A package folder is missing something, is malformed or does not belong with its counterpart."""

    code = "invalid-package"


class SurplusFile(InvalidPackage):
    """A sealed model's folder holds a file that its owner did not seal."""

    code = "surplus-file"


class TruncatedFile(InvalidPackage):
    """A file of a sealed model is missing, or does not have the length that its owner signed."""

    code = "truncated-file"


class DamagedFile(InvalidPackage):
    """A file of a sealed model, or a chunk of it, was changed, moved, or comes from elsewhere."""

    code = "damaged-file"


class SubstitutedContent(InvalidPackage):
    """What a sealed model decrypts to is not what its owner signed: somebody else with the key encrypted it."""

    code = "substituted-content"


class WrongModelKey(InvalidPackage):
    """A sealed model was encrypted with another key than the one given."""

    code = "wrong-model-key"


class ModelKeyError(ConfideError):
    """The key of sealed models cannot be made, read or understood."""

    code = "model-key"


class OwnerKeyError(ConfideError):
    """An owner's key cannot be made, read or understood."""

    code = "owner-key"


class UntrustedOwner(ConfideError):
    """A package or a release is signed by somebody who is not trusted here."""

    code = "untrusted-owner"


class InvalidActivation(ConfideError):
    """An activation is not finite, so it has no integer representation."""

    code = "invalid-activation"


class OutsideCalibration(ConfideError):
    """An encrypted attention block met numbers outside the ranges that it was compiled for."""

    code = "outside-calibration"


class EvaluationError(ConfideError):
    """A model cannot be measured on this text, or not with the results that an earlier run left."""

    code = "evaluation"


class WrongMode(ConfideError):
    """A model is asked for what its mode does not have."""

    code = "wrong-mode"


class PackError(ConfideError):
    """Something about the client's pack folder."""

    code = "pack"


class PackInUse(PackError):
    """Another process, or the parent of this fork, owns the pack folder."""

    code = "pack-in-use"


class PackExhausted(PackError):
    """No unused mask is left."""

    code = "pack-exhausted"


class UnusablePack(PackError):
    """A pack in preparation can never be finished."""

    code = "unusable-pack"


class PackCorrupted(PackError):
    """A pack file does not hold what was written to it."""

    code = "pack-corrupted"


class PackUnavailable(PackError):
    """The pack folder cannot be read or written, for want of disk space most likely; nothing was sent or lost."""

    code = "pack-unavailable"


class LedgerInUse(ConfideError):
    """Another server process owns the ledger."""

    code = "ledger-in-use"


class LedgerCorrupted(ConfideError):
    """The ledger's files do not hold what was written to them."""

    code = "ledger-corrupted"


class LedgerCopied(ConfideError):
    """The state folder is a copy, or came back from a backup, and may not know what was answered since."""

    code = "ledger-copied"


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
    """The licence's tokens, or its packs of the day, are used up."""

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


class MalformedMessage(ProtocolError):
    """A frame is truncated, oversized, of an unknown type or out of bounds."""

    code = "malformed-message"


class UnknownGroup(ProtocolError):
    """The layer group named does not exist in the model served."""

    code = "unknown-group"


class WrongShape(ProtocolError):
    """A payload does not have the width or the number of rows that its group needs."""

    code = "wrong-shape"


class UnknownPack(ProtocolError):
    """The server has no offline request on record for this pack and group."""

    code = "unknown-pack"


class RequestConflict(ProtocolError):
    """A second, different offline request came for one pack and group."""

    code = "request-conflict"


class IndexUsed(ProtocolError):
    """A mask index was already answered for other data, or was burned."""

    code = "index-used"


class ServerBusy(ProtocolError):
    """A limit of the server (connections, memory) is reached for the moment."""

    code = "server-busy"


class RateLimited(ServerBusy):
    """The licence's tokens of the minute are used up."""

    code = "rate-limited"


class ServerChanged(ProtocolError):
    """The server is not the one that this client's packs were made with."""

    code = "server-changed"


class ServerFault(ProtocolError):
    """The server failed inside; its own log says why."""

    code = "server-fault"


class IntegrityError(ConfideError):
    """The server's answer is not what the model's layer gives."""

    code = "integrity"


class ServerDistrusted(ConfideError):
    """The server is on this client's refusal list, because an answer of its was wrong."""

    code = "server-distrusted"


class AttestationError(ConfideError):
    """Evidence of a trusted execution environment is not to be trusted."""

    code = "attestation"


class MalformedEvidence(AttestationError):
    """Evidence, collateral or a certificate is truncated, oversized or not what it should be."""

    code = "malformed-evidence"


class UnknownRoot(AttestationError):
    """A chain of certificates does not end in a root that is trusted."""

    code = "unknown-root"


class InvalidSignature(AttestationError):
    """A signature does not hold, or belongs to something else."""

    code = "invalid-signature"


class Revoked(AttestationError):
    """A certificate was revoked."""

    code = "revoked"


class OutsideValidity(AttestationError):
    """Something is expired, or not valid yet, at the time of appraisal."""

    code = "outside-validity"


class WrongCollateral(AttestationError):
    """Collateral is missing, or belongs to another platform."""

    code = "wrong-collateral"


class UnknownTcb(AttestationError):
    """No level of the vendor's list matches the platform's trusted computing base."""

    code = "unknown-tcb"


class EventLogMismatch(AttestationError):
    """An event log does not lead to the registers that the hardware signed."""

    code = "event-log-mismatch"


class DebugEnabled(AttestationError):
    """The hardware runs the software in debug mode, where its owner can read everything."""

    code = "debug-enabled"


class WrongBinding(AttestationError):
    """Evidence is genuine perhaps, and speaks for another key than the one in use."""

    code = "wrong-binding"


class NoTrustedEnvironment(AttestationError):
    """No trusted execution environment can be read on this machine."""

    code = "no-trusted-environment"


class EvidenceUnavailable(AttestationError):
    """A trusted execution environment is here, and did not hand out its evidence."""

    code = "evidence-unavailable"


class CollateralUnavailable(AttestationError):
    """Collateral is neither at hand nor to be had from the vendor for the moment."""

    code = "collateral-unavailable"


class AttestationRefused(AttestationError):
    """A policy does not accept a workload; no prompt is sent to it. checks: the codes of those that failed."""

    code = "attestation-refused"

    def __init__(self, message: str, checks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class InvalidPolicy(ConfideError):
    """A policy for attestation is not one, or says something that no evidence could satisfy."""

    code = "invalid-policy"


class ConnectionLost(ConfideError):
    """The server cannot be reached, or the connection broke."""

    code = "connection-lost"


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


def error_class(code: str) -> type[ConfideError]:
    """The class whose `code` this is; ProtocolError for a code this version does not know."""
    pending: list[type[ConfideError]] = [ConfideError]
    while pending:
        candidate = pending.pop()
        if candidate.code == code:
            return candidate
        pending.extend(candidate.__subclasses__())
    return ProtocolError


class ChannelError(ConfideError):
    """Something about the encrypted channel to a workload."""

    code = "channel"


class ChannelRefused(ChannelError):
    """What came is not a sealed request for this workload, or came before."""

    code = "channel-refused"


class ChannelBroken(ChannelError):
    """A sealed request or answer was cut, changed or moved on its way."""

    code = "channel-broken"


class KeyChanged(ChannelError):
    """The workload has another key than the one that was verified; it has to be verified again."""

    code = "key-changed"


class GatewayError(ChannelError):
    """Something before the workload answered in its place: a proxy, a login page, another server."""

    code = "gateway"


class EngineError(ConfideError):
    """The engine that runs a model cannot do what is asked."""

    code = "engine"


class PromptTooLong(EngineError):
    """A prompt and its answer do not fit the model's context."""

    code = "prompt-too-long"


class KeyStoreError(ConfideError):
    """The folder of model keys, or a key in it, cannot be opened, read or written."""

    code = "key-store"


class UnknownModelKey(ConfideError):
    """No model key of this id is kept here."""

    code = "unknown-model-key"


class KeyRefused(ConfideError):
    """A model key is not released to this workload. checks: the codes of those that failed."""

    code = "key-refused"

    def __init__(self, message: str, checks: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.checks = checks


class NonceRefused(ConfideError):
    """Evidence for a model key was made for a nonce that is unknown, used or expired."""

    code = "nonce-refused"


class AuditLogInUse(ConfideError):
    """Another process writes the log of key releases."""

    code = "audit-log-in-use"


class AuditLogCorrupted(ConfideError):
    """The log of key releases does not hold what was written to it."""

    code = "audit-log-corrupted"


class AuditLogUnavailable(ConfideError):
    """The log of key releases cannot be read or written, for want of disk space most likely; no key left."""

    code = "audit-log-unavailable"


class AnswerTimedOut(EngineError):
    """The engine gave nothing for too long, or an answer took too long in all."""

    code = "answer-timed-out"


class RequestRefused(ConfideError):
    """A request to the API is malformed, or asks for what is not offered."""

    code = "request-refused"

    def __init__(self, message: str, field: str | None = None) -> None:
        """field: of the request, where one is to blame."""
        super().__init__(message)
        self.field = field


class RequestTooLarge(RequestRefused):
    """A request is larger than the server takes."""

    code = "request-too-large"


class RequestTimedOut(RequestRefused):
    """A request did not arrive in time."""

    code = "request-timed-out"


class UnknownModel(RequestRefused):
    """A request names another model than the one served."""

    code = "unknown-model"
