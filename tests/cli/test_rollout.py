"""`confide deploy rollout` with nginx: users who ask before, meanwhile and after, and each is answered whole."""

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from cryptography.hazmat.primitives.serialization import Encoding
from starlette.responses import PlainTextResponse
from tests.client.workload import MODEL, FakeWorkload, another, serving, simulated
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.nginx import NGINX, nginx
from tests.enclave.serving import serving as serving_app
from tests.proxy.local import all_ready, proxied

from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import any_policy_from_toml, to_toml
from confide.attest.requirements import PolicyVersion
from confide.attest.simulated import SimulatedTee
from confide.broker import store
from confide.broker.store import Conditions, KeyStore
from confide.cli.app import main
from confide.client.conversation import Conversation
from confide.client.enclave import EnclaveSession
from confide.client.relying_party import RelyingParty
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import private_app
from confide.errors import ConnectionLost, RolloutStopped
from confide.packages.sealed.key import ModelKey
from confide.proxy.workload import WorkloadAddress, WorkloadBackend
from confide.rollout import REPLICAS, SERVERS, AskedMachines, server_lines

KEY = ModelKey(bytes(range(32)))
DIGEST = "ab" * 32
BALANCER = """
daemon off;
worker_processes 1;
pid {folder}/nginx.pid;
error_log {folder}/error.log;
events {{}}
http {{
    access_log off;
    client_body_temp_path {folder}/body;
    proxy_temp_path {folder}/proxy;
    fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi;
    scgi_temp_path {folder}/scgi;
    map_hash_bucket_size 128;
    map $http_confide_replica $confide_upstream {{
        default confide;
        include {included}/confide.replicas;
    }}
    upstream confide {{
        include {included}/confide.servers;
    }}
    server {{
        listen 127.0.0.1:{port};
        location / {{
            proxy_pass http://$confide_upstream;
            proxy_http_version 1.1;
            proxy_buffering off;
        }}
    }}
}}
"""

Run = Callable[..., "list[dict[str, Any]]"]


@dataclass(frozen=True)
class Place:
    """A model behind nginx: an old version that is asked, and a new one that runs beside it."""

    folder: Path
    old: FakeWorkload
    new: FakeWorkload
    public: str

    @property
    def root(self) -> Path:
        return self.folder / "tee" / "root.pem"

    def commands(self) -> tuple[str, ...]:
        nginx = f"{NGINX} -p {self.folder}/nginx -c {self.folder}/nginx/nginx.conf -e {self.folder}/nginx/error.log"
        return "--nginx", f"{self.folder}/included", "--check", f"{nginx} -t", "--reload", f"{nginx} -s reload"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(store, "SCRYPT_COST", 16)
    monkeypatch.setenv("CONFIDE_KEYS_PASSPHRASE", "correct horse")
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("COLUMNS", "200")
    old = simulated(tmp_path / "tee", model_digest=DIGEST, policy_version="1")
    root = SimulatedTee.open(tmp_path / "tee").certificates["root"].public_bytes(Encoding.DER)
    policies = [SimulatedPolicy.all_of(PolicyVersion(version)) for version in "12"]
    keys = KeyStore.create(tmp_path / "keys", "correct horse")
    keys.add(KEY, Conditions(DIGEST, policies[0], root), datetime.now(UTC))
    Path("old.toml").write_text(to_toml(policies[0]))
    Path("new.toml").write_text(to_toml(policies[1]))
    included = tmp_path / "included"
    included.mkdir()
    with serving(old), serving(another(tmp_path / "tee", DIGEST, policy_version="2")) as new:
        (included / SERVERS).write_bytes(server_lines([old.url]))
        (included / REPLICAS).touch()
        with nginx(tmp_path / "nginx", BALANCER, included=included) as port:
            yield Place(tmp_path, old, new, f"http://127.0.0.1:{port}")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs `confide deploy rollout ARGUMENTS --json` in this process: its lines."""

    def call(*arguments: object, policy: str = "new.toml", code: int = 0) -> list[dict[str, Any]]:
        words = ["deploy", "rollout", KEY.id, "--policy", policy, "--folder", "keys", *map(str, arguments), "--json"]
        monkeypatch.setattr(sys, "argv", ["confide", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        out = capsys.readouterr()
        assert int(stop.value.code or 0) == code, out
        return [json.loads(line) for line in out.out.splitlines()]

    return call


def states(lines: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(line["step"], line["state"]) for line in lines]


@contextmanager
def users(place: Place) -> Iterator[tuple[EnclaveSession, openai.OpenAI]]:
    """One with the library, and one with a program and the proxy; both have the policy for both versions."""
    address = WorkloadAddress(place.public, "both.toml", place.root)
    with (
        EnclaveSession(place.public, policy="both.toml", simulated_root=place.root) as session,
        proxied(lambda: [WorkloadBackend("", address, 3600.0)]) as url,
        httpx.Client(trust_env=False) as http,
    ):
        all_ready(url)
        yield session, openai.OpenAI(base_url=f"{url}/v1", api_key="any", http_client=http, max_retries=0)  # type: ignore[arg-type]


def test_nobody_notices(place: Place, run: Run) -> None:
    (line,) = run("--prepare", "--for", "2h", "--user-policy", "both.toml")
    assert (line["step"], line["state"]) == ("allow", "done")
    with users(place) as (session, program):
        conversation = Conversation()
        assert "".join(conversation.say("abc", lambda said: session.chat(said, stream=True))) == "cba"
        running = [session.chat("abcdefgh", stream=True), _stream(program)]
        begun = [next(one) for one in running]
        steps = run("--new", place.new.url, "--old", place.old.url, "--public", place.public, *place.commands())
        assert states(steps) == [
            ("allow", "already"),
            ("appraise", "done"),
            ("switch", "done"),
            ("drain", "skipped"),
            ("retire", "waiting"),
        ]
        assert steps[1]["replicas"][0]["key"] == place.new.workload.key.public.id.hex()
        asked = len(place.old.prompts)
        assert "".join(conversation.say("def", lambda said: session.chat(said, stream=True))) == "fed"
        assert program.completions.create(model=MODEL, prompt="def").choices[0].text == "fed"
        # What the old version was answering ends whole, with its receipt, which it alone has.
        assert [first + "".join(rest) for first, rest in zip(begun, running, strict=True)] == ["hgfedcba"] * 2
        assert session.receipt().verified
    assert len(place.old.prompts) == asked
    (question,) = (body for path, body in place.new.prompts if path == "/v1/chat/completions")
    assert [turn["content"] for turn in json.loads(question)["messages"]] == ["abc", "cba", "def"]
    assert states(run("--new", place.new.url, "--public", place.public))[2] == ("switch", "already")
    policy = any_policy_from_toml(Path("both.toml").read_text())
    assert "until" in " ".join(sentence for one in policy.requirements for sentence in one.sentences())


def _stream(program: openai.OpenAI) -> Iterator[str]:
    asked: Any = [{"role": "user", "content": "abcdefgh"}]
    for chunk in program.chat.completions.create(model=MODEL, messages=asked, stream=True):
        yield chunk.choices[0].delta.content or ""


def test_what_is_not_the_new_version_gets_no_traffic(place: Place, run: Run) -> None:
    place.new.workload.policy_version = "0"
    arguments = ("--new", place.new.url, "--public", place.public, *place.commands())
    *steps, refused = run(*arguments, code=1)
    assert states(steps) == [("allow", "done")]
    assert refused["error"]["code"] == "attestation-refused"
    assert "policy-version" in refused["error"]["message"]
    assert place.old.url.rpartition("/")[2] in (place.folder / "included" / SERVERS).read_text()
    place.new.workload.policy_version = "2"
    place.new.outer = lambda: PlainTextResponse("Bad gateway", 502)
    assert run(*arguments, code=1)[-1]["error"]["code"] == "gateway"
    place.new.outer = None
    broken = ("--new", place.new.url, "--public", place.public, *place.commands()[:-1], "false")
    assert run(*broken, code=1)[-1]["error"]["code"] == "rollout-stopped"
    assert place.old.url.rpartition("/")[2] in (place.folder / "included" / SERVERS).read_text()
    assert not (place.folder / "included" / REPLICAS).read_bytes()


@pytest.mark.parametrize(
    "arguments",
    [
        (),
        ("--new", "http://127.0.0.1:1"),
        ("--new", "http://127.0.0.1:1", "--public", "http://127.0.0.1:1", "--check", "nginx -t"),
        ("--prepare", "--check", "nginx '", "--reload", "true"),
    ],
)
def test_what_is_left_out_is_asked_for(place: Place, run: Run, arguments: tuple[str, ...]) -> None:
    run(*arguments, code=2)
    assert not Path("keys/audit.jsonl").exists()


def test_people_are_told_the_same(
    place: Place, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    given = ["--new", place.new.url, "--public", place.public, *place.commands()]
    words = ["confide", "deploy", "rollout", KEY.id, "--policy", "new.toml", "--folder", "keys", *given]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit):
        main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == ["allow", "appraise", "switch", "drain", "retire"]
    assert "SIMULATED" in lines[1]
    monkeypatch.setattr(sys, "argv", ["confide", "keys", "log", "show", "--folder", "keys"])
    with pytest.raises(SystemExit):
        main()
    assert "the old version until" in capsys.readouterr().out


def test_what_the_real_one_says_of_its_answers() -> None:
    party = RelyingParty.configure(offline=True)
    with AskedMachines(party, []) as machines:
        with serving_app(private_app(Serving(FakeEngine()))) as url:  # type: ignore[arg-type]
            assert machines.busy(url) == 0
            with pytest.raises(RolloutStopped):
                machines.busy(f"{url}/health")
        assert machines.busy(url) is None
        assert machines.key_id(url) is None
        for odd in ("", "http://", "127.0.0.1:9000", "http://127.0.0.1:99999"):
            with pytest.raises(ConnectionLost):
                machines.busy(odd)
