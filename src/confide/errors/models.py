"""Errors about models, their packages, keys and owners."""

from typing import Self

from confide.errors.base import ConfideError


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


class StaleHint(InvalidPackage):
    """A shell's hint is another model's, another epoch's, or damaged; no server is to blame for what comes of it."""

    code = "stale-hint"


class UnreadableDocument(ConfideError):
    """A document for a corpus cannot be read, or not within the bounds of one."""

    code = "unreadable-document"

    def __init__(self, message: str, reason: str = "") -> None:
        """reason: why, as the end of a sentence."""
        super().__init__(message)
        self.reason = reason

    @classmethod
    def because(cls, reason: str, name: str = "The document") -> Self:
        """With the sentence around a reason. name: of the document, quoted."""
        return cls(f"{name} cannot be read: {reason}; mend or convert it, or leave it out.", reason)


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


class BenchmarkError(ConfideError):
    """Something cannot be measured here and now, or results cannot be compared with one another."""

    code = "benchmark"


class InvalidResult(ConfideError):
    """A file of measured results is none, was changed, or claims a machine that its evidence does not show."""

    code = "invalid-result"


class WrongMode(ConfideError):
    """A model is asked for what its mode does not have."""

    code = "wrong-mode"
