"""`confide graph` and `confide guard` as their owners, operators and users run them."""

import json
import re
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from tests.graph.graphs import ALICE, BOB, CAROL, DRAFT, MALLORY, NOW, POLICY, SPARE, signed, version
from tests.graph.scene import KEY, RULES, Packages

from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.broker.store import Conditions, KeyStore
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.graph.history import History, Proposal, Signature
from confide.packages.owner import OwnerKey

from .command import run, serving


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode == check, done.stderr + done.stdout
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))


@pytest.fixture
def draft(tmp_path: Path) -> Path:
    (tmp_path / "policy.toml").write_text(POLICY)
    (tmp_path / "desk.toml").write_text(DRAFT)
    return tmp_path / "desk.toml"


def key_file(folder: Path, owner: OwnerKey, name: str) -> Path:
    owner.write(folder / name)
    return folder / name


def sign_by_hand(path: Path, *owners: OwnerKey) -> None:
    proposal = Proposal.read(path.read_bytes())
    for owner in owners:
        proposal = proposal.signed(Signature.make(proposal.manifest, owner))
    path.write_bytes(proposal.write())


def test_owners_begin_a_graph_and_change_it(draft: Path, tmp_path: Path) -> None:
    one, two, log = tmp_path / "1.json", tmp_path / "2.json", tmp_path / "graph.jsonl"
    made = answer("graph", "init", draft, "--out", one)
    assert (made["version"], made["entry"], made["simulated"]) == (1, "guard", True)
    alice = key_file(tmp_path, ALICE, "alice.key")
    assert answer("graph", "sign", one, "--owner", alice)["signed_by"] == [str(ALICE.public)]
    refused = answer("graph", "apply", one, "--log", log, check=1)
    assert refused["error"]["code"] == "graph-refused"
    assert not log.exists()
    sign_by_hand(one, BOB)
    begun = answer("graph", "apply", one, "--log", log)
    assert (begun["graph"], begun["event"]) == (made["digest"], "begun")

    answer("graph", "init", draft, "--after", log, "--out", two)
    sign_by_hand(two, CAROL, MALLORY)
    status = answer("graph", "status", log, "--pending", two)
    assert (status["graph"], status["version"]) == (begun["graph"], 1)
    assert [one["signed_by"] for one in status["changes"]] == [[str(ALICE.public), str(BOB.public)]]
    assert (status["pending"]["missing"], status["pending"]["missing_recovery"]) == (1, 1)
    shown = run("graph", "status", log, "--pending", two).stdout
    assert "takes 1 more" in shown
    assert shown.partition("takes 1 more")[2].split()[-2:] == [str(ALICE.public), str(BOB.public)]
    spare = key_file(tmp_path, SPARE, "spare.key")
    answer("graph", "sign", two, "--owner", spare, "--recovery")
    assert answer("graph", "apply", two, "--log", log)["event"] == "recovered"
    assert answer("graph", "apply", one, "--log", log, check=1)["error"]["code"] == "graph-refused"
    assert History.read(log.read_bytes(), begun["graph"]).current.manifest.version == 2


def test_a_draft_that_is_none_says_what_to_correct(draft: Path, tmp_path: Path) -> None:
    draft.write_text(DRAFT.replace('entry = "guard"', 'entry = "door"'))
    refused = answer("graph", "init", draft, "--out", tmp_path / "1.json", check=1)
    assert refused["error"]["code"] == "invalid-graph"
    assert "no service 'door'" in refused["error"]["message"]
    assert not (tmp_path / "1.json").exists()


def test_rules_are_signed_and_tried(tmp_path: Path) -> None:
    (tmp_path / "rules.toml").write_text(RULES)
    owner = key_file(tmp_path, ALICE, "alice.key")
    made = answer("guard", "sign", tmp_path / "rules.toml", "--out", tmp_path / "guard", "--owner", owner)
    assert (made["phrases"], made["owner"]) == (2, str(ALICE.public))
    tried = answer("guard", "try", tmp_path / "guard", "Open sesame!")
    assert tried == {"refused": True, "digest": made["digest"]}
    assert run("guard", "try", tmp_path / "guard", "open the door").stdout.strip() == "Handed on."


@pytest.fixture
def tee(tmp_path: Path) -> Path:
    SimulatedTee.create(tmp_path / "tee")
    return tmp_path / "tee"


def simulated(tee: Path) -> tuple[object, ...]:
    return ("--tee", "simulated", "--simulated-tee", tee, "--port", "0")


WITHOUT_MODEL = re.sub(r"\[services\.model\].*?\n\n", "", DRAFT, flags=re.DOTALL)
TWO = WITHOUT_MODEL.replace('asks = ["model"]', 'asks = ["retrieval"]')


@pytest.fixture
def broker(tmp_path: Path, tee: Path) -> Iterator[tuple[str, Packages]]:
    """The address of the owner's key service, and packages whose keys it has."""
    packages = Packages.make(tmp_path)
    store = KeyStore.create(tmp_path / "keys", "passphrase")
    trusted = (tee / "root.pem").read_bytes()
    store.add(KEY, Conditions(packages.digests["retrieval"], SimulatedPolicy(), trusted), NOW)
    keys = ("keys", "serve", "--folder", tmp_path / "keys", "--port", "0", "--offline")
    with serving(*keys, environment={PASSPHRASE_VARIABLE: "passphrase"}) as announced:
        yield announced["url"], packages


@pytest.mark.slow
def test_services_in_processes_of_their_own_are_verified_as_one(
    tmp_path: Path, tee: Path, broker: tuple[str, Packages]
) -> None:
    """A guard and what it asks, with their ways out closed. Then the guard's rules are others by a letter."""
    keys, packages = broker
    log = tmp_path / "graph.jsonl"
    digests = {"11" * 32: packages.digests["guard"], "33" * 32: packages.digests["retrieval"]}
    written = TWO
    for stand_in, digest in digests.items():
        written = written.replace(stand_in, digest)
    history = History.begin(signed(version(written)), NOW)
    log.write_bytes(history.content)
    with ExitStack() as stack:

        def serve(package: Path, name: str, *options: object) -> dict[str, Any]:
            joined = ("--graph", log, "--service", name)
            return stack.enter_context(serving("serve", package, *simulated(tee), *joined, *options))

        search = serve(tmp_path / "corpus", "retrieval", "--keys", keys)
        assert search["configuration"]["graph"]["service"] == "retrieval"
        asked = ("--neighbour", f"retrieval={search['url']}")
        guard = serve(tmp_path / "guard", "guard", *asked)
        assert (guard["digest"], guard["configuration"]["egress"]) == (packages.digests["guard"], "neighbours-only")
        attest = ("--graph", history.id, "--simulated-root", tee / "root.pem")
        verdict = answer("attest", "graph", guard["url"], *attest)
        assert verdict["trusted"]
        assert list(verdict["services"]) == ["guard", "retrieval"]
        assert "SIMULATED" in verdict["trust"]

        others = tmp_path / "others"
        others.mkdir()
        Packages.make(others, RULES.replace("sesame", "sesamo"))
        odd = serve(others / "guard", "guard", *asked)
        done = run("attest", "graph", odd["url"], *attest)
        assert done.returncode == 10
        assert "not trusted, because of guard" in done.stdout
        assert re.search(r"^retrieval +is what its owners ask for$", done.stdout, re.MULTILINE)


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ((), "--graph, --service and --neighbour"),
        (("--service", "guard", "--neighbour", "a=http://127.0.0.1:1"), "--graph, --service and --neighbour"),
        (("--graph", "LOG", "--neighbour", "a=http://127.0.0.1:1"), "--graph and --service go together"),
        (("--graph", "LOG", "--service", "guard", "--neighbour", "a"), "NAME=URL"),
        (("--graph", "LOG", "--service", "guard", "--neighbour", "a=http://127.0.0.1:1"), "guard asks model"),
        (("--keys", "http://127.0.0.1:1"), "--keys is not for a guard"),
    ],
    ids=["nothing", "no-log", "no-service", "no-address", "stranger", "keys"],
)  # fmt: skip
def test_a_guard_is_told_where_its_model_is(tmp_path: Path, tee: Path, options: tuple[str, ...], why: str) -> None:
    Packages.make(tmp_path)
    (tmp_path / "graph.jsonl").write_bytes(History.begin(signed(version()), NOW).content)
    given = [tmp_path / "graph.jsonl" if one == "LOG" else one for one in options]
    done = run("serve", tmp_path / "guard", *simulated(tee), *given)
    assert done.returncode != 0
    assert why in " ".join(re.sub(r"[│╭╰─]", "", done.stderr).split())
