"""What a process can reach once its ways out are closed: nothing, but what its connectors lead to.

Each test is a process of its own, since a filter is never taken off.
"""

import os
import shutil
import socket
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Thread

import pytest

from confide.attest.configuration import Egress
from confide.enclave.connector import Connector
from confide.enclave.egress import WaysOut

from . import fake_vsock

WAY = Connector.__new__(Connector)
"""Stands for a connector that is there, where nobody asks it."""
PRELUDE = """
import errno, os, socket, sys, threading
from confide.enclave.egress import close_egress

def refused(work):
    try:
        work()
    except PermissionError:
        return
    raise SystemExit("it was not refused")
"""

KERNEL = """
import ctypes, types
from confide.enclave import egress
real = ctypes.CDLL(None, use_errno=True)
kernel = types.SimpleNamespace(prctl=real.prctl, syscall=real.syscall)
egress.ctypes.CDLL = lambda *_, **__: kernel
"""
"""What `close_egress` takes for the C library."""


def run(
    code: str, *arguments: object, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    script = PRELUDE + textwrap.dedent(code)
    command = [*prefix, sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=900, **options)  # type: ignore[call-overload]


def succeeded(*arguments: object, **options: object) -> str:
    done = run(*arguments, **options)  # type: ignore[arg-type]
    assert done.returncode == 0, done.stderr
    return done.stdout


@contextmanager
def greeter() -> Iterator[int]:
    """The port of a server that greets."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                with connection:
                    connection.sendall(b"hello")

        Thread(target=serve, daemon=True).start()
        yield listener.getsockname()[1]
        listener.shutdown(socket.SHUT_RDWR)


def test_every_way_out_is_closed_for_every_thread_and_program() -> None:
    succeeded(
        """
        import ctypes, subprocess
        libc = ctypes.CDLL(None, use_errno=True)
        start, failures = threading.Event(), []
        def later():
            start.wait()
            try:
                refused(lambda: socket.socket(socket.AF_INET, socket.SOCK_STREAM))
            except BaseException as error:
                failures.append(error)
        early = threading.Thread(target=later)
        early.start()
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        ways = close_egress([listener], keys=None, upstream=None)
        assert ways.stated == "none", ways.stated
        start.set()
        early.join()
        assert not failures, failures
        for family in (socket.AF_INET, socket.AF_INET6, socket.AF_PACKET, socket.AF_NETLINK, socket.AF_VSOCK, 38):
            for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM, socket.SOCK_RAW):
                refused(lambda: socket.socket(family, kind))
        refused(lambda: listener.connect(("127.0.0.1", 9)))
        refused(lambda: listener.sendto(b"x", ("127.0.0.1", 9)))
        refused(lambda: listener.sendto(b"x", 0x20000000, ("127.0.0.1", 9)))
        refused(lambda: listener.sendmsg([b"x"], [], 0x20000000, ("127.0.0.1", 9)))
        refused(lambda: listener.send(b"x", 0x20000000))
        unix = socket.socket(socket.AF_UNIX)
        refused(lambda: unix.connect("/run/docker.sock"))
        for number in (425, 426, 427, 310, 311, 438):
            assert libc.syscall(number, 0, 0, 0, 0, 0, 0) == -1 and ctypes.get_errno() == errno.EPERM, number
        x32 = 0x40000000 | 41
        if os.uname().machine == "x86_64":
            assert libc.syscall(x32, 2, 1, 0) == -1 and ctypes.get_errno() == errno.EPERM
        program = "import socket; socket.socket()"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
        assert "PermissionError" in done.stderr, done.stderr
        """
    )


def test_who_comes_in_is_answered() -> None:
    succeeded(
        """
        import subprocess
        listener = socket.socket()
        listener.bind(("127.0.0.1", 0))
        asking = "import socket, sys; print(socket.create_connection(('127.0.0.1', int(sys.argv[1]))).recv(9))"
        read, write = os.pipe()
        port = listener.getsockname()[1]
        client = subprocess.Popen(
            ["sh", "-c", f"read go <&{read}; exec {sys.executable} -c \\"{asking}\\" {port}"],
            pass_fds=[read], stdout=subprocess.PIPE,
        )
        close_egress([listener], keys=None, upstream=None)
        listener.listen()
        os.write(write, b"go\\n")
        connection, _ = listener.accept()
        connection.sendall(b"welcome")
        peer = connection.getpeername()
        # The connection that came in is no way out either, also once it is closed and could be connected anew.
        unspecified = b"\\0" * 16
        import ctypes
        libc = ctypes.CDLL(None, use_errno=True)
        assert libc.connect(connection.fileno(), unspecified, 16) == -1 and ctypes.get_errno() == errno.EPERM
        connection.close()
        assert client.communicate()[0].strip() == b"b'welcome'"
        """
    )


def test_what_is_stated_names_every_way_that_is_left() -> None:
    stated = {
        WaysOut(*ways, closed=True, neighbours=neighbours, ledger=ledger).stated
        for ways in ((None, None), (WAY, None), (None, WAY), (WAY, WAY))
        for neighbours in ({}, {"search": WAY})
        for ledger in (False, True)
    }
    assert stated == set(Egress) - {Egress.OPEN}
    assert WaysOut(neighbours={"search": WAY}).stated is Egress.OPEN
    with greeter() as port:
        succeeded(
            """
            ways = close_egress(keys=None, upstream=None, neighbours={"search": f"http://127.0.0.1:{sys.argv[1]}"})
            assert ways.stated == "neighbours-only"
            search = ways.neighbours["search"]
            with search.connect() as connection:
                assert connection.recv(9) == b"hello"
            ways.close()
            assert ways.stated == "none"
            try:
                search.connect()
            except ConnectionError:
                sys.exit()
            raise AssertionError("the connector is still there")
            """,
            port,
        )


def test_connectors_lead_where_they_were_told_and_end() -> None:
    with greeter() as keys, greeter() as upstream:
        succeeded(
            """
            urls = [f"http://127.0.0.1:{port}/v1" for port in sys.argv[1:]]
            ways = close_egress(keys=urls[0], upstream=urls[1])
            assert ways.stated == "key-service-and-upstream-only"
            keys = ways.keys
            for connector, port in ((ways.keys, sys.argv[1]), (ways.upstream, sys.argv[2])):
                for _ in range(3):
                    with connector.connect() as connection:
                        assert connection.getpeername() == ("127.0.0.1", int(port))
                        assert connection.recv(9) == b"hello"
                        refused(lambda: connection.connect(("127.0.0.1", 9)))
            ways.close_keys()
            assert ways.stated == "upstream-only"
            try:
                keys.connect()
            except (ConnectionError, OSError):
                pass
            else:
                raise SystemExit("the connector lives")
            assert ways.upstream.connect().recv(9) == b"hello"
            ways.close()
            assert ways.stated == "none"
            """,
            keys,
            upstream,
        )


def test_nobody_at_the_other_end_is_an_error_and_no_more() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    succeeded(
        """
        ways = close_egress(keys=f"http://127.0.0.1:{sys.argv[1]}", upstream=None)
        for _ in range(2):
            try:
                ways.keys.connect()
            except ConnectionError:
                continue
            raise SystemExit("connected")
        assert ways.stated == "key-service-only"
        """,
        port,
    )


def test_a_connection_that_is_open_already_is_refused() -> None:
    with greeter() as port:
        done = run(
            """
            from confide.errors import EgressOpen
            open_already = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
            try:
                close_egress(keys=None, upstream=None)
            except EgressOpen as error:
                print(error)
            """,
            port,
        )
    assert "has a connection open already" in done.stdout, done.stderr
    done = run("close_egress(keys=None, upstream=None)", stdin=socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
    assert "EgressOpen" in done.stderr


def test_what_cannot_be_closed_is_not_claimed() -> None:
    for spoil in (
        "kernel.syscall = lambda *_: 0",  # nothing is installed
        "egress.platform.machine = lambda: 'riscv64'",
        "kernel.syscall = lambda number, operation, *rest: real.syscall(number, 99, *rest)",
        "egress.CALLS = {m: c._replace(refused=()) for m, c in egress.CALLS.items()}",
        # no TSYNC: of this thread alone
        "kernel.syscall = lambda number, operation, flags, program: real.syscall(number, operation, 0, program)\n"
        "threading.Thread(target=threading.Event().wait, daemon=True).start()",
    ):
        done = run(f"{KERNEL}{spoil}\nclose_egress(keys=None, upstream=None)")
        assert "confide.errors.enclave.EgressOpen" in done.stderr, (spoil, done.stderr)


def test_a_filter_that_lets_virtual_sockets_through_is_noticed() -> None:
    """One that refuses the families below theirs, and no other."""
    try:
        socket.socket(socket.AF_VSOCK).close()
    except OSError as error:
        pytest.skip(str(error))
    spoil = """
import struct
equal, at_least = (struct.pack("=HBBI", *one) for one in ((0x15, 1, 0, socket.AF_UNIX), (0x35, 1, 0, socket.AF_VSOCK)))
def lenient(number, operation, flags, program):
    length = ctypes.c_ushort.from_buffer(program._obj).value
    place = ctypes.c_void_p.from_buffer(program._obj, 8)  # struct sock_fprog
    given = ctypes.string_at(place.value, 8 * length)
    changed = ctypes.create_string_buffer(given.replace(equal, at_least), len(given))
    place.value = ctypes.addressof(changed)
    return real.syscall(number, operation, flags, program)
kernel.syscall = lenient
"""
    done = run(f"{KERNEL}{spoil}\nclose_egress(keys=None, upstream=None)")
    assert "is in place and does not hold" in done.stderr, done.stderr


@dataclass
class Neighbourhood:
    """A network namespace, `inner`, with a neighbour at 10.77.0.2 that greets whoever connects to its port 8000."""

    inner: str
    neighbour: subprocess.Popen[str]

    def arrivals(self) -> list[float]:
        """When IP packets came to the neighbour. Ends it."""
        self.neighbour.terminate()
        assert self.neighbour.stdout is not None
        return [float(line) for line in self.neighbour.stdout]


NEIGHBOUR = """
import socket, sys, threading, time
def greet():
    with socket.create_server(("10.77.0.2", 8000)) as listener:
        print("ready", flush=True)
        while True:
            with listener.accept()[0] as connection:
                connection.sendall(b"hello")
wire = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0800))
threading.Thread(target=greet, daemon=True).start()
while True:
    _, (_, _, direction, *_) = wire.recvfrom(2048)
    if direction != socket.PACKET_OUTGOING:
        print(time.time(), flush=True)
"""


@pytest.fixture
def neighbourhood() -> Iterator[Neighbourhood]:
    if os.geteuid() or not shutil.which("ip"):
        pytest.skip("needs root and iproute2")
    inner, outer = "confide-test-inner", "confide-test-outer"

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    try:
        for name in (inner, outer):
            ip("netns", "add", name)
        ip("link", "add", "confide0", "netns", inner, "type", "veth", "peer", "name", "confide1", "netns", outer)
        for name, link, address in ((inner, "confide0", "10.77.0.1/24"), (outer, "confide1", "10.77.0.2/24")):
            ip("-n", name, "address", "add", address, "dev", link)
            ip("-n", name, "link", "set", link, "up")
            ip("-n", name, "link", "set", "lo", "up")
    except subprocess.CalledProcessError as error:
        for name in (inner, outer):
            subprocess.run(["ip", "netns", "del", name], capture_output=True)
        pytest.skip(f"no network namespaces here: {error.stderr!r}")
    command = ["ip", "netns", "exec", outer, sys.executable, "-c", NEIGHBOUR]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as neighbour:
        assert neighbour.stdout is not None
        assert neighbour.stdout.readline() == "ready\n"
        yield Neighbourhood(inner, neighbour)
        neighbour.kill()
    for name in (inner, outer):
        ip("netns", "del", name)


def test_in_a_network_nothing_leaves_but_to_the_key_service(neighbourhood: Neighbourhood) -> None:
    """With a neighbour that could be reached before, and looks at every packet."""
    said = succeeded(
        """
        import time
        neighbour = ("10.77.0.2", 8000)
        with socket.create_connection(neighbour) as before:
            assert before.recv(9) == b"hello"
        listener = socket.socket()
        listener.bind(("10.77.0.1", 8470))
        ways = close_egress([listener], keys="http://10.77.0.2:8000", upstream=None)
        with ways.keys.connect() as allowed:
            assert allowed.recv(9) == b"hello"
        ways.close_keys()
        time.sleep(0.3)
        print(time.time(), ways.stated)
        refused(lambda: socket.create_connection(neighbour, 5))
        refused(lambda: socket.socket(type=socket.SOCK_DGRAM).sendto(b"secret", neighbour))
        refused(lambda: listener.sendto(b"secret", 0x20000000, neighbour))
        refused(lambda: listener.connect(neighbour))
        another = "import socket; socket.create_connection(('10.77.0.2', 8000))"
        os.system(f'{sys.executable} -c "{another}" 2> /dev/null')
        os.system("ping -c 1 -W 1 10.77.0.2 > /dev/null 2>&1")
        time.sleep(0.3)
        """,
        prefix=("ip", "netns", "exec", neighbourhood.inner),
    )
    closed, stated = said.split()
    assert stated == "none"
    arrivals = neighbourhood.arrivals()
    assert len([at for at in arrivals if at < float(closed)]) > 4
    assert not [at for at in arrivals if at > float(closed)]


def test_where_there_is_no_network_virtual_sockets_lead_to_the_key_service(tmp_path: Path) -> None:
    """Whatever the URL's host is: its name is for TLS alone, and nobody resolves it here."""
    with greeter() as keys:
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(tmp_path / "8471"))
        listener.listen()
        with fake_vsock.relay(listener, (socket.AF_INET, ("127.0.0.1", keys))):
            succeeded(
                """
                ways = close_egress(keys="https://keys.invalid:9", upstream=None, keys_through=(3, 8471))
                assert ways.stated == "key-service-only"
                for _ in range(3):
                    with ways.keys.connect() as connection:
                        assert connection.recv(9) == b"hello"
                ways.close()
                assert ways.stated == "none"
                """,
                env=os.environ | fake_vsock.environment(tmp_path),
            )


def test_a_virtual_socket_is_a_way_out_too() -> None:
    """The kernel's own, before and after the filter."""
    done = run(
        """
        from confide.errors import EgressOpen
        try:
            bound = socket.socket(socket.AF_VSOCK)
            bound.bind((socket.VMADDR_CID_ANY, socket.VMADDR_PORT_ANY))
        except OSError:
            print("there are none here")
            raise SystemExit(0)
        try:
            close_egress(keys=None, upstream=None)
        except EgressOpen as error:
            print(error)
        ways = close_egress([bound], keys=None, upstream=None)
        bound.listen()
        refused(lambda: socket.socket(socket.AF_VSOCK))
        refused(lambda: bound.connect((3, 9)))
        print(ways.stated)
        """
    )
    assert done.returncode == 0, done.stderr
    if done.stdout == "there are none here\n":
        pytest.skip(done.stdout)
    assert "has a connection open already" in done.stdout
    assert done.stdout.endswith("none\n")
