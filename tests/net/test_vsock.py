import socket

import pytest

from confide.enclave.api.server import bind
from confide.errors import AddressUnavailable, InsecureConnection
from confide.net.fairness import origin
from confide.net.loopback import require_loopback
from confide.net.vsock import VSOCK, VsockAddress, spelled


def test_an_address_is_read() -> None:
    assert VsockAddress.parse("vsock:3:8471") == (3, 8471)
    assert VsockAddress.parse("vsock:4294967294:0") == (4294967294, 0)


@pytest.mark.parametrize(
    "text",
    [
        *("vsock:3", "vsock:3:", "vsock:-1:1", "vsock:4294967295:1", "vsock:3:4294967295", "vsock:\u0663:1"),
        *("3:1", "", "vsock:3:1\n", "vsock:3:" + "9" * 5000),
    ],
    ids=range(10),
)
def test_no_other_is(text: str) -> None:
    with pytest.raises(ValueError, match="vsock:CID:PORT"):
        VsockAddress.parse(text)


def test_behind_the_host_every_connection_counts_for_itself() -> None:
    """Its number is no address of IPv4, which it would be read as."""
    assert spelled((3, 40001)) == ("vsock:3", 40001)
    assert spelled(("10.0.0.3", 40001)) == ("10.0.0.3", 40001)
    assert origin(*spelled((3, 40001))) != origin(*spelled((3, 40002)))
    assert origin("10.0.0.3", 40001) == origin("10.0.0.3", 40002)


def test_nothing_is_served_there_without_tls() -> None:
    with pytest.raises(InsecureConnection):
        require_loopback(VSOCK, insecure_no_tls=False)


def test_a_socket_is_bound_for_whoever_runs_this_machine() -> None:
    try:
        bound = bind(VSOCK, 0)
    except AddressUnavailable as error:
        pytest.skip(str(error))
    with bound:
        cid, port = bound.getsockname()
        assert (bound.family, cid) == (socket.AF_VSOCK, socket.VMADDR_CID_ANY)
        assert 0 < port < socket.VMADDR_PORT_ANY
        with pytest.raises(AddressUnavailable, match=f"vsock port {port}.*another program"):
            bind(VSOCK, port)


def test_a_system_without_them_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_VSOCK")
    with pytest.raises(AddressUnavailable, match="this system has none") as raised:
        bind(VSOCK, 8470)
    assert isinstance(raised.value.__cause__, AttributeError)
