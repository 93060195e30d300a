"""Which addresses are this machine's own, and so need no TLS, and which are all that it has."""

import ipaddress

from confide.errors import InsecureConnection


def is_loopback(host: str) -> bool:
    """Whether a host name or address is this machine's own."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def is_everywhere(host: str) -> bool:
    """Whether who listens there is reached at all of this machine's addresses, its own among them."""
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False


def require_loopback(host: str, *, insecure_no_tls: bool) -> None:
    """InsecureConnection for a host that is not this machine's own, unless that is allowed."""
    if not is_loopback(host) and not insecure_no_tls:
        raise InsecureConnection(
            f"Serving on {host} without TLS lets anyone on the way see who asks what and when; "
            "give --tls-cert and --tls-key (`confide tls make-local` makes them), or use a loopback host."
        )
