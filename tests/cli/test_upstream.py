"""The attack with `--upstream`, for real: another program answers in a sealed model's name."""

import contextlib
import json
import secrets
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from tests.cli.command import run, serving
from tests.enclave.engines.openai_server import openai_server
from tests.enclave.examined import examined
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import eventually

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Model, NoEgress, NoUpstream, SelfTest
from confide.attest.simulated import SimulatedTee
from confide.broker.log import LOG_NAME
from confide.broker.store import Conditions, KeyStore
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.enclave.engines.transformers_engine import TransformersEngine
from confide.errors import AttestationRefused, EngineUnavailable
from confide.models.source import open_model
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.write import seal_model
from owners import OWNER

NAME = "echo"


@dataclass(frozen=True)
class Place:
    """An owner's broker with two keys for one model: one that allows an upstream by name, and one that does not."""

    folder: Path
    broker: str
    digest: str

    @property
    def root(self) -> Path:
        return self.folder / "tee" / "root.pem"

    def command(self, package: str, upstream: str, *more: str) -> tuple[str, ...]:
        simulated = ("--tee", "simulated", "--simulated-tee", str(self.folder / "tee"), "--keys", self.broker)
        given = ("--upstream", upstream, "--upstream-model", NAME, "--context", "512")
        return ("serve", str(self.folder / package), *simulated, *given, "--port", "0", *more)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("upstream")
    SimulatedTee.create(folder / "tee")
    root = (folder / "tee" / "root.pem").read_bytes()
    passphrase = secrets.token_hex(8)
    store = KeyStore.create(folder / "keys", passphrase)
    digest = ""
    for name in ("strict", "allowed"):
        key = ModelKey.generate()
        manifest = seal_model(contents_of("demo"), folder / name, key=key, owner=OWNER, examine=examined("demo"))
        digest = manifest.model_digest
        asked = [Model(digest, allow_upstream=NAME)] if name == "allowed" else []
        policy = SimulatedPolicy.all_of(*asked)
        store.add(key, Conditions(digest, policy, root), datetime.now(UTC))
    broker = ("keys", "serve", "--folder", str(folder / "keys"), "--port", "0", "--offline")
    with serving(*broker, environment={PASSPHRASE_VARIABLE: passphrase}) as announced:
        yield Place(folder, str(announced["url"]), digest)


@contextmanager
def rogue() -> Iterator[str]:
    """A program that is no model, and says whatever it likes in any model's name."""
    with openai_server(FakeEngine()) as url:
        yield url


def refusal(*command: str) -> str:
    done = run(*command, "--json", timeout=900)
    assert done.returncode == 1, done.stdout + done.stderr
    return str(json.loads(done.stdout.splitlines()[-1])["error"]["code"])


def test_no_key_for_a_program_in_the_models_place(place: Place) -> None:
    with rogue() as url:
        assert refusal(*place.command("strict", url)) == "key-refused"


def test_a_program_that_is_no_model_does_not_pass_the_self_test(place: Place) -> None:
    with rogue() as url:
        assert refusal(*place.command("allowed", url)) == "self-test-failed"


def test_the_users_policy_refuses_it_unless_it_allows_it_by_name(place: Place) -> None:
    with rogue() as url, serving(*place.command("allowed", url, "--insecure-skip-self-test")) as server:
        address = str(server["url"])
        for policy in (
            SimulatedPolicy.all_of(Model(place.digest)),
            SimulatedPolicy.all_of(Model(place.digest, allow_upstream="another")),
            SimulatedPolicy.all_of(NoUpstream()),
        ):
            with pytest.raises(AttestationRefused, match="upstream"):
                confide.connect(address, simulated_root=place.root, policy=policy)
        for requirement, check in ((NoEgress(), "egress"), (SelfTest(), "self-test")):
            with pytest.raises(AttestationRefused, match=check):
                confide.connect(address, simulated_root=place.root, policy=SimulatedPolicy.all_of(requirement))


def test_a_server_with_the_model_is_reached_and_nothing_else(place: Place) -> None:
    """Through a connector: the process that serves can open no connection itself."""
    source = open_model("demo")
    engine = TransformersEngine(source.load_model(), source.load_tokenizer(), NAME)
    policy = SimulatedPolicy.all_of(Model(place.digest, allow_upstream=NAME), SelfTest())
    with openai_server(engine) as url, serving(*place.command("allowed", url)) as server:
        assert server["configuration"]["egress"] == "upstream-only"  # type: ignore[index, call-overload]
        with confide.connect(str(server["url"]), simulated_root=place.root, policy=policy) as session:
            assert session.configuration is not None
            assert session.configuration.upstream is not None
            assert session.generate("The old king", max_tokens=8, temperature=0)
        assert httpx.get(f"{server['url']}/health").json() == {"status": "ok"}


@pytest.mark.slow
def test_an_upstream_that_dies_is_no_fault_of_the_users_and_shows(place: Place) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        private = free.getsockname()[1]
    more = ("--insecure-skip-self-test", "--metrics-port", str(private))
    with contextlib.ExitStack() as stack:
        dying = stack.enter_context(contextlib.ExitStack())
        server = stack.enter_context(serving(*place.command("allowed", dying.enter_context(rogue()), *more)))
        session = stack.enter_context(confide.connect(str(server["url"]), simulated_root=place.root))
        assert session.generate("hello", max_tokens=8) == "You said: hello"
        dying.close()
        with pytest.raises(EngineUnavailable, match="away"):
            session.generate("hello", max_tokens=8)
        for url in (server["url"], f"http://127.0.0.1:{private}"):
            eventually(lambda url=url: httpx.get(f"{url}/health").status_code == 503)  # type: ignore[misc]
            assert httpx.get(f"{url}/health").json() == {"status": "failed", "reason": "engine-unavailable"}
            assert httpx.get(f"{url}/health/live").json() == {"status": "ok"}
        assert httpx.get(f"{server['url']}/metrics").status_code == 404
        assert "confide_requests_total" in httpx.get(f"http://127.0.0.1:{private}/metrics").text


def test_no_key_leaves_for_a_server_whose_port_is_taken(place: Place) -> None:
    before = (place.folder / "keys" / LOG_NAME).read_bytes()
    with socket.create_server(("127.0.0.1", 0)) as other, rogue() as url:
        port = str(other.getsockname()[1])
        taken = [*place.command("allowed", url, "--insecure-skip-self-test"), "--port", port]
        for command in (taken, [*taken[:-1], "0", "--metrics-port", port]):
            done = run(*command, timeout=900)
            assert done.returncode == 1
            assert "Traceback" not in done.stderr
            assert f"127.0.0.1 port {port} cannot be listened on" in " ".join(done.stderr.split())
        assert refusal("keys", "serve", "--folder", str(place.folder / "keys"), "--port", port) == "address-unavailable"
    assert (place.folder / "keys" / LOG_NAME).read_bytes() == before
