"""nginx on this machine, for the time of a test; the test is skipped where it is not installed."""

import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from .serving import eventually

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
BALANCER = """
daemon off;
master_process off;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log {folder}/access.log;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    upstream replicas {{
        {servers}
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://replicas;
            proxy_http_version 1.1;
            proxy_buffering off;
        }}
    }}
}}
"""


@contextmanager
def nginx(folder: Path, configuration: str, **places: object) -> Iterator[int]:
    """The port that it listens on. configuration: a template of its file, with `folder`, `port` and the places."""
    if NGINX is None:
        pytest.skip("nginx is not installed; `make system-deps` installs it.")
    folder.mkdir(exist_ok=True)
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (folder / "nginx.conf").write_text(configuration.format(folder=folder, port=port, **places))
    process = subprocess.Popen(
        [NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf"), "-e", str(folder / "error.log")]
    )
    try:
        eventually(lambda: process.poll() is not None or _listens(port))
        yield port
    finally:
        process.terminate()
        process.wait(60)


@contextmanager
def balanced(folder: Path, ports: Sequence[int], method: str = "") -> Iterator[str]:
    """The address of a balancer before these. method: how it picks, in nginx's words; in turns without."""
    servers = [method, *(f"server 127.0.0.1:{port};" for port in ports)]
    with nginx(folder, BALANCER, servers="\n".join(servers)) as port:
        yield f"http://127.0.0.1:{port}"


def _listens(port: int) -> bool:
    with socket.socket() as attempt:
        return attempt.connect_ex(("127.0.0.1", port)) == 0
