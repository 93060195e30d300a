"""Errors of the local proxy."""

from confide.errors.base import ConfideError
from confide.errors.enclave import RequestRefused


class InvalidSettings(ConfideError):
    """A file of settings says what cannot be done."""

    code = "settings"


class ProxyNotRunning(ConfideError):
    """There is no proxy to ask or to stop."""

    code = "proxy-not-running"


class WrongKey(RequestRefused):
    """The proxy wants a key that was not shown."""

    code = "wrong-key"
