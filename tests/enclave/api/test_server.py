"""`serve_app` as a process: it says when it is ready, and a signal lets answers end."""

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

PROGRAM = """
import sys
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.api.server import bind, serve_app
from confide.enclave.workload import Workload
from tests.enclave.fake_engine import FakeEngine

engine = FakeEngine(pause=0.1)
app = public_app(Workload(None), Serving(engine), tls_ends_here=True)
serve_app(app, bind("127.0.0.1", 0), None, lambda url: print(url, flush=True))
print("closed" if engine.closed else "open", engine.running)
"""


@pytest.fixture
def process() -> Iterator["subprocess.Popen[str]"]:
    root = Path(__file__).parents[3]
    process = subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=root, stdout=subprocess.PIPE, text=True)
    yield process
    process.kill()
    process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_answers_end_before_the_server_does(process: "subprocess.Popen[str]", number: signal.Signals) -> None:
    assert process.stdout is not None
    url = process.stdout.readline().strip()
    with httpx.stream("POST", f"{url}/chat", json={"prompt": "b25lIHR3byB0aHJlZQ=="}, timeout=900) as response:
        lines = response.iter_lines()
        assert next(lines) == "id: 1"
        process.send_signal(number)
        text = "".join(json.loads(line[6:]) for line in lines if line.startswith('data: "'))
    assert text == "You said: one two three"
    rest, _ = process.communicate(timeout=900)
    assert rest == "closed 0\n"
    assert process.returncode == 0
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{url}/health")
