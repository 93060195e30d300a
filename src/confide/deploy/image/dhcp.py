"""An address for a machine that has none: RFC 2131, as far as a machine that is asked, and never moves, needs it.

Whoever answers is the network's or the host's, and only decides where packets go. What is not a whole answer to this
very question is passed over.
"""

import secrets
import socket
import struct
import time
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from ipaddress import AddressValueError, IPv4Address
from typing import Final

MAX_BYTES: Final = 1500
"""Of an answer: what one Ethernet frame carries."""
MAX_NAMESERVERS: Final = 3
"""As many as the C library asks (resolv.conf(5), MAXNS)."""
_HEAD: Final = struct.Struct("!4BIHH4s4s4s4s16s64s128s4s")  # RFC 2131, section 2, with RFC 2132's cookie
_COOKIE: Final = bytes((99, 130, 83, 99))
_ETHERNET: Final = (1, 6)
_BROADCAST: Final = 0x8000
_CLIENT_PORT, _SERVER_PORT = 68, 67
_TIMEOUTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0)


class Kind(IntEnum):
    """RFC 2132, section 9.6."""

    DISCOVER = 1
    OFFER = 2
    REQUEST = 3
    ACK = 5


class Option(IntEnum):
    """RFC 2132, sections 3 and 9, by its code."""

    PAD = 0
    MASK = 1
    ROUTER = 3
    NAMESERVERS = 6
    REQUESTED = 50
    SECONDS = 51
    TYPE = 53
    SERVER = 54
    WANTED = 55
    END = 255


@dataclass(frozen=True)
class Lease:
    """server: who gave it, four bytes. seconds: for which it is given."""

    address: IPv4Address
    mask: IPv4Address
    router: IPv4Address | None
    nameservers: tuple[IPv4Address, ...]
    server: bytes
    seconds: int


@dataclass(frozen=True)
class Question:
    """hardware: the interface's address, 6 bytes. number: drawn for this question alone."""

    hardware: bytes
    number: int

    def ask(self, kind: Kind, offered: Lease | None = None) -> bytes:
        """A packet: for any address, or for the one that was offered."""
        head = _HEAD.pack(
            *(1, *_ETHERNET, 0, self.number, 0, _BROADCAST, b"", b"", b"", b"", self.hardware, b"", b"", _COOKIE)
        )
        options = [
            (Option.TYPE, bytes((kind,))),
            (Option.WANTED, bytes((Option.MASK, Option.ROUTER, Option.NAMESERVERS, Option.SECONDS))),
        ]
        if offered is not None:
            options += [(Option.REQUESTED, offered.address.packed), (Option.SERVER, offered.server)]
        return head + b"".join(bytes((code, len(value))) + value for code, value in options) + bytes((Option.END,))

    def answer(self, raw: bytes, kind: Kind) -> Lease | None:
        """What a packet offers or grants; None for anything but a whole answer of this kind to this question."""
        if not _HEAD.size < len(raw) <= MAX_BYTES:
            return None
        operation, *_, hardware, _, _, cookie = fields = _HEAD.unpack_from(raw)
        if operation != 2 or fields[4] != self.number or hardware[:6] != self.hardware or cookie != _COOKIE:
            return None
        try:
            options = dict(_options(raw[_HEAD.size :]))
            if options.get(Option.TYPE) != bytes((kind,)):
                return None
            mask, address = IPv4Address(options[Option.MASK]), IPv4Address(fields[8])
            hosts = ~int(mask) & 0xFFFFFFFF
            if hosts & (hosts + 1):  # ones, and then zeros
                return None
            router = IPv4Address(options[Option.ROUTER][:4]) if Option.ROUTER in options else None
            servers = options.get(Option.NAMESERVERS, b"")[: 4 * MAX_NAMESERVERS]
            nameservers = tuple(IPv4Address(servers[at : at + 4]) for at in range(0, len(servers), 4))
            (seconds,) = struct.unpack("!I", options[Option.SECONDS])
            (server,) = struct.unpack("4s", options[Option.SERVER])
        except (KeyError, IndexError, struct.error, AddressValueError):
            return None
        if address.is_unspecified or address.is_multicast or address.is_loopback:
            return None
        return Lease(address, mask, router, nameservers, server, seconds)


def _options(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Up to the end. IndexError for one that is cut off."""
    at = 0
    while raw[at] != Option.END:
        if raw[at] == Option.PAD:
            at += 1
            continue
        following = at + 2 + raw[at + 1]
        if following > len(raw):
            raise IndexError(following)
        yield raw[at], raw[at + 2 : following]
        at = following


def obtain(interface: str, hardware: bytes, held: Lease | None = None) -> Lease | None:
    """Ask for an address, or for the one that is held once more; None where nobody grants one in half a minute."""
    question = Question(hardware, secrets.randbits(32))
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asking:
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
        asking.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        asking.bind(("", _CLIENT_PORT))
        offered = held or _exchange(asking, question, Kind.DISCOVER, Kind.OFFER, None)
        return offered and _exchange(asking, question, Kind.REQUEST, Kind.ACK, offered)


def _exchange(
    asking: socket.socket, question: Question, kind: Kind, wanted: Kind, offered: Lease | None
) -> Lease | None:
    for seconds in _TIMEOUTS:
        asking.sendto(question.ask(kind, offered), ("255.255.255.255", _SERVER_PORT))
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            asking.settimeout(left)
            try:
                raw = asking.recv(MAX_BYTES + 1)
            except TimeoutError:
                break
            if (lease := question.answer(raw, wanted)) is not None:
                return lease
    return None
