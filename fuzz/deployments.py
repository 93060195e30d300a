"""What machines are deployed with, in files of anybody: manifests that are checked, and images that are measured."""

import io
import struct
import zlib
from collections.abc import Callable
from uuid import UUID

from confide.deploy.image.dhcp import Kind, Question
from confide.deploy.image.lock import Lock
from confide.deploy.image.modules import depends
from confide.deploy.lint.linter import lint, sarif
from confide.deploy.predict.eif import EnclaveImage
from confide.deploy.predict.events import from_json
from confide.deploy.predict.pe import authenticode
from confide.deploy.predict.tdvf import Firmware

_NAMES = ("a.manifest", "a.xml", "a.yaml", "a.rego", "a.service", "a.json")
"""The first is also what initdata and policies are read as."""


def deployment_file(data: bytes) -> None:
    """A manifest of each kind; the first byte says which."""
    if data:
        sarif([lint(_NAMES[data[0] % len(_NAMES)], data[1:])])


def firmware(data: bytes) -> None:
    """A firmware file, measured; of small ones alone, for a file says how much memory it wants."""
    found = Firmware.parse(data)
    if sum(section.size for section in found.sections) < 1 << 20:
        found.mrtd()
    found.td_hob(1 << 32)


def kernel(data: bytes) -> None:
    """A kernel, measured."""
    authenticode(data)


def enclave_image(data: bytes) -> None:
    """An image of an enclave, measured."""
    EnclaveImage.read(io.BytesIO(data))


def expected(data: bytes) -> None:
    """An expected.json."""
    from_json(data)


def image_lock(data: bytes) -> None:
    """A lock file of an image."""
    Lock.read(data)


def kernel_module(data: bytes) -> None:
    """What a module of a kernel says that it depends on."""
    depends(data)


_ASKED = Question(bytes.fromhex("525400123456"), 0x01020304)


def dhcp_answer(data: bytes) -> None:
    """A packet from the network to a machine that asked for an address; anything but an answer is passed over."""
    for kind in (Kind.OFFER, Kind.ACK):
        _ASKED.answer(data, kind)


def _dhcp() -> list[bytes]:
    asked = bytearray(_ASKED.ask(Kind.DISCOVER)[:240])
    asked[0], asked[16:20] = 2, bytes((10, 0, 2, 15))
    four = ((1, b"\xff\xff\xff\0"), (3, b"\n\0\2\2"), (6, b"\n\0\2\3" * 2), (51, b"\0\1\x51\x80"), (54, b"\n\0\2\2"))
    options = b"".join(bytes((code, len(value))) + value for code, value in four)
    return [bytes(asked) + b"\0\x35\1" + bytes((kind,)) + options + b"\xff" for kind in (Kind.OFFER, Kind.ACK)]


def _firmware() -> bytes:
    sections = b"".join(
        struct.pack("<IIQQII", 0, size, address, 4096, kind, measured)
        for address, size, kind, measured in ((0x1000, 64, 0, 1), (0x2000, 0, 1, 0), (0x809000, 0, 2, 0))
    )
    metadata = b"TDVF" + struct.pack("<III", 16 + len(sections), 1, 3) + sections
    body = bytes(64) + metadata
    entry = struct.pack("<IH", 0, 22) + UUID("e47a6535-984a-4798-865e-4685a7bf8ec2").bytes_le
    footer = struct.pack("<H", len(entry) + 18) + UUID("96b582de-1fb2-45f7-baea-a366c55a082d").bytes_le
    length = len(body) + len(entry) + len(footer) + 32
    entry = struct.pack("<I", length - 64) + entry[4:]
    return body + entry + footer + bytes(32)


def _kernel() -> bytes:
    image = bytearray(0x400)
    image[:2], image[0x3C:0x40] = b"MZ", struct.pack("<I", 0x40)
    image[0x40:0x58] = b"PE\0\0" + struct.pack("<HHIIIHH", 0x8664, 1, 0, 0, 0, 160, 0x22)
    image[0x58:0x5A] = struct.pack("<H", 0x20B)
    image[0x94:0x98], image[0xC4:0xC8] = struct.pack("<I", 0x200), struct.pack("<I", 6)
    image[0xF8:0x120] = struct.pack("<8sIIIIIIHHI", b".text", 0x200, 0x200, 0x200, 0x200, 0, 0, 0, 0, 0)
    return bytes(image)


def _enclave_image() -> bytes:
    signature = b"\x81\xa1\x73signing_certificate\x83\x18\x2d\x18\x2d\x18\x2d"
    at, offsets, sizes, body = 548, [0] * 32, [0] * 32, b""
    for index, (kind, content) in enumerate(((1, b"k"), (2, b"c"), (5, b"{}"), (3, b"i"), (3, b"a"), (4, signature))):
        offsets[index], sizes[index] = at + len(body), len(content)
        body += struct.pack(">HHQ", kind, 0, len(content)) + content
    head = struct.pack(">4sHHQQHH32Q32QI", b".eif", 4, 0, 1 << 30, 2, 0, 6, *offsets, *sizes, 0)
    return head + struct.pack(">I", zlib.crc32(head + body)) + body


def _files() -> list[bytes]:
    texts = (
        "loader.insecure__use_host_env = true\nsgx.debug = true\nloader.env = { A = { passthrough = true } }",
        "<domain><os><cmdline>init=/bin/sh</cmdline></os><launchSecurity type='tdx'><policy>1</policy></launchSecurity>"
        "<devices><disk><source file='a'/></disk></devices></domain>",
        "services:\n  a:\n    image: b:1\n    environment: [C]\n    ports: ['22:22']",
        "package agent_policy\ndefault ExecProcessRequest := true\nCopyFileRequest if { input.a }",
        "[Service]\nExecStart=/bin/a --insecure-b\nEnvironment='API_KEY=c' D=e\n",
        '{"$schema": "deploymentTemplate.json#", "resources": [{"type": "Microsoft.Compute/virtualMachines", '
        '"properties": {"securityProfile": {"securityType": "ConfidentialVM"}, "userData": "a"}, '
        '"resources": [{"type": "/extensions"}]}]}',
    )
    instance = '{"machineType": "a", "disks": [], "metadata": {"items": [{"key": "ssh-keys", "value": "a"}]}}'
    app = '{"docker_compose_file": "services: {a: {image: b, extends: c}}", "allowed_envs": ["D"]}'
    pod = "apiVersion: v1\nkind: Pod\nspec:\n  containers:\n    - {image: a, env: [{name: B, valueFrom: {}}]}\n"
    policy = 'confide-policy = 1\nkind = "simulated"\nallow-debug = true\n[[all]]\nrequire = "aws-nitro"\npcrs = { }\n'
    further = (b"\0" + policy.encode(), b"\2" + pod.encode(), b"\5" + instance.encode(), b"\5" + app.encode())
    return [*(bytes([index]) + text.encode() for index, text in enumerate(texts)), *further]


TARGETS: dict[str, Callable[[bytes], None]] = {
    "deployment-file": deployment_file,
    "deployment-expected": expected,
    "dhcp-answer": dhcp_answer,
    "enclave-image": enclave_image,
    "firmware": firmware,
    "image-lock": image_lock,
    "kernel": kernel,
    "kernel-module": kernel_module,
}
SEEDS: dict[str, Callable[[], list[bytes]]] = {
    "deployment-file": _files,
    "deployment-expected": lambda: [
        b'{"events": [{"register": "rtmr1", "name": "kernel", "digest": "' + b"ab" * 48 + b'"}], "measurements": {}}'
    ],
    "dhcp-answer": _dhcp,
    "enclave-image": lambda: [_enclave_image()],
    "firmware": lambda: [_firmware()],
    "image-lock": lambda: [
        b"# made\ndeb a=1:2.3-4+b1 sha256:" + b"ab" * 32 + b"\nwheel b-c==1.0 sha256:" + b"cd" * 32 + b"\n"
    ],
    "kernel": lambda: [_kernel()],
    "kernel-module": lambda: [b"\x7fELF\0license=GPL\0depends=dm-mod,dm-bufio\0name=dm_verity\0"],
}
