"""Virtual sockets (vsock(7)): how a machine without a network and whoever runs it reach each other.

An address is a machine's number (CID) and a port. Whoever comes in comes from the machine's host, as from a gateway:
everybody is behind it.
"""

import re
from typing import Final, NamedTuple

VSOCK: Final = "vsock"
"""In place of a host name: listen to virtual sockets."""

_ADDRESS: Final = re.compile(rf"{VSOCK}:([0-9]{{1,10}}):([0-9]{{1,10}})")
_MOST: Final = 0xFFFFFFFE
"""One more is any CID, or any port."""


class VsockAddress(NamedTuple):
    """Where a virtual socket is connected to. cid: 3 is a Nitro enclave's parent, 2 the host of other machines."""

    cid: int
    port: int

    @classmethod
    def parse(cls, text: str) -> "VsockAddress":
        """From `vsock:CID:PORT`. ValueError."""
        matched = _ADDRESS.fullmatch(text)
        if matched is None or max(numbers := (int(matched[1]), int(matched[2]))) > _MOST:
            raise ValueError("An address of virtual sockets is vsock:CID:PORT, such as vsock:3:8471.")
        return cls(*numbers)


def spelled(peer: tuple[str | int, int]) -> tuple[str, int]:
    """Host and port of whoever is connected, where a virtual socket has a number and others have a text."""
    host, port = peer
    return (host, port) if isinstance(host, str) else (f"{VSOCK}:{host}", port)
