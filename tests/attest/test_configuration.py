"""What a workload says of what runs, read strictly, and what policies make of it."""

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec
import pytest
from tests.attest.made_up import CONFIGURATION, NOW, tdx_claims

from confide.attest.configuration import (
    Configuration,
    CorpusServed,
    Egress,
    EngineUsed,
    GraphJoined,
    SamplingDefaults,
    SelfTestRun,
    UpstreamUsed,
    WeightsHeld,
)
from confide.attest.policy import Policy, appraise
from confide.attest.policy_toml import policy_from_toml, to_toml
from confide.attest.requirements import (
    AnyRequirement,
    ConfideVersion,
    ContextAtLeast,
    Corpus,
    Engine,
    Environment,
    Graph,
    Model,
    NoAdapters,
    NoEgress,
    NotDebug,
    NoUpstream,
    Options,
    Quantization,
    SelfTest,
    Template,
    Weights,
)
from confide.attest.result import AttestationResult
from confide.attest.statement import MAX_STATEMENT_BYTES, Statement
from confide.errors import InvalidPolicy, MalformedEvidence

MODEL = "cd" * 32
FULL = msgspec.structs.replace(
    CONFIGURATION,
    engine=EngineUsed("transformers", "5.23.0, torch 2.13.0+cpu", {"threads": "2"}),
    weights=WeightsHeld("11" * 32, "f32", "f32"),
    context=4096,
    template="22" * 32,
    sampling=SamplingDefaults(1.0, 1.0, 0, 8192),
    egress=Egress.NONE,
    self_test=SelfTestRun("passed", "2026-02-19T11:30:00Z", "33" * 32, 40),
    options={"ra-tls": "true"},
    environment={"OMP_NUM_THREADS": "1"},
    corpus=CorpusServed("44" * 32, 3, "55" * 32, "66" * 32),
    graph=GraphJoined("77" * 32, 3, "88" * 32, "model"),
)
RUNS_ELSEWHERE = UpstreamUsed("llama", "http://127.0.0.1:8000/v1")


def verdict(requirement: AnyRequirement, configuration: Configuration | None, at: datetime = NOW) -> AttestationResult:
    statement = Statement("aa" * 32, MODEL, configuration=configuration)
    machine = tdx_claims(report_data=statement.digest())
    return appraise(machine, Policy.all_of(requirement), at, statement=statement)


def failures(requirement: AnyRequirement, configuration: Configuration | None, at: datetime = NOW) -> list[str]:
    return [check.code for check in verdict(requirement, configuration, at).failures]


def changed(**fields: Any) -> Configuration:
    return msgspec.structs.replace(FULL, **fields)


# -- the attack: another program answers in a sealed model's name -------------------------------------------------


def test_a_policy_that_names_a_model_refuses_a_program_that_answers_in_its_name() -> None:
    assert not failures(Model(MODEL), FULL)
    assert failures(Model(MODEL), changed(upstream=RUNS_ELSEWHERE)) == ["upstream"]
    assert (
        "llama at http://127.0.0.1:8000/v1" in verdict(Model(MODEL), changed(upstream=RUNS_ELSEWHERE)).failures[0].seen
    )


def test_an_upstream_is_allowed_by_its_name_alone() -> None:
    elsewhere = changed(upstream=RUNS_ELSEWHERE)
    assert not failures(Model(MODEL, allow_upstream="llama"), elsewhere)
    assert not failures(Model(MODEL, allow_upstream="llama"), FULL)
    assert failures(Model(MODEL, allow_upstream="llam"), elsewhere) == ["upstream"]
    assert failures(Model(MODEL, allow_upstream="http://127.0.0.1:8000/v1"), elsewhere) == ["upstream"]
    assert failures(Model("ef" * 32, allow_upstream="llama"), elsewhere) == ["model"]


def test_a_workload_that_does_not_say_what_runs_runs_no_model() -> None:
    assert failures(Model(MODEL), None) == ["upstream"]
    assert failures(Model(MODEL, allow_upstream="llama"), None) == ["upstream"]


def test_an_upstream_that_is_hidden_from_the_statement_breaks_the_signature() -> None:
    signed = Statement("aa" * 32, MODEL, configuration=changed(upstream=RUNS_ELSEWHERE))
    shown = msgspec.structs.replace(signed, configuration=FULL)
    machine = tdx_claims(report_data=signed.digest())
    result = appraise(machine, Policy.all_of(Model(MODEL), NoUpstream()), NOW, statement=shown)
    assert [check.code for check in result.failures] == ["model", "upstream"]


def test_toml_spells_it_as_documented() -> None:
    text = f'confide-policy = 1\nkind = "production"\n[[all]]\nrequire = "model"\nsha256 = "{MODEL}"\n'
    assert Model(MODEL) in policy_from_toml(text).requirements
    assert Model(MODEL, allow_upstream="llama") in policy_from_toml(text + 'allow-upstream = "llama"\n').requirements


# -- every requirement ---------------------------------------------------------------------------------------------

HELD: list[tuple[AnyRequirement, dict[str, Any]]] = [
    (NoUpstream(), {"upstream": RUNS_ELSEWHERE}),
    (NoEgress(), {"egress": Egress.OPEN}),
    (NoEgress(), {"egress": Egress.UPSTREAM}),
    (NoEgress(), {"egress": Egress.KEY_SERVICE_AND_UPSTREAM}),
    (NoEgress(), {"egress": Egress.KEY_SERVICE_AND_NEIGHBOURS}),
    (NoEgress(allow_neighbours=True), {"egress": Egress.UPSTREAM_AND_NEIGHBOURS}),
    (NoEgress(allow_neighbours=True), {"egress": Egress.NEIGHBOURS_AND_LEDGER}),
    (NoEgress(), {"egress": Egress.LEDGER}),
    (NoEgress(allow_ledger=True), {"egress": Egress.NEIGHBOURS_AND_LEDGER}),
    (NoEgress(allow_ledger=True), {"egress": Egress.UPSTREAM_AND_LEDGER}),
    (Engine(("transformers", "llama.cpp")), {"engine": EngineUsed("upstream", "1", {})}),
    (Engine(("transformers",)), {"engine": None}),
    (Engine(("transformers",), ("5.23.0, torch 2.13.0+cpu",)), {"engine": EngineUsed("transformers", "5", {})}),
    (Weights(("11" * 32, "12" * 32)), {"weights": WeightsHeld("13" * 32, "f32", "f32")}),
    (Weights(("11" * 32,)), {"weights": None}),
    (Quantization(("f32", "f16")), {"weights": WeightsHeld("11" * 32, "q4_0", "q4_0")}),
    (Quantization(("f32",)), {"weights": None}),
    (ContextAtLeast(4096), {"context": 4095}),
    (Corpus("44" * 32, "66" * 32), {"corpus": CorpusServed("45" * 32, 3, "55" * 32, "66" * 32)}),
    (Corpus("44" * 32, "66" * 32), {"corpus": CorpusServed("44" * 32, 3, "55" * 32, "67" * 32)}),
    (Corpus("44" * 32, "66" * 32, 3), {"corpus": CorpusServed("44" * 32, 2, "55" * 32, "66" * 32)}),
    (Graph("77" * 32, "model"), {"graph": GraphJoined("78" * 32, 3, "88" * 32, "model")}),
    (Graph("77" * 32, "model"), {"graph": GraphJoined("77" * 32, 3, "88" * 32, "guard")}),
    (Graph("77" * 32, "model", 3), {"graph": GraphJoined("77" * 32, 2, "88" * 32, "model")}),
    (Graph("77" * 32, "model", 3, "88" * 32), {"graph": GraphJoined("77" * 32, 3, "89" * 32, "model")}),
    (NoAdapters(), {"adapters": ("other",)}),
    (Template(("22" * 32,)), {"template": "23" * 32}),
    (Template(("22" * 32,)), {"template": ""}),
    (ConfideVersion(versions=("0.1.0",)), {"confide": msgspec.structs.replace(FULL.confide, version="0.0.9")}),
    (ConfideVersion(sha256=("ee" * 32,)), {"confide": msgspec.structs.replace(FULL.confide, digest="ef" * 32)}),
    (SelfTest(), {"self_test": SelfTestRun("not-run")}),
    (SelfTest(), {"self_test": SelfTestRun("failed", "2026-02-19T11:30:00Z", "33" * 32, 40)}),
    (SelfTest(), {"self_test": SelfTestRun("passed", "2026-02-19T09:30:00Z", "33" * 32, 40)}),
    (SelfTest(), {"self_test": SelfTestRun("passed", "2026-02-19T12:30:00Z", "33" * 32, 40)}),
    (SelfTest(), {"self_test": SelfTestRun("passed", "2026-99-99T99:99:99Z", "33" * 32, 40)}),
    (SelfTest(), {"self_test": SelfTestRun("passed", "", "33" * 32, 40)}),
    (SelfTest(), {"self_test": SelfTestRun("passed", "2026-02-19T11:30:00Z", "33" * 32, 0)}),
    (Options({"ra-tls": "true"}), {"options": {"ra-tls": "true", "insecure-skip-self-test": "true"}}),
    (Options({"ra-tls": "true"}), {"options": {"ra-tls": "false"}}),
    (Environment({"OMP_NUM_THREADS": "1"}), {"environment": {"OMP_NUM_THREADS": "1", "LD_PRELOAD": "/evil.so"}}),
    (Environment({"OMP_NUM_THREADS": "1"}), {"environment": {"OMP_NUM_THREADS": "2"}}),
]


@pytest.mark.parametrize(("requirement", "change"), HELD)
def test_a_requirement_holds_what_runs_against_it(requirement: AnyRequirement, change: dict[str, Any]) -> None:
    assert not failures(requirement, FULL)
    assert len(failures(requirement, changed(**change))) == 1
    assert failures(requirement, None)
    unsigned = appraise(tdx_claims(), Policy.all_of(requirement), NOW, statement=Statement("a", configuration=FULL))
    assert unsigned.failures
    assert appraise(tdx_claims(), Policy.all_of(requirement), NOW).failures


@pytest.mark.parametrize("requirement", dict.fromkeys(repr(one) for one, _ in HELD))
def test_toml_and_back(requirement: str) -> None:
    policy = Policy.all_of(next(one for one, _ in HELD if repr(one) == requirement), NotDebug())
    assert policy_from_toml(to_toml(policy)) == policy


def test_fewer_options_than_allowed_will_do() -> None:
    assert not failures(Options({"ra-tls": "true"}), changed(options={}))
    assert not failures(Environment({"OMP_NUM_THREADS": "1"}), changed(environment={}))


def test_a_workload_without_a_corpus_serves_none_and_does_not_mention_it() -> None:
    without = changed(corpus=msgspec.UNSET)
    assert failures(Corpus("44" * 32, "66" * 32), without) == ["corpus", "corpus-owner", "corpus-head"]
    assert b"corpus" not in Statement("aa", configuration=without).canonical()
    with pytest.raises(MalformedEvidence):
        Statement.decode(Statement("aa", configuration=FULL).canonical().replace(b'"corpus":{', b'"corpus":null,"x":{'))


def test_a_workload_of_no_graph_does_not_mention_one() -> None:
    without = changed(graph=msgspec.UNSET)
    assert failures(Graph("77" * 32, "model"), without) == ["graph", "graph-service", "graph-version"]
    assert b"graph" not in Statement("aa", configuration=without).canonical()


def test_no_outgoing_connection_but_to_the_key_service() -> None:
    assert not failures(NoEgress(), changed(egress=Egress.KEY_SERVICE))
    for egress in (Egress.NONE, Egress.KEY_SERVICE, Egress.NEIGHBOURS, Egress.KEY_SERVICE_AND_NEIGHBOURS):
        assert not failures(NoEgress(allow_neighbours=True), changed(egress=egress))
    for egress in (Egress.NONE, Egress.KEY_SERVICE, Egress.LEDGER, Egress.KEY_SERVICE_AND_LEDGER):
        assert not failures(NoEgress(allow_ledger=True), changed(egress=egress))
    both = NoEgress(allow_neighbours=True, allow_ledger=True)
    closed = [egress for egress in Egress if egress is not Egress.OPEN and "upstream" not in egress]
    assert len(closed) == 8
    assert [egress for egress in Egress if not failures(both, changed(egress=egress))] == closed


@pytest.mark.parametrize(
    "make",
    [
        lambda: Engine(()),
        lambda: Graph("77", "model"),
        lambda: Graph("77" * 32, "model", 0),
        lambda: Graph("77" * 32, "model", digest="88"),
        lambda: Engine(("",)),
        lambda: Weights(()),
        lambda: Weights(("11",)),
        lambda: Weights(("AA" * 32,)),
        lambda: Quantization(()),
        lambda: ContextAtLeast(0),
        lambda: Corpus("44", "66" * 32),
        lambda: Corpus("44" * 32, "GG" * 32),
        lambda: Corpus("44" * 32, "66" * 32, 0),
        lambda: Template(("",)),
        ConfideVersion,
        lambda: ConfideVersion(sha256=("0",)),
        lambda: SelfTest(""),
        lambda: SelfTest("0h"),
        lambda: SelfTest("soon"),
    ],
)
def test_what_nothing_could_satisfy_is_no_policy(make: Callable[[], AnyRequirement]) -> None:
    with pytest.raises(InvalidPolicy):
        make()


def test_a_workloads_words_are_printed_printable() -> None:
    seen = verdict(Options({}), changed(options={"a": "\x1b[2J" + "b" * 1000})).failures[0].seen
    assert seen.isprintable()
    assert len(seen) < 400


# -- the statement's reader ----------------------------------------------------------------------------------------


def test_what_is_written_is_read_and_has_one_canonical_form() -> None:
    statement = Statement("aa" * 32, MODEL, "3", {"hpke": "cc"}, FULL)
    for form in (msgspec.json.encode(statement), statement.canonical(), msgspec.json.format(statement.canonical())):
        assert Statement.decode(form) == statement
        assert Statement.decode(form).digest() == statement.digest()


def test_the_digest_covers_every_field_of_the_configuration() -> None:
    digests = {Statement("aa", configuration=FULL).digest(), Statement("aa").digest()}
    changes = [change for _, change in HELD] + [{"sampling": SamplingDefaults(0.5, 1.0, 0, 8192)}, {"sampling": None}]
    for change in changes:
        digests.add(Statement("aa", configuration=changed(**change)).digest())
    distinct = {repr(changed(**change)) for change in changes}
    assert len(digests) == len(distinct) + 2
    assert {name for change in changes for name in change} == set(Configuration.__struct_fields__)


def test_a_statement_without_a_configuration_keeps_its_digest() -> None:
    canonical = b'{"channel_keys":{"hpke":"cc"},"model_digest":"bb","nonce":"aa","policy_version":"3"}'
    assert Statement("aa", "bb", "3", {"hpke": "cc"}).canonical() == canonical


GOOD = msgspec.json.encode(Statement("aa", configuration=FULL))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[]",
        b"{}",
        b'{"nonce": 1}',
        b'{"nonce": "aa", "extra": 1}',
        b'{"nonce": "\\ud800"}',
        b'{"nonce": "' + b"a" * 300 + b'"}',
        b'{"nonce": "aa", "channel_keys": {' + b",".join(b'"%d": ""' % i for i in range(20)) + b"}}",
        GOOD.replace(b'"egress":"none"', b'"egress":"closed"'),
        GOOD.replace(b'"egress":"none"', b'"egress":"none","extra":1'),
        GOOD.replace(b'"context":4096', b'"context":-1'),
        GOOD.replace(b'"context":4096', b'"context":' + b"9" * 5000),
        GOOD.replace(b'"context":4096', b'"context":9007199254740993'),
        GOOD.replace(b'"temperature":1.0', b'"temperature":NaN'),
        GOOD.replace(b'"temperature":1.0', b'"temperature":1e999'),
        GOOD.replace(b"2026-02-19T11:30:00Z", b"yesterday"),
        GOOD.replace(b'"OMP_NUM_THREADS":"1"', b'"":"1"'),
        b'{"nonce": ' + b"[" * 100_000,
        b" " * (MAX_STATEMENT_BYTES + 1),
    ],
)
def test_a_statement_that_is_none(data: bytes) -> None:
    assert data != GOOD
    with pytest.raises(MalformedEvidence):
        Statement.decode(data)
