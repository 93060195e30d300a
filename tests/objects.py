"""Storage that speaks as much of S3 as reading takes, over a folder; it can break, lie, and tell what it was asked."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

import pytest

_DATE = "Mon, 30 Nov 2026 09:00:00 GMT"


@dataclass
class Storage:
    """breaks: after so many bytes of one answer, the next time, each. status: in place of any answer."""

    folder: Path
    endpoint: str = ""
    asked: list[tuple[str, int]] = field(default_factory=list)
    breaks: list[int] = field(default_factory=list)
    status: int = 0
    address = "s3://bucket/models/one"


@contextmanager
def storage(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Storage]:
    """monkeypatch: sets credentials, which nobody checks."""
    made = Storage(folder)
    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("REGION", "us-east-1")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(_Handler, made))
    made.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=partial(server.serve_forever, 0.01), daemon=True)
    thread.start()
    try:
        yield made
    finally:
        server.shutdown()
        server.server_close()
        thread.join(5)


class _Handler(BaseHTTPRequestHandler):
    def __init__(self, made: Storage, *arguments: object) -> None:
        self.made = made
        super().__init__(*arguments)  # type: ignore[arg-type]

    def do_GET(self) -> None:
        made, name = self.made, unquote(self.path.partition("?")[0]).removeprefix("/bucket/models/one/")
        start = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").partition("-")[0])
        made.asked.append((name, start))
        path = made.folder / name
        if made.status or not path.is_file():
            self.send_response(made.status or 404)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        content = path.read_bytes()
        rest = content[start:]
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", '"one"')
        self.send_header("Last-Modified", _DATE)
        self.end_headers()
        if made.breaks and len(rest) > made.breaks[0]:
            self.wfile.write(rest[: made.breaks.pop(0)])
            self.wfile.flush()
            self.close_connection = True
            self.connection.close()
            return
        self.wfile.write(rest)

    def log_message(self, *_: object) -> None:
        pass
