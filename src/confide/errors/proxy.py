"""Errors of the local proxy, and what errors of the other side mean for whether it is asked again."""

from typing import Final

from confide.errors.attest import AttestationError, CollateralUnavailable
from confide.errors.base import ConfideError, ConnectionLost, InsecureConnection
from confide.errors.enclave import GatewayError, RequestRefused
from confide.errors.hybrid import (
    IntegrityError,
    LicenceRefused,
    ModelMismatch,
    ServerBusy,
    ServerDistrusted,
    VersionMismatch,
)
from confide.errors.models import InvalidPackage, UntrustedOwner


class InvalidSettings(ConfideError):
    """A file of settings says what cannot be done."""

    code = "settings"


class ProxyNotRunning(ConfideError):
    """There is no proxy to ask or to stop."""

    code = "proxy-not-running"


class WrongKey(RequestRefused):
    """The proxy wants a key that was not shown."""

    code = "wrong-key"


PASSING: Final = (CollateralUnavailable, ConnectionLost, GatewayError, ServerBusy)
"""Errors that may pass by themselves. One of them is a kind of REFUSING too, and passes all the same."""
REFUSING: Final = (
    AttestationError,
    InsecureConnection,
    IntegrityError,
    InvalidPackage,
    LicenceRefused,
    ModelMismatch,
    ServerDistrusted,
    UntrustedOwner,
    VersionMismatch,
)
"""Errors after which the next question would have the same: nothing is asked until the other side is verified anew."""
