"""A rollout among machines that are made up: cut off anywhere it goes on, and what is asked of them alone decides."""

import functools
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from confide import rollout
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.policy import AnyPolicy, SimulatedPolicy
from confide.attest.requirements import Model, NoEgress, PolicyVersion
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.attest.transition import Transition, ask_the_same
from confide.broker import change, store
from confide.broker.log import LOG_NAME, LogReader, verify
from confide.broker.store import Conditions, KeyStore
from confide.channel.keys import ChannelKey
from confide.client.relying_party import Verified
from confide.errors import (
    AttestationRefused,
    ConfideError,
    ConnectionLost,
    DeployError,
    GatewayError,
    InvalidPolicy,
    RolloutStopped,
    UntrustedCertificate,
)
from confide.packages.sealed.key import ModelKey
from confide.rollout import KeyPolicies, Rollout, Step, Traffic

KEY = ModelKey(bytes(range(32)))
MODEL = "ab" * 32
NOW = datetime(2026, 12, 1, 12, 0, 0, 5, UTC)
DAY = timedelta(days=1)
OLD, NEW, NEXT = (SimulatedPolicy.all_of(PolicyVersion(version)) for version in "123")
PUBLIC, BEFORE = "https://models.example", "https://10.0.0.1:8470"
AFTER = ("https://10.0.0.2:8470", "https://10.0.0.3")


class Cut(BaseException):
    """The process ends here."""


def machine(url: str) -> Verified:
    statement = Statement("", MODEL, "", {})
    result = AttestationResult(Family.TDX, NOW, (), None, ())
    return Verified(ChannelKey().public, statement, result, Evidence(Family.TDX, b""), Collateral(), NEW, url)


@dataclass
class World:
    """An owner's keys, machines, and a balancer, whose configuration is a folder that its command copies.

    answers: what is wrong with whoever is asked, by address. works: how many answers the old one makes, look by look.
    """

    folder: Path
    store: KeyStore
    machines: dict[str, Verified]
    answers: dict[str, ConfideError] = field(default_factory=dict)
    works: list[int | None] = field(default_factory=lambda: [2, 0, 1, 0, 0, 0])
    now: datetime = NOW
    slept: int = 0

    @property
    def policy(self) -> AnyPolicy:
        return self.store.get(KEY.id).conditions.policy

    @property
    def nginx(self) -> Path:
        return self.folder / "nginx"

    @property
    def behind(self) -> list[str]:
        """Who is handed questions."""
        active = self.folder / "active"
        if not active.exists():
            return [BEFORE]
        return [url for url in AFTER if url.removeprefix("https://") in active.read_text()]

    def verify(self, url: str) -> Verified:
        if url == PUBLIC:
            url = self.behind[self.slept % len(self.behind)]
            self.slept += 1
        if url == BEFORE:
            raise AttestationRefused("The old one is not the new one.", ("policy-version",))
        if url in self.answers:
            raise self.answers[url]
        return self.machines[url]

    def require_serving(self, verified: Verified) -> None:
        if "serving" in self.answers:
            raise self.answers["serving"]

    def key_id(self, url: str) -> bytes | None:
        return self.machines[url].key.id if url in self.machines else None

    def busy(self, url: str) -> int | None:
        return self.works.pop(0) if self.works else None

    def sleep(self, seconds: float) -> None:
        assert seconds == 1

    def rollout(self, policy: AnyPolicy = NEW, **changed: Any) -> Rollout:
        copy = ("cp", str(self.nginx / rollout.SERVERS), str(self.folder / "active"))
        made = Rollout(
            KeyPolicies(self.folder, self.store, KEY.id, policy),
            self,
            Traffic(PUBLIC, self.nginx, ("test", "-s", str(self.nginx / rollout.REPLICAS)), copy),
            AFTER,
            (BEFORE,),
            ("http://127.0.0.1:9000",),
            DAY,
            60,
            lambda: self.now,
            self.sleep,
        )
        return replace(made, **changed)

    def run(self, **changed: Any) -> list[Step]:
        return list(self.rollout(**changed).steps())


@pytest.fixture
def make(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], World]]:
    """Makes worlds of their own."""
    monkeypatch.setattr(store, "SCRYPT_COST", 16)
    monkeypatch.setattr(os, "fsync", lambda _: None)  # processes end here, and no machine
    count = 0

    def world() -> World:
        nonlocal count
        count += 1
        folder = tmp_path / str(count)
        keys = KeyStore.create(folder, "correct horse")
        keys.add(KEY, Conditions(MODEL, OLD, b"a root"), NOW)
        (folder / "nginx").mkdir()
        return World(folder, keys, {url: machine(url) for url in (BEFORE, *AFTER)})

    return world


@pytest.fixture
def world(make: Callable[[], World]) -> World:
    return make()


def states(steps: list[Step]) -> list[tuple[str, str]]:
    return [(step.name, step.state) for step in steps]


def test_step_by_step(world: World) -> None:
    assert states(world.run()) == [
        ("allow", "done"),
        ("appraise", "done"),
        ("switch", "done"),
        ("drain", "done"),
        ("retire", "waiting"),
    ]
    under_way = Transition.read(world.policy)
    assert under_way is not None
    assert (under_way.old, under_way.new, under_way.until) == (OLD, NEW, (NOW + DAY).replace(microsecond=0))
    assert world.works == []
    old, *new = (world.machines[url].key.id.hex() for url in (BEFORE, *AFTER))
    assert (world.nginx / rollout.SERVERS).read_text().splitlines()[1:] == [
        "server 10.0.0.2:8470;",
        "server 10.0.0.3:443;",
    ]
    assert (world.nginx / rollout.REPLICAS).read_text().splitlines()[1:] == [
        f"{old} 10.0.0.1:8470;",
        f"{new[0]} 10.0.0.2:8470;",
        f"{new[1]} 10.0.0.3:443;",
    ]
    world.now += timedelta(hours=1)
    again = world.run()
    assert states(again)[0] == ("allow", "already")
    assert again[0].facts["until"] == "2026-12-02T12:00:00Z"  # and no later
    assert states(again)[2] == ("switch", "already")
    assert states(again)[4] == ("retire", "waiting")
    world.now += DAY
    assert states(world.run())[4] == ("retire", "done")
    assert world.policy == NEW
    assert [(name, state) for name, state in states(world.run()) if state != "already"] == [
        ("appraise", "done"),
        ("drain", "done"),
    ]
    entries = [line.entry for line in LogReader(world.folder / LOG_NAME)]
    assert [entry.event for entry in entries] == ["changed", "changed"]
    assert [entry.until for entry in entries] == [under_way.until, None]


def effects(monkeypatch: pytest.MonkeyPatch, world: World, cut: int | None) -> list[str]:
    """Counts what the process does to the world or asks of it; it ends before one of them, or right after."""
    seen: list[str] = []

    def counted(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        @functools.wraps(real)
        def call(*given: Any, **options: Any) -> Any:
            for when in ("before", "after"):
                if when == "after":
                    result = real(*given, **options)
                if len(seen) == cut:
                    raise Cut
                seen.append(f"{when} {name}")
            return result

        monkeypatch.setattr(owner, name, call)

    counted(change, "leave_entry")
    counted(change, "AuditLog")
    counted(store, "replace_file")
    counted(rollout, "replace_file")
    counted(rollout, "_run")
    for name in ("verify", "require_serving", "key_id", "busy"):
        counted(world, name)
    return seen


def test_cut_off_anywhere_it_goes_on(make: Callable[[], World]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        whole = make()
        seen = effects(patch, whole, None)
        whole.run()
    assert len(seen) > 40
    for place, name in enumerate(seen):
        world = make()
        with pytest.MonkeyPatch.context() as patch:
            effects(patch, world, place)
            with pytest.raises(Cut):
                world.run()
        assert any(ask_the_same(world.policy, one) for one in (OLD, whole.policy)), name
        assert world.behind in ([BEFORE], list(AFTER)), name
        assert states(world.run())[-1] == ("retire", "waiting"), name
        assert world.policy == whole.policy, name
        assert world.behind == list(AFTER), name
        world.now += 2 * DAY
        assert states(world.run())[-1] == ("retire", "done"), name
        assert world.policy == NEW
        verify(world.folder / LOG_NAME)
        events = [line.entry for line in LogReader(world.folder / LOG_NAME)]
        assert {entry.policy for entry in events} == {entry.policy for entry in events if entry.event == "changed"}


def test_what_does_not_meet_the_policy_gets_no_traffic(world: World) -> None:
    for url in AFTER:
        world.answers = {url: AttestationRefused("Another firmware.", ("mrtd",))}
        with pytest.raises(AttestationRefused):
            world.run()
        assert world.behind == [BEFORE]
        assert list(world.nginx.iterdir()) == []
    world.answers = {"serving": RolloutStopped("It makes no answers.")}
    with pytest.raises(RolloutStopped):
        world.run()
    assert world.behind == [BEFORE]


def test_one_who_meets_the_policy_and_is_not_the_new_version_is_not_it(world: World) -> None:
    """A machine of somebody else's, say, with the same measurement."""
    (world.folder / "active").write_text("10.0.0.2:8470 10.0.0.3")
    world.machines["https://10.0.0.4"] = machine("https://10.0.0.4")
    with pytest.raises(RolloutStopped, match="still"):
        world.run(new=("https://10.0.0.4",), traffic=Traffic(PUBLIC, reload=("true",)))


@pytest.mark.parametrize(("check", "reload"), [("false", "true"), ("true", "false"), ("/none", "true")])
@pytest.mark.parametrize("before", [None, "server 10.0.0.1:8470;"])
def test_where_a_command_fails_the_files_are_as_they_were(
    world: World, check: str, reload: str, before: str | None
) -> None:
    servers = world.nginx / rollout.SERVERS
    if before is not None:
        servers.write_text(before)
    with pytest.raises(RolloutStopped):
        world.run(traffic=Traffic(PUBLIC, world.nginx, (check,), (reload,)))
    assert (servers.read_text() if servers.exists() else None) == before
    assert not (world.nginx / rollout.REPLICAS).exists()


def test_a_balancer_that_says_it_moved_and_did_not_is_found(world: World) -> None:
    with pytest.raises(RolloutStopped, match="still"):
        world.run(traffic=Traffic(PUBLIC, world.nginx, (), ("true",)))


def test_with_no_command_somebody_else_moves_it(world: World) -> None:
    by_hand = Traffic(PUBLIC)
    with pytest.raises(RolloutStopped, match="with the same command"):
        world.run(traffic=by_hand)
    (world.folder / "active").write_text("10.0.0.2:8470 10.0.0.3")
    assert states(world.run(traffic=by_hand))[2] == ("switch", "already")


@pytest.mark.parametrize("kind", [ConnectionLost, GatewayError])
def test_a_balancer_that_is_away_for_a_moment_has_not_moved(world: World, kind: type[ConfideError]) -> None:
    world.answers = {PUBLIC: kind("Away.")}
    real, times = world.verify, [3]

    def seldom(url: str) -> Verified:
        if url == PUBLIC and times[0]:
            times[0] -= 1
            raise kind("Away.")
        return real(url)

    world.verify = seldom  # type: ignore[method-assign]
    assert states(world.run())[2] == ("switch", "done")
    certificate = UntrustedCertificate("Nobody knows who signed it.")
    world.verify = lambda _: (_ for _ in ()).throw(certificate)  # type: ignore[method-assign, assignment]
    with pytest.raises(UntrustedCertificate):
        world.run()


@pytest.mark.parametrize(
    ("works", "seconds", "gone"),
    [([5, 4, 0, 0, 1, 0, 0, 0, 9], 60, []), ([None], 60, ["http://127.0.0.1:9000"]), ([0, 0, 0], 3, [])],
    ids=["busy", "gone", "idle"],
)
def test_it_is_waited_for_the_last_answer(world: World, works: list[int | None], seconds: int, gone: list[str]) -> None:
    world.works = works
    drain = world.run(drain_seconds=seconds)[3]
    assert (drain.state, drain.facts) == ("done", {"gone": gone})
    assert works in ([], [9])


def test_an_old_version_that_never_ends_is_not_called_drained(world: World) -> None:
    world.works = [0, 0, 1] * 100
    with pytest.raises(RolloutStopped, match="do not stop it"):
        world.run()
    assert world.policy != NEW


def test_an_old_version_that_is_not_asked_is_not_called_drained(world: World) -> None:
    assert world.run(old_metrics=())[3].state == "skipped"


# -- the key's policy ------------------------------------------------------------------------------------------------


def allow(world: World, policy: AnyPolicy) -> Step:
    return KeyPolicies(world.folder, world.store, KEY.id, policy).allow(DAY, world.now)


def test_one_rollout_at_a_time(world: World) -> None:
    allow(world, NEW)
    with pytest.raises(RolloutStopped, match="2026-12-02T12:00:00Z"):
        allow(world, NEXT)
    world.now += DAY + timedelta(seconds=1)
    allow(world, NEXT)
    under_way = Transition.read(world.policy)
    assert under_way is not None
    assert (under_way.old, under_way.new) == (NEW, NEXT)  # and nothing of what was before


def test_back_to_the_version_before(world: World) -> None:
    allow(world, NEW)
    assert allow(world, OLD).state == "done"
    under_way = Transition.read(world.policy)
    assert under_way is not None
    assert (under_way.old, under_way.new) == (NEW, OLD)


def test_a_policy_that_somebody_else_changes_is_left_alone(world: World) -> None:
    world.works = [0, 0, 0]
    steps = world.rollout().steps()
    for _ in range(4):
        next(steps)
    world.store.change(KEY.id, NEXT, b"a root")
    with pytest.raises(RolloutStopped, match="somebody else"):
        next(steps)
    assert world.policy == NEXT


def test_a_policy_of_another_kind_changes_nothing(world: World) -> None:
    from confide.attest.policy import Policy

    with pytest.raises(InvalidPolicy):
        world.run(policy=Policy(NEW.requirements))
    assert world.policy == OLD
    assert not (world.folder / LOG_NAME).exists()


def test_the_new_version_has_the_key_s_model(world: World) -> None:
    policies = KeyPolicies(world.folder, world.store, KEY.id, NEW)
    assert Model(MODEL) in policies.new_version.requirements
    named = SimulatedPolicy.all_of(Model(MODEL, allow_upstream="llama"), NoEgress())
    assert replace(policies, new=named).new_version == named


# -- what is written and read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("https://models.example", "models.example:443"),
        ("http://10.0.0.1/", "10.0.0.1:80"),
        ("https://[2001:db8::1]:8470", "[2001:db8::1]:8470"),
    ],
)
def test_addresses_for_nginx(url: str, address: str) -> None:
    assert rollout.server_lines([url]).splitlines()[1] == f"server {address};".encode()
    assert rollout.replica_lines({b"\xab": url}).splitlines()[1] == f"ab {address};".encode()


@pytest.mark.parametrize(
    "url",
    [
        "https://a;include",
        "https://a b",
        "https://a}",
        "https://a/b",
        "https://a?b",
        "https://a#b",
        "https://u@a",
        "https://a:99999",
        "ftp://a",
        "a",
        "",
        "https://",
        "https://$a",
        "https://[::1",
        "https://-a",
        "https://ä",
    ],
)
def test_other_addresses_are_refused(url: str) -> None:
    for make in (lambda: rollout.server_lines([url]), lambda: rollout.replica_lines({b"\xab": url})):
        with pytest.raises(DeployError):
            make()


@pytest.mark.parametrize(
    ("metrics", "busy"),
    [
        (b"# HELP x\nconfide_answers_running 2.0\nconfide_requests_waiting 1.0\n", 3),
        (b"confide_answers_running 0.0\nconfide_requests_waiting 0.0", 0),
        (b"confide_answers_running 0.0", None),
        (b"confide_answers_running 0.0\nconfide_requests_waiting NaN", None),
        (b"confide_answers_running +Inf\nconfide_requests_waiting 0", None),
        (b"confide_answers_running 0.0\nconfide_requests_waiting many", None),
        (b"<html>confide_answers_running 0\nconfide_requests_waiting 0", None),
        (b"", None),
    ],
)
def test_what_metrics_say(metrics: bytes, busy: int | None) -> None:
    if busy is None:
        with pytest.raises(RolloutStopped):
            rollout.busy_of(metrics)
    else:
        assert rollout.busy_of(metrics) == busy
