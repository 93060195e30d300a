"""What people give on the command line: addresses, token ids, layer groups, certificates, settings, secrets."""

import functools
from collections.abc import Callable
from unittest import mock

import typer

from confide.cli.app import command_line
from confide.cli.generate import parse_ids
from confide.cli.settings import SERVICES, SettingsFile, command_of
from confide.disk.secrets import read_secret
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.client.refusals import FILE_NAME, Breach, RefusalList
from confide.hybrid.groups import Groups
from confide.hybrid.placement import Placement
from confide.net.loopback import is_loopback
from confide.net.tls import client_context, make_certificates, server_context

from .bench import scratch
from .script import Script

VOCABULARY = 50


def address(data: bytes) -> None:
    """The address of a server, as far as looking its name up."""
    text = data.decode("utf-8", "surrogateescape")
    is_loopback(text)
    dial = Dial(text, insecure_no_tls=True)

    def look_up(host_and_port: tuple[str, int], timeout: float) -> None:
        host_and_port[0].encode("idna")
        raise ConnectionRefusedError

    with mock.patch("socket.create_connection", look_up):
        LayerConnection(dial, release=None)  # type: ignore[arg-type]


def prompt_ids(data: bytes) -> None:
    """`--prompt-ids`."""
    try:
        ids = parse_ids(data.decode("utf-8", "surrogateescape"), VOCABULARY)
    except typer.BadParameter:
        return
    if not 0 <= min(ids) <= max(ids) < VOCABULARY:
        raise AssertionError("ids outside the vocabulary were taken")


def layer_groups(data: bytes) -> None:
    """`--groups`."""
    groups = Groups.parse(data.decode("utf-8", "surrogateescape"))
    if Groups.parse(str(groups)) != groups or Groups.of(groups) != groups:
        raise AssertionError("a set of groups has two forms")


def placement(data: bytes) -> None:
    """`--placement`; what is one is the same one when it is written again."""
    path = scratch("placement") / "placement.toml"
    path.write_bytes(data)
    found = Placement.read(path)
    path.write_bytes(found.write())
    if Placement.read(path) != found:
        raise AssertionError("a placement has changed on its way")


def _seeds_of_placement() -> list[bytes]:
    servers = (("wss://a.example:8470", Groups.parse("0-2,7")), ("wss://b.example/chat", Groups.parse("3-6")))
    return [Placement("0f" * 32, servers).write(), b"confide-placement = 1\n[[server]]\naddress = 'a'\n"]


@functools.cache
def _certificates() -> tuple[bytes, bytes, bytes]:
    made = make_certificates([])
    return made.ca, made.chain, made.key


def authorities(data: bytes) -> None:
    """`--ca`."""
    path = scratch("ca") / "ca.pem"
    path.write_bytes(data)
    client_context(path)


def certificate(data: bytes) -> None:
    """`--tls-cert` and `--tls-key`: any content, or an intact pair that was damaged."""
    script = Script(data)
    folder = scratch("certificate")
    paths = (folder / "server.pem", folder / "server.key")
    damages: list[Callable[[bytes], bytes]] = [bytes, script.damaged, lambda content: script.chunk(2)]
    for path, intact in zip(paths, _certificates()[1:], strict=True):
        path.write_bytes(script.choice(damages)(intact))
    server_context(*paths)


@functools.cache
def _commands() -> object:
    return typer.main.get_command(command_line([]))


def settings_file(data: bytes) -> None:
    """`--config`, for each service."""
    path = scratch("settings") / "config.toml"
    path.write_bytes(data)
    file = SettingsFile.read(path)
    for service in SERVICES:
        found = file.defaults(service, command_of(_commands(), service))
        if any(name.startswith("insecure") for name in found):
            raise AssertionError("a file weakened a protection")


def secret(data: bytes) -> None:
    """A file such as `--licence-file`, or a credential."""
    path = scratch("secret") / "licence"
    path.write_bytes(data)
    if not read_secret(path).isprintable():
        raise AssertionError("a secret of several lines was taken")


def distrusted(data: bytes) -> None:
    """A person's refusal list."""
    folder = scratch("distrusted")
    (folder / FILE_NAME).write_bytes(data)
    RefusalList(folder).require_trusted("127.0.0.1:1", "00" * 32)


def _seeds_of_distrusted() -> list[bytes]:
    folder = scratch("distrusted")
    RefusalList(folder).add("127.0.0.1:1", "00" * 32, Breach("g0", ("g0.a",), 3))
    return [b"[]", (folder / FILE_NAME).read_bytes()]


def _seeds_of_certificate() -> list[bytes]:
    return [bytes(2), bytes([1, 80, 0, 0, 0, 2, 65, 66, 0]), bytes([2, 5, 0]) + b"-----" + bytes([1, 60, 0, 0, 3])]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "address": address,
    "prompt-ids": prompt_ids,
    "authorities": authorities,
    "certificate": certificate,
    "distrusted": distrusted,
    "layer-groups": layer_groups,
    "placement": placement,
    "settings-file": settings_file,
    "secret": secret,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "address": lambda: [b"127.0.0.1:8470", b"wss://layers.example.com:443", b"http://[::1]:80/path?query#x", b"u:p@h"],
    "prompt-ids": lambda: [b"1,2,3", b"49, -1", b"50,0x1", b"1e3,_1"],
    "authorities": lambda: [_certificates()[0]],
    "certificate": _seeds_of_certificate,
    "distrusted": _seeds_of_distrusted,
    "layer-groups": lambda: [b"0-47", b"0-11,24,30-31", b"3-1", b"0,1"],
    "placement": _seeds_of_placement,
    "settings-file": lambda: [
        b'confide-config = 1\n[serve]\nport = 1\ntls-name = ["a"]\nra-tls = true\n[keys.serve]\nlog = "json"\n',
        b"confide-config = 1\n[chat]\ninsecure-no-tls = true\n",
        b"confide-config = 1\n[proxy]\npatience = 1e400\n",
    ],
    "secret": lambda: [b"confide-key\n", b"\xff", b"a\nb"],
}
