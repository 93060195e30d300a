"""What a manifest may say, and who may put the next version of a graph in force."""

import json
import re
from collections.abc import Callable

import msgspec
import pytest

from confide.attest.configuration import GraphJoined
from confide.attest.policy_toml import any_policy_from_toml, policy_digest
from confide.attest.requirements import Graph, Model
from confide.disk.chained import GENESIS, next_line, read_line
from confide.errors import GraphRefused, InvalidGraph
from confide.graph.history import PURPOSE, History, Proposal, Signature, missing
from confide.graph.manifest import MAX_WAYS, Draft, Version

from .graphs import (
    ALICE,
    BOB,
    CAROL,
    DAVE,
    DIGESTS,
    DRAFT,
    MALLORY,
    MEASURED,
    NOW,
    POLICY,
    SPARE,
    begun,
    signed,
    version,
)

WITH_COORDINATOR = (
    DRAFT.replace('entry = "guard"', 'entry = "guard"\ncoordinator = "clerk"\npromise = "promise.toml"')
    + '[services.clerk]\npolicy = "policy.toml"\n'
)


def test_a_graph_begins_changes_and_is_known_by_its_first_version() -> None:
    history = begun()
    assert history.id == history.current.digest == history.changes[0].digest
    other = version(DRAFT.replace(DIGESTS["model"], "44" * 32), history.current)
    later = history.applied(signed(other, [BOB, CAROL]), NOW)
    assert (later.id, later.current.manifest.version) == (history.id, 2)
    assert [change.event for change in later.changes] == ["begun", "changed"]
    assert later.changes[1].by == (str(BOB.public), str(CAROL.public))
    read = History.read(later.content, history.id)
    assert (read.changes, read.head, read.current.digest) == (later.changes, later.head, later.current.digest)
    assert later.content.startswith(history.content)
    with pytest.raises(GraphRefused, match="was asked for"):
        History.read(later.content, other.digest)


def test_two_graphs_that_say_the_same_have_two_ids() -> None:
    """Who guesses all of a manifest cannot tell from its digest, which the entry's statement names."""
    assert begun().id != begun().id


@pytest.mark.parametrize(
    ("by", "kind"),
    [
        ([ALICE], {}),
        ([ALICE, MALLORY], {}),
        ([ALICE, DAVE], {}),
        ([ALICE, SPARE], {}),
        ([ALICE, ALICE], {}),
        ([ALICE, BOB], {"recovery": True}),
        ([MALLORY], {"recovery": True}),
        ([], {}),
    ],
    ids=[
        "one",
        "stranger",
        "owner-to-be",
        "spare-as-owner",
        "twice",
        "owners-as-recovery",
        "recovery-stranger",
        "none",
    ],
)
def test_without_the_quorum_of_those_who_own_it_now_nothing_changes(by: list[object], kind: dict[str, bool]) -> None:
    """Whoever the new version calls its owners has no say in it."""
    history = begun()
    owners = f'owners = ["{DAVE.public}", "{MALLORY.public}"]'
    other = version(re.sub(r"owners = \[.*\]", owners, DRAFT).replace("quorum = 2", "quorum = 1", 1), history.current)
    with pytest.raises(GraphRefused, match="more of those who own"):
        history.applied(signed(other, by, **kind), NOW)  # type: ignore[arg-type]


def given_to_dave(before: Version) -> Version:
    draft = re.sub(r"owners = \[.*\]", f'owners = ["{DAVE.public}"]', DRAFT)
    return version(draft.replace("quorum = 2", "quorum = 1", 1), before)


def test_who_has_the_spare_key_gives_the_graph_to_other_owners() -> None:
    history = begun()
    other = given_to_dave(history.current)
    recovered = history.applied(signed(other, [SPARE], recovery=True), NOW)
    assert recovered.changes[-1].event == "recovered"
    third = version(DRAFT, recovered.current)
    with pytest.raises(GraphRefused):
        recovered.applied(signed(third, [ALICE, BOB]), NOW)  # they own it no more
    assert recovered.applied(signed(third, [DAVE]), NOW).changes[-1].event == "changed"


def test_nobody_recovers_what_has_not_begun_or_has_no_spare_key() -> None:
    with pytest.raises(GraphRefused):
        History.begin(signed(version(), [SPARE], recovery=True), NOW)
    without = re.sub(r"recovery.*\n", "", DRAFT)
    history = begun(without)
    for by in ([SPARE], []):
        with pytest.raises(GraphRefused):
            history.applied(signed(version(without, history.current), by, recovery=True), NOW)


def test_an_older_version_is_not_put_in_force_again() -> None:
    history = begun()
    first = Proposal(1, history.current.manifest, signed(history.current).signatures)
    second = signed(version(DRAFT, history.current))
    later = history.applied(second, NOW)
    for old in (first, second):
        with pytest.raises(GraphRefused, match="does not follow"):
            later.applied(old, NOW)
    fork = signed(version(DRAFT, history.current))
    with pytest.raises(GraphRefused, match="does not follow"):
        later.applied(fork, NOW)
    with pytest.raises(GraphRefused, match="does not follow"):
        begun().applied(second, NOW)  # of the same owners, for another graph of theirs


def test_a_log_is_what_was_written() -> None:
    history = begun()
    later = history.applied(signed(version(DRAFT, history.current)), NOW).content
    first, second = later.splitlines(keepends=True)
    for damaged in (
        second,
        second + first,
        first + first,
        later.replace(b"desk", b"desc"),
        later.replace(b":2", b":3"),
    ):
        with pytest.raises((GraphRefused, InvalidGraph)):
            History.read(damaged)
    for no_log in (b"", b"\n", later[:-1], later + b"\n", b"[" * 100_000 + b"\n", b"\n" * 2000):
        with pytest.raises((GraphRefused, InvalidGraph)):
            History.read(no_log)
    assert History.read(first).current.manifest.version == 1  # what was cut off at the end, the client's memory finds


@pytest.mark.parametrize(
    "change",
    [
        lambda entry: entry | {"signatures": entry["signatures"][:1]},
        lambda entry: entry | {"signatures": [entry["signatures"][0]] * 2},
        lambda entry: entry | {"event": "begun"},
        lambda entry: entry | {"event": "recovered"},
        lambda entry: entry | {"manifest": entry["manifest"] | {"name": "other"}},
        lambda entry: entry | {"more": 1},
    ],
    ids=["one", "twice", "begun", "recovered", "other", "more"],
)
def test_who_writes_a_log_without_keys_writes_none(change: Callable[[dict[str, object]], dict[str, object]]) -> None:
    """The hashes are right, as anybody can make them; the signatures are not."""
    history = begun()
    line = read_line(history.applied(signed(version(DRAFT, history.current)), NOW).content[len(history.content) :])
    assert line is not None
    forged = next_line(PURPOSE, history.head, json.dumps(change(json.loads(line.entry))).encode()).write()
    with pytest.raises((GraphRefused, InvalidGraph)):
        History.read(history.content + forged)
    begins = next_line(PURPOSE, GENESIS.hex(), line.entry).write()
    with pytest.raises(GraphRefused):
        History.read(begins)


def test_signatures_are_counted_for_who_still_has_to_sign() -> None:
    history = begun()
    proposal = Proposal(1, version(DRAFT, history.current).manifest)
    assert missing(history.current, proposal) == (2, 1)
    proposal = proposal.signed(Signature.make(proposal.manifest, ALICE))
    assert missing(history.current, proposal.signed(Signature.make(proposal.manifest, ALICE))) == (1, 1)
    assert Proposal.read(proposal.write()) == proposal


def test_what_a_service_has_to_be_is_the_policy_its_digest_and_its_place() -> None:
    history = begun()
    policy = history.current.policy(history.id, "model")
    assert policy.requirements == (
        Model(DIGESTS["model"]),
        Graph(history.id, "model", 1, history.current.digest),
    )
    named = version(
        policy=POLICY + f'[[all]]\nrequire = "model"\nsha256 = "{DIGESTS["model"]}"\nallow-upstream = "x"\n'
    )
    assert [one for one in named.policy("00" * 32, "model").requirements if isinstance(one, Model)] == [
        Model(DIGESTS["model"], "x")
    ]
    assert history.current.callers("model") == ("guard",)
    assert history.current.asks("model") == ("retrieval",)
    assert history.current.joined(history.id, "model") == GraphJoined(history.id, 1, history.current.digest, "model")
    for method in (history.current.callers, history.current.asks):
        with pytest.raises(InvalidGraph, match="no service 'user'"):
            method("user")


def test_a_coordinator_promises_a_policy_and_sees_nothing() -> None:
    made = version(WITH_COORDINATOR)
    assert made.data_services == ("guard", "model", "retrieval")
    assert made.joined("00" * 32, "clerk").promise == policy_digest(any_policy_from_toml(POLICY))
    assert made.joined("00" * 32, "guard").promise == ""


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('asks = ["model"]', 'asks = ["models"]', "no service 'models'"),
        ('asks = ["model"]', 'asks = ["guard", "model"]', "asks itself"),
        ('asks = ["model"]', 'asks = ["model", "model"]', "twice"),
        ('asks = ["retrieval"]', 'asks = ["guard"]', "nobody else asks it"),
        ('asks = ["retrieval"]', "", "somebody asks every other"),
        ('asks = ["retrieval"]', 'asks = ["retrieval", "model"]', "asks itself"),
        ('entry = "guard"', 'entry = "model"', "nobody else asks it"),
        ('entry = "guard"', 'entry = "nobody"', "no service"),
        ('entry = "guard"', 'entry = "guard"\ncoordinator = "model"', "belong together"),
        ('entry = "guard"', 'entry = "guard"\npromise = "policy.toml"', "belong together"),
        ('entry = "guard"', 'entry = "guard"\ncoordinator = "guard"\npromise = "policy.toml"', "sees no user's data"),
        ('entry = "guard"', 'entry = "guard"\ncoordinator = "model"\npromise = "policy.toml"', "sees no user's data"),
        ("\nquorum = 2", "\nquorum = 4", "no quorum"),
        ("\nquorum = 2", "\nquorum = 0", "no quorum"),
        ("recovery-quorum = 1", "recovery-quorum = 2", "no quorum"),
        ("recovery-quorum = 1", "recovery-quorum = 0", "no quorum"),
        (str(BOB.public), str(ALICE.public), "stands there twice"),
        (f'digest = "{DIGESTS["model"]}"\n', "", "model has no digest"),
        ("confide-graph = 1", "confide-graph = 2", "understood"),
        ("[services.model]", "[services.Model]", "understood"),
        ("[services.model]", "[services.model]\nurl = 1", "understood"),
        ('name = "desk"', 'name = "a desk"', "understood"),
    ],
)
def test_a_draft_that_contradicts_itself_is_refused(old: str, new: str, why: str) -> None:
    assert old in DRAFT
    with pytest.raises(InvalidGraph, match=why):
        version(DRAFT.replace(old, new))


def test_answers_never_wait_for_each_other() -> None:
    """guard -> model -> retrieval -> model."""
    draft = DRAFT.replace(f'digest = "{DIGESTS["retrieval"]}"', f'digest = "{DIGESTS["retrieval"]}"\nasks = ["model"]')
    with pytest.raises(InvalidGraph, match="circle"):
        version(draft)


def test_there_are_not_too_many_ways_through_a_graph() -> None:
    """Evidence is gathered along them: ten floors of two doors each would be asked for two thousand times."""
    floors = [["guard"], *([f"a{floor}", f"b{floor}"] for floor in range(10)), []]
    services = "".join(
        f'[services.{name}]\ndigest = "{"00" * 32}"\npolicy = "p"\nasks = {floors[at + 1]}\n'
        for at, floor in enumerate(floors[:-1])
        for name in floor
    )
    head = DRAFT.partition("[services")[0]
    with pytest.raises(InvalidGraph, match=f"more than {MAX_WAYS} ways"):
        version(head + services)


@pytest.mark.parametrize(
    ("policy", "why"),
    [
        ('confide-policy = 1\nkind = "production"\n', "names no measured code"),
        ('confide-policy = 1\nkind = "odd"\n', "is none"),
        ("[" * 2000, "is none"),
    ],
    ids=["any-code", "odd", "deep"],
)
def test_a_policy_that_lets_any_code_be_a_service_is_refused(policy: str, why: str) -> None:
    assert not version(policy=MEASURED).simulated
    with pytest.raises(InvalidGraph, match=why):
        version(policy=policy)


def test_simulated_and_real_hardware_do_not_mix() -> None:
    read = Draft.parse(DRAFT.replace('policy.toml"\nasks = ["model"]', 'other.toml"\nasks = ["model"]'))
    with pytest.raises(InvalidGraph, match="decide for one kind"):
        read.version({"policy.toml": POLICY, "other.toml": MEASURED})


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000, b"\xff", b"null"], ids=range(5))
def test_what_is_no_proposal_is_refused(content: bytes) -> None:
    with pytest.raises(InvalidGraph):
        Proposal.read(content)
    contradiction = msgspec.structs.replace(version().manifest, entry="model")
    with pytest.raises(InvalidGraph):
        Proposal.read(Proposal(1, contradiction).write())


def test_an_owners_signature_calls_for_no_other_owners() -> None:
    """One person may hold a key of both kinds: which of the two speaks, is signed."""
    manifest = version().manifest
    made = Signature.make(manifest, SPARE)
    assert made.holds(manifest.digest)
    assert not msgspec.structs.replace(made, recovery=True).holds(manifest.digest)
    assert not msgspec.structs.replace(Signature.make(manifest, SPARE, recovery=True), recovery=False).holds(
        manifest.digest
    )
