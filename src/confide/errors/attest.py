"""Errors about evidence, collateral and policies."""

from confide.errors.base import ConfideError


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


class UnsafeConfiguration(AttestationError):
    """The hardware is genuine, and was set up so that it does not protect the software from its owner."""

    code = "unsafe-configuration"


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


class CorpusRefused(AttestationError):
    """A corpus is older than a head that was met before, another one of its number, or nobody can tell."""

    code = "corpus-refused"


class GraphRefused(AttestationError):
    """A graph of services is not as its owners signed it, older than one that was met, or nobody can tell."""

    code = "graph-refused"


class MalformedReceipt(AttestationError):
    """A receipt, or a document that belongs to it, is truncated, oversized or not what it should be."""

    code = "malformed-receipt"


class MalformedScore(AttestationError):
    """A score certificate is truncated, oversized or not what it should be."""

    code = "malformed-score"


class MalformedTraining(AttestationError):
    """A training certificate is truncated, oversized or not what it should be."""

    code = "malformed-training"


class ReceiptMissing(AttestationError):
    """The workload's statement promises a receipt for every answer, and this answer has none."""

    code = "receipt-missing"


class ReceiptRefused(AttestationError):
    """A receipt is not for this answer, or not by the workload that was verified."""

    code = "receipt-refused"


class RunRefused(ConfideError):
    """A run that measures or trains is not made: an approval is missing, or what would run is not what was approved."""

    code = "run-refused"


class InvalidTask(ConfideError):
    """A task file is not one, or asks for what cannot be measured on this model."""

    code = "invalid-task"


class InvalidCorpus(ConfideError):
    """A corpus file or a recipe for training is not one, or a check of the dataset did not pass."""

    code = "invalid-corpus"


class TrainingFailed(ConfideError):
    """A training came to nothing: its loss is not finite, or what it left cannot be resumed."""

    code = "training-failed"


class InvalidGraph(ConfideError):
    """A manifest, draft or log of a graph of services is none, or contradicts itself."""

    code = "invalid-graph"


class InvalidPolicy(ConfideError):
    """A policy for attestation is not one, or says something that no evidence could satisfy."""

    code = "invalid-policy"
