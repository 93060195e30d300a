"""Sealed models served for real: the owner's broker and the server are processes, the TEE is simulated."""

import json
import os
import secrets
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from msgspec.json import encode
from tests.cli.command import run, serving
from tests.enclave.examined import examined
from tests.enclave.nginx import balanced

import confide
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.reading.detect import detect
from confide.attest.requirements import NoEgress, NotDebug, NoUpstream, Options, Quantization, SelfTest, Weights
from confide.attest.simulated import SimulatedTee
from confide.broker.store import Conditions, KeyStore
from confide.cli.demo.tampering import flip_byte
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.client.enclave import EnclaveSession
from confide.errors import ApiKeyRefused, AttestationRefused, BudgetExhausted
from confide.ledger.address import DatabaseAddress
from confide.models.source import open_model
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.write import seal_model
from owners import OWNER

PROMPT = "The old man opened the door and"
GREEDY = {"max_tokens": 12, "temperature": 0}


@dataclass(frozen=True)
class Place:
    """An owner's machine and a simulated one, with a sealed model, and one whose key nobody here gets."""

    folder: Path
    store: KeyStore
    broker: str = ""

    @property
    def root(self) -> Path:
        return self.folder / "tee" / "root.pem"

    def options(self) -> tuple[str, ...]:
        simulated = ("--tee", "simulated", "--simulated-tee", str(self.folder / "tee"))
        return (*simulated, "--keys", self.broker, "--port", "0")

    @contextmanager
    def serving(self, package: str, *options: str) -> Iterator[dict[str, object]]:
        environment = {"OMP_NUM_THREADS": "1"}
        with serving("serve", str(self.folder / package), *self.options(), *options, environment=environment) as server:
            yield server

    def seal(self, name: str, model: str, policy: Policy | SimulatedPolicy, trusted: bytes | None) -> None:
        key = ModelKey.generate()
        manifest = seal_model(contents_of(model), self.folder / name, key=key, owner=OWNER, examine=examined(model))
        self.store.add(key, Conditions(manifest.model_digest, policy, trusted), datetime.now(UTC))

    def connect(self, server: dict[str, object], **options: object) -> EnclaveSession:
        session = confide.connect(str(server["url"]), simulated_root=self.root, **options)
        assert isinstance(session, EnclaveSession)
        return session


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    folder = tmp_path_factory.mktemp("place")
    SimulatedTee.create(folder / "tee")
    passphrase = secrets.token_hex(8)
    made = Place(folder, KeyStore.create(folder / "keys", passphrase))
    made.seal("safetensors", "demo", SimulatedPolicy.all_of(NotDebug()), made.root.read_bytes())
    made.seal("strict", "demo", Policy.all_of(NotDebug()), None)
    broker = ("keys", "serve", "--folder", str(folder / "keys"), "--port", "0", "--offline")
    with serving(*broker, environment={PASSPHRASE_VARIABLE: passphrase}) as announced:
        yield replace(made, broker=str(announced["url"]))


@pytest.fixture(scope="module", params=["safetensors", pytest.param("gguf", marks=pytest.mark.slow)])
def server(request: pytest.FixtureRequest, place: Place) -> Iterator[dict[str, object]]:
    if request.param == "gguf":
        done = run("quantize", "demo", "--type", "q8_0", "--out", place.folder / "demo.gguf", "--json")
        assert done.returncode == 0, done.stderr
        lenient = SimulatedPolicy.all_of(NotDebug())
        place.seal("gguf", str(place.folder / "demo.gguf"), lenient, place.root.read_bytes())
    with place.serving(request.param) as announced:
        yield announced


@pytest.fixture(scope="module")
def expected() -> str:
    source = open_model("demo")
    tokenizer = source.load_tokenizer()
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids = source.load_model().generate(**inputs, max_new_tokens=12, do_sample=False, pad_token_id=0)
    return str(tokenizer.decode(ids[0, inputs["input_ids"].shape[1] :]))


def test_a_verified_model_answers(place: Place, server: dict[str, object], expected: str) -> None:
    with place.connect(server) as session:
        assert session.result.trusted
        assert session.result.simulated
        assert session.model_digest == server["model_digest"]
        assert "SIMULATED" in str(session.trust)
        assert session.generate(PROMPT, **GREEDY) == expected
        assert "".join(session.chat(PROMPT, stream=True, **GREEDY)) == session.chat(PROMPT, **GREEDY)


def test_what_runs_is_in_the_evidence(place: Place, server: dict[str, object]) -> None:
    requirements = (NoUpstream(), NoEgress(), SelfTest(), Options({"tee": "simulated", **_options(place)}))
    with place.connect(server, policy=SimulatedPolicy.all_of(*requirements)) as session:
        stated = session.configuration
        assert stated is not None
        assert json.loads(encode(stated)) == server["configuration"]
        assert stated.engine is not None
        assert (stated.engine.name, stated.context) == (server["engine"], 512)
        assert stated.environment["OMP_NUM_THREADS"] == "1"
        assert stated.weights is not None
        policy = SimulatedPolicy.all_of(Weights((stated.weights.digest,)), Quantization((str(server["quantization"]),)))
        place.connect(server, policy=policy).close()
        with pytest.raises(AttestationRefused, match="weights"):
            place.connect(server, policy=SimulatedPolicy.all_of(Weights(("11" * 32,))))


def test_an_answer_has_a_receipt_that_names_the_weights_in_memory(place: Place, server: dict[str, object]) -> None:
    with place.connect(server) as session:
        session.chat(PROMPT, **GREEDY)
        result = session.receipt()
        assert result.verified
        assert {one.code for one in result.checks if not one.passed} == {"receipt-chain"}
        assert session.configuration is not None
        assert session.configuration.weights is not None
        (weights,) = result.receipt.events("confide.weights")
        assert weights["digest"] == session.configuration.weights.digest


@pytest.mark.slow  # tests/enclave/api/test_balanced.py has two servers in this process
def test_a_thousand_requests_to_two_behind_a_balancer(place: Place, tmp_path: Path) -> None:
    with place.serving("safetensors") as first, place.serving("safetensors") as second:
        ports = [urlsplit(str(one["url"])).port or 0 for one in (first, second)]
        with balanced(tmp_path / "nginx", ports) as url, place.connect({"url": url}, replicas=2) as session:
            answers = {session.generate(PROMPT, max_tokens=1, temperature=0) for _ in range(1000)}
            assert session.receipt().verified
            assert len(session.replicas) == 2
        log = (tmp_path / "nginx" / "access.log").read_text()
    assert len(answers) == 1
    assert log.count("GET /attestation") <= 4
    assert log.count('POST /encrypted HTTP/1.1" 200') == 1 + 1000  # each with its receipt


def _options(place: Place) -> dict[str, str]:
    return {"simulated-tee": str(place.folder / "tee"), "keys": place.broker}


def test_a_package_without_known_answers_is_not_served(place: Place, tmp_path: Path) -> None:
    seal_model(contents_of("demo"), tmp_path / "package", key=ModelKey.generate(), owner=OWNER)
    assert refused(tmp_path / "package", *place.options()) == "self-test-missing"


def test_16_requests_at_once_stream_correctly(place: Place, server: dict[str, object], expected: str) -> None:
    with place.connect(server) as session:
        request = {"model": session.model, "prompt": PROMPT, "stream": True, **GREEDY}

        def stream(_: int) -> str:
            return "".join(chunk.choices[0].text for chunk in session.openai.completions.create(**request))

        with ThreadPoolExecutor(16) as threads:
            assert set(threads.map(stream, range(16))) == {expected}


def test_nothing_but_its_own_port_answers(server: dict[str, object]) -> None:
    port = int(str(server["url"]).rpartition(":")[2])
    assert listening_ports(process_listening_on(port)) == {port}


def process_listening_on(port: int) -> int:
    sockets = {inode for inode, local in _listening().items() if local == port}
    return next(int(pid) for pid in os.listdir("/proc") if pid.isdecimal() and sockets & _sockets(int(pid)))


def listening_ports(pid: int) -> set[int]:
    """Of all TCP sockets that a process listens on."""
    return {port for inode, port in _listening().items() if inode in _sockets(pid)}


def _listening() -> dict[str, int]:
    """Ports by the inode of the socket, for both versions of IP."""
    found = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                found[fields[9]] = int(fields[1].rpartition(":")[2], 16)
    return found


def _sockets(pid: int) -> set[str]:
    """Inodes of a process's sockets; none of one that ends meanwhile."""
    found = set()
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            found.add(os.readlink(entry).removeprefix("socket:[").removesuffix("]"))
    return found


def test_questions_in_the_clear_are_refused(server: dict[str, object]) -> None:
    answer = httpx.post(f"{server['url']}/v1/completions", json={"model": "demo", "prompt": PROMPT})
    assert answer.status_code == 403
    assert "confide.connect" in answer.text
    assert httpx.get(f"{server['url']}/health").status_code == 200


def test_tls_may_end_inside_and_users_may_need_licences(place: Place, expected: str, tmp_path: Path) -> None:
    state = tmp_path / "state"
    with place.serving("safetensors", "--ra-tls", "--state", str(state)) as server:
        assert server["licences"] is True
        with place.connect(server, ra_tls=True) as session:
            assert session.configuration is not None
            assert session.configuration.options["licences"] == "true"
            assert str(state) not in str(session.configuration)
            with pytest.raises(ApiKeyRefused):
                session.generate(PROMPT, **GREEDY)
        made = json.loads(run("licence", "create", state, "--name", "reader", "--tokens", "40", "--json").stdout)
        with place.connect(server, ra_tls=True, licence=made["key"]) as session:
            assert session.generate(PROMPT, **GREEDY) == expected
            with pytest.raises(BudgetExhausted):
                session.generate(PROMPT * 10, **GREEDY)
    usage = json.loads(run("licence", "usage", state, "--json").stdout)["usage"]
    counted = {row["unit"]: row["tokens"] for row in usage}
    assert counted["output"] == 12
    assert set(counted) == {"input", "output"}
    header, *rows = run("licence", "usage", state, "--csv").stdout.splitlines()
    assert header == "licence,id,day,unit,tokens"
    assert [row.split(",")[3:] for row in rows] == [["input", str(counted["input"])], ["output", "12"]]


def test_users_of_replicas_share_a_database_that_their_processes_cannot_reach(
    place: Place, expected: str, database: DatabaseAddress
) -> None:
    made = json.loads(run("licence", "create", database, "--name", "reader", "--tokens", "2000", "--json").stdout)
    closed = SimulatedPolicy.all_of(NoEgress(allow_ledger=True))
    ledger = ("--ledger", str(database))
    with place.serving("safetensors", *ledger) as one, place.serving("safetensors", *ledger) as other:
        for server in (one, other):
            assert server["licences"] is True
            with place.connect(server, policy=closed, licence=made["key"]) as session:
                assert session.configuration is not None
                assert session.configuration.egress == "ledger-only"
                assert session.generate(PROMPT, **GREEDY) == expected
            with pytest.raises(AttestationRefused, match="egress"):
                place.connect(server, policy=SimulatedPolicy.all_of(NoEgress()))
    usage = json.loads(run("licence", "usage", database, "--json").stdout)["usage"]
    assert {row["unit"]: row["tokens"] for row in usage}["output"] == 24


def refused(*arguments: object) -> str:
    done = run("serve", *arguments, "--json", timeout=900)
    assert done.returncode == 1
    return str(json.loads(done.stdout.splitlines()[-1])["error"]["code"])


def test_a_damaged_package_is_not_served(place: Place, tmp_path: Path) -> None:
    package = tmp_path / "damaged"
    package.mkdir()
    for path in (place.folder / "safetensors").iterdir():
        content = path.read_bytes()
        large = path.name == "model.safetensors.sealed"
        (package / path.name).write_bytes(flip_byte(content, len(content) // 2) if large else content)
    assert refused(package, *place.options()) == "damaged-file"


def test_a_production_policy_gives_no_key_to_a_simulated_environment(place: Place) -> None:
    assert refused(place.folder / "strict", *place.options()) == "key-refused"


def test_auto_never_simulates(place: Place) -> None:
    if detect().readers:
        pytest.skip("this machine has hardware")
    assert refused(place.folder / "safetensors", "--keys", place.broker) == "no-trusted-environment"


def test_options_of_the_other_kind_are_refused(place: Place) -> None:
    done = run("serve", place.folder / "safetensors", "--record", "x")
    assert done.returncode == 2
    assert "--record is not for a sealed model" in done.stderr


@pytest.mark.slow  # each kind is refused by quicker tests
def test_the_demo_refuses_three_kinds_of_tampering() -> None:
    done = run("demo", "enclave", "--json", timeout=900)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["verified"] is True
    assert found["tampering_refused"] == 3
    assert len(found["model_digest"]) == 64
    assert found["text"]
    assert found["overhead_ms"] < 100
