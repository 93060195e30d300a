"""Who asks, and how much of something scarce one of them may hold. Knows no protocol, and nobody's name."""

import ipaddress
from typing import Final

from confide.net.vsock import VSOCK

_IPV6_NETWORK: Final = 64
"""Bits of an IPv6 address that one subscriber cannot choose."""
_LONGEST: Final = 64


def origin(address: str, port: int = 0) -> str:
    """Whom a connection counts for: its IPv4 address, or its IPv6 network.

    On this machine every connection counts for itself: what connects from here is a gateway, with everybody behind it.
    So it does by virtual sockets, where the gateway is whoever runs this machine.
    port: the connection's; 0 where the address was forwarded by such a gateway.
    """
    try:
        ip = ipaddress.ip_address(address)
    except ValueError:
        return f"{address[:_LONGEST]} {port}" if address.startswith(f"{VSOCK}:") else address[:_LONGEST]
    if ip.is_loopback:
        return f"{ip} {port}"
    if ip.version == 4:
        return str(ip)
    if ip.ipv4_mapped:
        return origin(str(ip.ipv4_mapped), port)
    return str(ipaddress.ip_network((ip, _IPV6_NETWORK), strict=False))


class Shares:
    """A capacity that is drawn on by many, of which nobody gets all.

    One may hold as much as `times` what is then left. So the first gets times / (times + 1) of it, those who come later
    always find something, and what one may hold shrinks by itself as more of them come (Choudhury and Hahne, "Dynamic
    queue length thresholds for shared-memory packet switches", 1998).
    """

    def __init__(self, capacity: int, times: int = 1) -> None:
        self.free = capacity
        self._times = times
        self._held: dict[str, int] = {}

    def held(self, who: str) -> int:
        """What they have."""
        return self._held.get(who, 0)

    def take(self, who: str, amount: int = 1) -> bool:
        """Whether they get so much more. Who holds nothing yet gets it wherever there is enough."""
        held, left = self.held(who), self.free - amount
        if left < 0 or (held and held + amount > self._times * left):
            return False
        self.free = left
        self._held[who] = held + amount
        return True

    def give_back(self, who: str, amount: int = 1) -> None:
        """They hold so much less."""
        self.free += amount
        self._held[who] -= amount
        if not self._held[who]:
            del self._held[who]
