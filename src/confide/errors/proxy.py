"""Errors of the local proxy."""

from confide.errors.base import ConfideError


class InvalidSettings(ConfideError):
    """A file of settings says what cannot be done."""

    code = "settings"


class ProxyNotRunning(ConfideError):
    """There is no proxy to ask or to stop."""

    code = "proxy-not-running"
