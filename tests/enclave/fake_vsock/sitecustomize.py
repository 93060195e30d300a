"""Imported by Python as it starts, where this folder is on its path: see the package."""

import itertools
import os
import socket
from typing import Any

FOLDER = os.environ["FAKE_VSOCK"]
Real = socket.socket


class Socket(Real):
    """Of the family of virtual sockets where that is asked for; else as it is."""

    _port: int | None = None
    _peers = itertools.count(40001)

    def __init__(self, family: int = -1, *more: Any, **named: Any) -> None:
        self._virtual = family == socket.AF_VSOCK
        if self._virtual:
            _require_allowed()
        super().__init__(socket.AF_UNIX if self._virtual else family, *more, **named)

    def bind(self, address: Any) -> None:
        if self._virtual:
            self._port = address[1]
            address = f"{FOLDER}/{address[1]}"
        super().bind(address)

    def connect(self, address: Any) -> None:
        super().connect(f"{FOLDER}/{address[1]}" if self._virtual else address)

    def accept(self) -> tuple[Real, Any]:
        client, address = super().accept()
        return client, (3, next(self._peers)) if self._virtual else address

    def getsockname(self) -> Any:
        return (socket.VMADDR_CID_ANY, self._port) if self._virtual else super().getsockname()


def _require_allowed() -> None:
    """PermissionError where a filter of system calls takes the real ones away."""
    try:
        Real(socket.AF_VSOCK).close()
    except PermissionError:
        raise
    except OSError:
        return  # this kernel has none


socket.socket = Socket  # type: ignore[misc]
