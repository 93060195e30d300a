"""A sealed model where there is no network: virtual sockets lead to the key service, and users to the model."""

import json
import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer
from tests.cli.test_serve_model import PROMPT, Place, place
from tests.enclave import fake_vsock
from tests.enclave.serving import eventually

import confide
from confide.attest.simulated import SimulatedTee
from confide.cli.serve import Listening
from confide.cli.serve_sealed import TeeOptions, prepared
from confide.client.enclave import EnclaveSession
from confide.enclave import egress
from confide.enclave.egress import WaysOut
from confide.enclave.tee import TeeKind

__all__ = ["place"]
HERE = Listening("127.0.0.1", 0, None, None, insecure_no_tls=False)


@pytest.fixture
def short() -> Iterator[Path]:
    """A folder whose path leaves room for the names of Unix sockets."""
    with tempfile.TemporaryDirectory(prefix="v") as folder:
        yield Path(folder)


def options(folder: Path, through: str | None, *, open_egress: bool = False) -> TeeOptions:
    return TeeOptions(
        tee=TeeKind.SIMULATED,
        simulated_tee=folder / "tee",
        keys="https://keys.invalid:8471",
        keys_ca=None,
        keys_through=through,
        ra_tls=False,
        tls_name=None,
        release=None,
        insecure_open_egress=open_egress,
    )


def test_the_way_to_the_key_service_is_the_one_that_was_given(short: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the other ways out are closed or not."""
    SimulatedTee.create(short / "tee")
    for name, value in fake_vsock.environment(short).items():
        monkeypatch.setenv(name, value)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(short / "8471"))
        listener.listen()
        with prepared(HERE, options(short, "vsock:3:8471", open_egress=True)) as made:
            assert made.ways.keys is not None
            with made.ways.keys.connect() as way:
                listener.accept()[0].sendall(b"a broker")
                assert way.recv(9) == b"a broker"
    asked = []
    monkeypatch.setattr(egress, "close_egress", lambda _, **ways: asked.append(ways) or WaysOut())
    for through in ("vsock:3:8471", None):
        with prepared(HERE, options(short, through)):
            pass
    assert [one["keys_through"] for one in asked] == [(3, 8471), None]
    assert {one["keys"] for one in asked} == {"https://keys.invalid:8471"}


def test_another_way_is_none(short: Path) -> None:
    with pytest.raises(typer.BadParameter, match="vsock:CID:PORT"), prepared(HERE, options(short, "keys.example:8471")):
        pass


@pytest.mark.slow  # each part of it has a quicker test
def test_all_of_it_goes_through_them(place: Place, short: Path) -> None:
    """A process of its own, whose virtual sockets are files, and two relays beside it, as an enclave's parent has."""
    broker, user = place.broker.rpartition(":")[2], socket.create_server(("127.0.0.1", 0))
    port = user.getsockname()[1]
    outwards = socket.socket(socket.AF_UNIX)
    outwards.bind(str(short / "8471"))
    outwards.listen()
    words = (
        *("serve", place.folder / "safetensors", "--tee", "simulated", "--simulated-tee", place.folder / "tee"),
        *("--keys", "http://127.0.0.1:9", "--keys-through", "vsock:3:8471"),
        *("--host", "vsock", "--port", "8470", "--ra-tls", "--tls-name", "127.0.0.1", "--dtype", "f32", "--json"),
    )
    command = [sys.executable, "-m", "confide", *map(str, words)]
    environment = os.environ | fake_vsock.environment(short) | {"OMP_NUM_THREADS": "1"}
    with (
        fake_vsock.relay(outwards, (socket.AF_INET, ("127.0.0.1", int(broker)))),
        fake_vsock.relay(user, (socket.AF_UNIX, str(short / "8470"))),
        (short / "out").open("w") as said,
        subprocess.Popen(command, env=environment, stdout=said, cwd=short) as running,
    ):
        try:
            eventually(lambda: (short / "out").read_text().endswith("\n") or running.poll() is not None, 900)
            announced = json.loads((short / "out").read_text())
            assert announced["url"] == "https://vsock:8470"
            assert announced["configuration"]["egress"] == "none"
            assert announced["configuration"]["options"]["keys-through"] == "vsock:3:8471"
            session = confide.connect(f"https://127.0.0.1:{port}", simulated_root=place.root, ra_tls=True)
            assert isinstance(session, EnclaveSession)
            with session:
                assert session.model_digest == announced["model_digest"]
                assert session.generate(PROMPT, max_tokens=4, temperature=0)
        finally:
            running.terminate()
            running.wait(120)
