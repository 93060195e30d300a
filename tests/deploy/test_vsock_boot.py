"""The kernel's own virtual sockets, in an emulated machine, since the kernel that runs the tests may not connect any.

The kernel is that of a measured image, with its module by which a machine connects to itself. The initial RAM disk has
Python, the connector that leads to the key service, and a server with TLS in asyncio's loop, as behind `--host vsock`.
"""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from tests.deploy.test_image_boot import EMULATED, FOR_TESTS, SECONDS, parts
from tools import image_lock

from confide.deploy.image import build, start
from confide.deploy.image.lock import Lock
from confide.deploy.image.modules import Modules
from confide.deploy.image.trees import file, folder, tree_of, write_cpio
from confide.enclave import connector
from confide.net.tls import make_certificates

pytestmark = pytest.mark.slow
__all__ = ["parts"]
_FOR_TLS = re.compile(r"usr/lib/python3\.11/lib-dynload/.+|(?:usr/)?lib/x86_64-linux-gnu/lib(?:ssl|crypto)\..*")

PROGRAM = """#!/usr/bin/python3.11 -ISB
import sys
sys.path.insert(0, "/test")
import asyncio, socket, ssl, threading
from pathlib import Path
import start
for kind, place in (("devtmpfs", "/dev"), ("proc", "/proc"), ("sysfs", "/sys")):
    start.mount(kind, place, kind)
start.load_modules(Path("/modules"))
from connector import Connector

PORT, OWN = 8471, 1
ready = threading.Event()

class Server(asyncio.Protocol):
    def connection_made(self, transport):
        self.transport = transport
        peer = transport.get_extra_info("socket").getpeername()
        transport.write(repr((accepted[-1][0], peer[0], type(peer[0]).__name__)).encode() + b"\\n")

    def data_received(self, data):
        self.transport.write(data.upper())

accepted = []

async def serve():
    bound = socket.socket(socket.AF_VSOCK)
    bound.bind((socket.VMADDR_CID_ANY, PORT))
    bound.listen(8)
    bound.setblocking(False)
    start.say(f"listening at {bound.getsockname()}")
    ready.set()
    loop, tls = asyncio.get_running_loop(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain("/test/server.pem", "/test/server.key")
    while True:
        client, address = await loop.sock_accept(bound)
        accepted.append(address)
        client.setblocking(False)
        await loop.connect_accepted_socket(Server, client, ssl=tls)

threading.Thread(target=lambda: asyncio.run(serve()), daemon=True).start()
ready.wait(60)
trusted = ssl.create_default_context(cafile="/test/ca.pem")
with Connector(OWN, PORT) as way:
    for word in (b"one", b"two"):
        plain = way.connect()
        plain.settimeout(120)
        with trusted.wrap_socket(plain, server_hostname="confide.example") as opened, opened.makefile("rb") as said:
            start.say(f"connected to {opened.getpeername()} as {opened.family.name}, {opened.version()}")
            start.say(f"accepted {said.readline().decode().strip()}")
            opened.sendall(word)
            start.say(f"answered {said.read(3).decode()}")
with Connector(OWN, PORT + 1) as nowhere:
    try:
        nowhere.connect()
    except ConnectionError as error:
        start.say(f"refused: {error}")
start.say("done")
"""


@pytest.fixture(scope="module")
def booted(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """What the machine said until it ended."""
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("qemu-system-x86_64 is not there")
    place = tmp_path_factory.mktemp("vsock")
    lock = Lock.read(image_lock.LOCK.read_bytes())
    found = lock.find(parts)
    for name in lock.debs:
        build.run(build.tool("dpkg-deb"), "--extract", found[name], place / "base")
    tree = tree_of(place / "base")
    chosen = build.initrd_tree(tree, 0)
    (place / "vmlinuz").write_bytes(build.kernel_of(tree))
    loaded = [name.rpartition("-")[2].removesuffix(".ko") for name in chosen if "/needed/" in name]
    for index, (name, content) in enumerate(Modules(tree).in_order(("vsock_loopback",), loaded).items()):
        chosen[f"{start.MODULES[1:]}/needed/9{index:02}-{name}.ko"] = file(content)
    chosen |= {name: entry for name, entry in tree.items() if _FOR_TLS.fullmatch(name)}
    chosen |= {"init": file(PROGRAM.encode(), executable=True), "test": folder()}
    for module in (start, connector):
        source = Path(str(module.__file__))
        chosen[f"test/{source.name}"] = file(source)
    for path in make_certificates(["confide.example"]).write(place / "tls"):
        chosen[f"test/{path.name}"] = file(path)
    with (place / "initrd").open("wb") as out:
        write_cpio(chosen, out)
    shutil.rmtree(place / "base")
    shown = ["-nodefaults", "-nographic", "-no-reboot", "-serial", f"file:{place / 'console'}"]
    boot = ["-kernel", place / "vmlinuz", "-initrd", place / "initrd", "-append", "panic=-1" + FOR_TESTS]
    subprocess.run([qemu, *EMULATED, *shown, *boot], stdin=subprocess.DEVNULL, timeout=SECONDS, check=False)
    return (place / "console").read_text(errors="replace")


def test_the_kernel_s_virtual_sockets_lead_to_a_server_in_asyncio_s_loop(booted: str) -> None:
    said = [line.partition("confide: ")[2].strip() for line in booted.splitlines() if "confide: " in line]
    assert said == [
        "listening at (4294967295, 8471)",
        *("connected to (1, 8471) as AF_VSOCK, TLSv1.3", "accepted (1, 1, 'int')", "answered ONE"),
        *("connected to (1, 8471) as AF_VSOCK, TLSv1.3", "accepted (1, 1, 'int')", "answered TWO"),
        "refused: nobody takes a connection there",
        "done",
    ], booted[-3000:]
