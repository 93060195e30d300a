"""Who gets a key, who does not, and what the log says of it."""

import errno
import threading
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import msgspec
import pytest
from tests.attest.made_up import StubVerifier, tdx_claims
from tests.enclave.key_release.scene import KEY, MODEL, NOW, Scene, collateral_of, simulated

from confide.attest.claims import RootKind
from confide.attest.collateral import OWN, Collateral
from confide.attest.collateral_lookup import SentCollateral
from confide.attest.configuration import UpstreamUsed
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Evidence
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.policy_toml import policy_digest
from confide.attest.requirements import CollateralValid, Fresh, Model, NotDebug, PolicyVersion, Tdx, any_of
from confide.attest.simulated import SimulatedTee
from confide.attest.statement import Statement
from confide.attest.wire import Attested
from confide.broker import log as log_module
from confide.broker.appraisal import Appraiser
from confide.broker.broker import Broker
from confide.broker.log import LOG_NAME, Entry, LogReader, leave_entry
from confide.broker.store import Conditions
from confide.channel.key_release import ReleaseRequest, wrapping_info
from confide.channel.keys import ChannelKey
from confide.channel.nonces import LIFETIME, Nonces
from confide.errors import (
    AuditLogCorrupted,
    AuditLogUnavailable,
    ChannelRefused,
    CollateralUnavailable,
    KeyRefused,
    NonceRefused,
    ServerBusy,
    UnknownModelKey,
)


def refused(scene: Scene, request: ReleaseRequest) -> tuple[str, ...]:
    """The checks that failed, which the log must name too."""
    with pytest.raises(KeyRefused) as caught:
        scene.release(request)
    entry = scene.logged[-1].entry
    assert entry.event == "refused"
    assert tuple(dict.fromkeys(check.code for check in entry.failed)) == caught.value.checks
    assert all(code in str(caught.value) for code in caught.value.checks)
    return caught.value.checks


def test_a_workload_that_satisfies_the_policy_gets_the_key(scene: Scene) -> None:
    request = scene.request()
    answer = scene.release(request)
    assert scene.open(request, answer) == KEY
    (line,) = scene.logged
    assert (line.entry.event, line.entry.key, line.entry.model) == ("released", KEY.id, MODEL)
    assert line.entry.simulated
    assert line.entry.peer == "192.0.2.1"
    assert line.entry.nonce == request.attested.statement.nonce
    assert line.entry.statement == request.attested.statement.digest().hex()


def test_no_secret_is_in_the_log_or_the_answer(scene: Scene) -> None:
    answer = scene.release(scene.request())
    for text in (scene.broker.log.path.read_bytes(), msgspec.json.encode(answer), repr(scene.broker).encode()):
        assert KEY.raw not in text
        assert KEY.raw.hex().encode() not in text


def test_the_wrapped_key_opens_for_its_request_and_its_workload_only(scene: Scene) -> None:
    request = scene.request()
    wrapped = scene.release(request).wrapped
    nonce = request.attested.statement.nonce
    with pytest.raises(ChannelRefused):
        scene.workload.key.decrypt(wrapped, wrapping_info(KEY.id, "00" * 32))
    with pytest.raises(ChannelRefused):
        scene.workload.key.decrypt(wrapped, wrapping_info("00" * 16, nonce))
    with pytest.raises(ChannelRefused):
        ChannelKey().decrypt(wrapped, wrapping_info(KEY.id, nonce))


def test_a_nonce_is_good_once_and_not_for_long(scene: Scene) -> None:
    request = scene.request()
    scene.release(request)
    for again in (request, scene.request("00" * 32), scene.request("")):
        with pytest.raises(NonceRefused):
            scene.release(again)
    late = scene.request()
    scene.later(LIFETIME.total_seconds())
    with pytest.raises(NonceRefused):
        scene.release(late)
    assert len(scene.logged) == 1  # strangers without a nonce cannot fill the log


def test_a_refusal_uses_the_nonce_up(scene: Scene) -> None:
    request = scene.request(key="0" * 32)
    with pytest.raises(UnknownModelKey):
        scene.release(request)
    assert [check.code for check in scene.logged[-1].entry.failed] == ["unknown-model-key"]
    with pytest.raises(NonceRefused):
        scene.release(ReleaseRequest(KEY.id, request.attested))


def test_nonces_are_bounded_and_random() -> None:
    nonces = Nonces(limit=3)
    given = [nonces.issue(NOW, who) for who in "abc"]
    assert len(set(given)) == 3
    nonces.take(given[0], NOW)
    with pytest.raises(ServerBusy):  # a used one still counts
        nonces.issue(NOW, "d")
    nonces.issue(NOW + LIFETIME, "d")


def test_one_asker_cannot_use_up_the_nonces() -> None:
    nonces = Nonces(limit=20)
    for _ in range(10):
        nonces.issue(NOW, "greedy")
    with pytest.raises(ServerBusy):
        nonces.issue(NOW, "greedy")
    assert nonces.issue(NOW, "another")
    assert nonces.issue(NOW + LIFETIME, "greedy")


def _statement(scene: Scene, change: Callable[[Statement], Statement]) -> ReleaseRequest:
    """Another statement beside genuine evidence for a fresh nonce."""
    request = scene.request()
    return ReleaseRequest(
        KEY.id, msgspec.structs.replace(request.attested, statement=change(request.attested.statement))
    )


def changed(**fields: Any) -> Callable[[Statement], Statement]:
    return lambda statement: msgspec.structs.replace(statement, **fields)


def test_the_channel_key_must_be_the_one_that_was_attested(scene: Scene) -> None:
    thief = {"hpke": ChannelKey().public.raw.hex()}
    assert "nonce" in refused(scene, _statement(scene, changed(channel_keys=thief)))


def test_a_nonce_cannot_be_put_into_old_evidence(scene: Scene) -> None:
    old = scene.request()
    nonce = scene.broker.nonce(scene.now).nonce
    statement = msgspec.structs.replace(old.attested.statement, nonce=nonce)
    assert "nonce" in refused(scene, ReleaseRequest(KEY.id, msgspec.structs.replace(old.attested, statement=statement)))


def test_the_model_must_be_the_key_s(scene: Scene) -> None:
    scene.workload.model_digest = "cd" * 32
    assert refused(scene, scene.request()) == ("model",)
    scene.workload.model_digest = ""
    assert refused(scene, scene.request()) == ("model",)


def test_a_statement_without_a_channel_key(scene: Scene, tee: SimulatedTee) -> None:
    for channel_keys in ({}, {"hpke": "00"}, {"hpke": "no digits"}):
        nonce = scene.broker.nonce(scene.now).nonce
        statement = Statement(nonce, MODEL, channel_keys=channel_keys, configuration=scene.workload.configuration)
        attested = Attested.make(tee.read(statement.digest()), statement, collateral_of(tee))
        assert refused(scene, ReleaseRequest(KEY.id, attested)) == ("channel-key",)


def test_no_key_for_a_workload_whose_answers_another_program_makes(scene: Scene, tee: SimulatedTee) -> None:
    scene.workload.configuration = msgspec.structs.replace(
        scene.workload.configuration, upstream=UpstreamUsed("llama", "http://127.0.0.1:8000/v1")
    )
    assert refused(scene, scene.request()) == ("upstream",)
    scene.bind(simulated(tee, SimulatedPolicy.all_of(Model(MODEL, allow_upstream="other"))))
    assert refused(scene, scene.request()) == ("upstream",)
    scene.bind(simulated(tee, SimulatedPolicy.all_of(Model("11" * 32, allow_upstream="llama"))))
    assert refused(scene, scene.request()) == ("model", "upstream")
    scene.bind(simulated(tee, SimulatedPolicy.all_of(Model(MODEL, allow_upstream="llama"))))
    request = scene.request()
    assert scene.open(request, scene.release(request)) == KEY


def test_an_empty_policy_still_asks_for_the_binding(scene: Scene, tee: SimulatedTee) -> None:
    scene.bind(simulated(tee, SimulatedPolicy.all_of()))
    assert refused(scene, _statement(scene, changed(policy_version="x"))) == ("model", "nonce")
    request = scene.request()
    assert scene.open(request, scene.release(request)) == KEY


def test_a_nonce_in_the_policy_does_not_stand_in_for_ours(scene: Scene, tee: SimulatedTee) -> None:
    scene.bind(simulated(tee, SimulatedPolicy.all_of(any_of(Fresh("11" * 32), Tdx()))))
    assert "nonce" in refused(scene, _statement(scene, changed(model_digest="")))


def test_checks_of_the_policy(scene: Scene, tee: SimulatedTee) -> None:
    scene.bind(simulated(tee, SimulatedPolicy.all_of(Tdx(mrtd="00" * 48), NotDebug())))
    assert refused(scene, scene.request()) == ("mrtd",)
    (check,) = scene.logged[-1].entry.failed
    assert check.expected == "00" * 48
    assert check.seen != check.expected


def test_damaged_evidence(scene: Scene) -> None:
    request = scene.request()
    evidence = request.attested.evidence
    damaged = msgspec.structs.replace(evidence, raw=evidence.raw[:200] + b"\xff" + evidence.raw[201:])
    assert refused(scene, ReleaseRequest(KEY.id, msgspec.structs.replace(request.attested, evidence=damaged))) == (
        "invalid-signature",
    )


def test_another_simulated_machine(scene: Scene, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = SimulatedTee.create(tmp_path_factory.mktemp("other") / "tee")
    scene.workload.reader, scene.workload.collateral = other, partial(collateral_of, other)
    assert refused(scene, scene.request()) == ("unknown-root",)


# -- production --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(), Policy.all_of(), Policy.all_of(any_of(Tdx()))])
def test_a_key_for_production_never_goes_to_simulated_evidence(scene: Scene, policy: Policy) -> None:
    scene.bind(Conditions(MODEL, policy))
    assert refused(scene, scene.request()) == ("unknown-root",)
    # Even where a verifier is mistaken about its roots, the policy's type asks for a vendor's.
    request = scene.request()
    claims = tdx_claims(root=RootKind.SIMULATED, report_data=request.attested.statement.digest(), valid_until=None)
    mistaken = replace(scene.broker, appraiser=Appraiser(StubVerifier(claims)))
    with pytest.raises(KeyRefused) as caught:
        mistaken.release(request, NOW)
    assert "root" in caught.value.checks


def _genuine(scene: Scene, **options: Any) -> tuple[Broker, ReleaseRequest]:
    """A broker whose verifier takes the evidence for that of real hardware."""
    request = scene.request()
    claims = tdx_claims(report_data=request.attested.statement.digest(), valid_until=None)
    return replace(
        scene.broker, appraiser=Appraiser(StubVerifier(claims), **{"source": OwnCollateral(), **options})
    ), request


class OwnCollateral(SentCollateral):
    """A broker that chose the collateral itself."""

    def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
        return replace(sent, provenance=OWN)


def test_a_key_for_production_goes_to_real_hardware(scene: Scene) -> None:
    scene.bind(Conditions(MODEL, Policy()))
    broker, request = _genuine(scene)
    assert scene.open(request, broker.release(request, NOW)) == KEY
    assert not scene.logged[-1].entry.simulated


def test_the_broker_s_own_demands_come_on_top(scene: Scene) -> None:
    scene.bind(Conditions(MODEL, Policy()))
    broker, request = _genuine(scene, demands=Policy.all_of(Tdx(mrtd="00" * 48)))
    with pytest.raises(KeyRefused) as caught:
        broker.release(request, NOW)
    assert caught.value.checks == ("mrtd",)
    broker, request = _genuine(scene, demands=Policy.all_of(CollateralValid()))
    assert scene.open(request, broker.release(request, NOW)) == KEY
    for demands in (SimulatedPolicy(), SimulatedPolicy.all_of()):
        broker, request = _genuine(scene, demands=demands)
        with pytest.raises(KeyRefused) as caught:
            broker.release(request, NOW)
        assert caught.value.checks == ("root",)


def test_a_broker_for_production_gives_nothing_to_simulated_machines(scene: Scene) -> None:
    scene.broker = replace(scene.broker, appraiser=Appraiser(demands=Policy.all_of()))
    assert refused(scene, scene.request()) == ("root",)


def test_the_broker_chooses_the_collateral_whatever_was_sent(scene: Scene, tee: SimulatedTee) -> None:
    asked: list[Evidence] = []

    class Vendor(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            asked.append(evidence)
            return collateral_of(tee)

    scene.bind(Conditions(MODEL, Policy()))
    for collateral in (Collateral, lambda: Collateral({"dcap": b"the host's"})):
        scene.workload.collateral = collateral
        broker, request = _genuine(scene, source=Vendor())
        broker.release(request, NOW)
        assert asked.pop() == request.attested.evidence.thaw()


def test_the_hosts_collateral_is_not_enough(scene: Scene) -> None:
    """It may be an older evaluation that is still valid; only a policy that names the number takes it."""
    scene.bind(Conditions(MODEL, Policy()))
    broker, request = _genuine(scene, source=SentCollateral())
    with pytest.raises(KeyRefused) as caught:
        broker.release(request, NOW)
    assert caught.value.checks == ("tcb-evaluation",)
    scene.bind(Conditions(MODEL, Policy(exceptions=Exceptions(min_tcb_evaluation=1))))
    broker, request = _genuine(scene, source=SentCollateral())
    broker.release(request, NOW)
    assert "the workload chose it" in scene.logged[-1].entry.collateral


def test_collateral_that_cannot_be_had_is_a_refusal(scene: Scene) -> None:
    class Asleep(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            raise CollateralUnavailable("The vendor is asleep; try again later.")

    scene.bind(Conditions(MODEL, Policy()))
    scene.workload.collateral = Collateral
    scene.broker = replace(scene.broker, appraiser=Appraiser(source=Asleep()))
    assert refused(scene, scene.request()) == ("collateral-unavailable",)


def test_simulated_keys_never_ask_a_vendor(scene: Scene) -> None:
    class Nosy(SentCollateral):
        def find(self, evidence: Evidence, sent: Collateral) -> Collateral:
            pytest.fail("asked a vendor about a simulated machine")

    scene.workload.collateral = Collateral
    scene.broker = replace(scene.broker, appraiser=Appraiser(source=Nosy()))
    assert refused(scene, scene.request()) == ("wrong-collateral",)


# -- what must not go wrong --------------------------------------------------------------------------------------


def test_without_a_line_in_the_log_no_key_leaves(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(file: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(log_module.os, "fsync", full)
    with pytest.raises(AuditLogUnavailable):
        scene.release(scene.request())
    assert scene.logged == []


def test_removing_a_key_counts_at_once(scene: Scene) -> None:
    request = scene.request()
    scene.store.remove(KEY.id)
    with pytest.raises(UnknownModelKey):
        scene.release(request)


def test_the_log_tells_policies_apart(scene: Scene, tee: SimulatedTee) -> None:
    scene.release(scene.request())
    scene.bind(simulated(tee, SimulatedPolicy.all_of(Tdx())))
    scene.release(scene.request())
    before, after = (line.entry.policy for line in scene.logged)
    assert before != after


def test_long_lists_in_a_policy_do_not_fill_the_log(scene: Scene, tee: SimulatedTee) -> None:
    many = any_of(*(Tdx(mrtd=f"{number:096x}") for number in range(200)))
    scene.bind(simulated(tee, SimulatedPolicy.all_of(many)))
    assert refused(scene, scene.request()) == ("any-of",)
    assert len(scene.broker.log.path.read_bytes()) < 4000


def test_time_is_the_broker_s(scene: Scene) -> None:
    scene.later(400 * 86400)
    assert refused(scene, scene.request()) == ("outside-validity",)


def test_a_changed_policy_counts_at_once_and_is_in_the_log_before_what_it_decides(scene: Scene) -> None:
    before = scene.store.get(KEY.id).conditions
    scene.open(request := scene.request(), scene.release(request))
    stricter = SimulatedPolicy.all_of(PolicyVersion("7"))
    changed = Entry(NOW, "changed", key=KEY.id, policy=policy_digest(stricter), replaced=policy_digest(before.policy))
    leave_entry(scene.folder, changed)
    scene.store.change(KEY.id, stricter, before.simulated_root)
    with pytest.raises(KeyRefused):
        scene.release(scene.request())
    entries = [line.entry for line in LogReader(scene.folder / LOG_NAME)]
    assert [entry.event for entry in entries] == ["released", "changed", "refused"]
    assert entries[1] == changed
    assert (entries[0].policy, entries[2].policy) == (changed.replaced, changed.policy)
    scene.broker.log.take_left(NOW)
    assert len(list(LogReader(scene.folder / LOG_NAME))) == 3  # once
    kept = scene.store.get(KEY.id)
    assert (kept.key, kept.conditions.model_digest, kept.conditions.policy) == (KEY, before.model_digest, stricter)


@pytest.mark.parametrize("content", [b"", b"{}", b"[" * 100_000])
def test_what_is_left_and_no_entry_stops_releases(scene: Scene, content: bytes) -> None:
    (scene.folder / "entry-1.json").write_bytes(content)
    with pytest.raises(AuditLogCorrupted, match="no entry"):
        scene.release(scene.request())


def test_at_every_moment_of_a_change_the_key_has_a_policy(scene: Scene) -> None:
    """Readers beside a writer: the key is never missing, and its policy is one of the two."""
    conditions = scene.store.get(KEY.id).conditions
    policies = [conditions.policy, SimulatedPolicy.all_of(PolicyVersion("7"))]
    seen, done = set(), threading.Event()

    def read() -> None:
        while not done.is_set():
            seen.add(policies.index(scene.store.get(KEY.id).conditions.policy))

    reader = threading.Thread(target=read)
    reader.start()
    try:
        for number in range(100):
            scene.store.change(KEY.id, policies[number % 2], conditions.simulated_root)
    finally:
        done.set()
        reader.join()
    assert seen <= {0, 1}
    assert seen
