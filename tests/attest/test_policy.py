"""What policies accept, what they refuse, and how they say so."""

import hashlib
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from hashlib import sha256
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.attest.made_up import CONFIGURATION, MRTD, NOW, tdx_claims

from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Family
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy, appraise
from confide.attest.policy_toml import policy_digest, policy_from_toml, simulated_policy_from_toml, to_toml
from confide.attest.requirements import (
    AllOf,
    AnyOf,
    AnyRequirement,
    ChipIdIn,
    FmspcIn,
    Fresh,
    Model,
    NoAdvisory,
    NotAfter,
    NotDebug,
    Nvidia,
    PolicyVersion,
    PpidIn,
    ProductionRoot,
    ReportData,
    Sgx,
    Snp,
    SnpTcb,
    TcbAtLeast,
    Tdx,
    Tpm,
    VerifierService,
    all_of,
    any_of,
)
from confide.attest.statement import Statement
from confide.errors import InvalidPolicy, InvalidSignature

T = TypeVar("T")


def failures(claims: Claims, *requirements: AnyRequirement, statement: Statement | None = None) -> list[str]:
    """The codes of the failed checks."""
    result = appraise(claims, Policy.all_of(*requirements), NOW, statement=statement)
    assert result.trusted == (not result.failures)
    return [check.code for check in result.failures]


# -- roots -------------------------------------------------------------------------------------------------------


def test_the_default_policy_trusts_a_good_machine() -> None:
    assert appraise(tdx_claims(), Policy(), NOW).trusted


@pytest.mark.parametrize("requirements", [(), (ProductionRoot(),), (any_of(Tdx(), Snp()),)])
def test_no_policy_takes_a_simulated_root(requirements: tuple[AnyRequirement, ...]) -> None:
    simulated = tdx_claims(root=RootKind.SIMULATED)
    result = appraise(simulated, Policy.all_of(*requirements), NOW)
    assert not result.trusted
    assert result.simulated
    assert "root" in [check.code for check in result.failures]


def test_one_simulated_member_is_enough_to_refuse() -> None:
    assert failures(tdx_claims(members=(tdx_claims(root=RootKind.SIMULATED),))) == ["root"]


def test_a_simulated_policy_takes_nothing_else() -> None:
    simulated = tdx_claims(root=RootKind.SIMULATED)
    assert appraise(simulated, SimulatedPolicy(), NOW).trusted
    assert not appraise(tdx_claims(), SimulatedPolicy(), NOW).trusted
    assert not appraise(replace(simulated, members=(tdx_claims(),)), SimulatedPolicy(), NOW).trusted
    assert "SIMULATED" in str(SimulatedPolicy())


def test_the_kinds_of_policy_are_not_mixed_up_in_files() -> None:
    with pytest.raises(InvalidPolicy, match="simulated"):
        policy_from_toml(to_toml(SimulatedPolicy()))
    with pytest.raises(InvalidPolicy, match="real hardware"):
        simulated_policy_from_toml(to_toml(Policy()))


# -- requirements ------------------------------------------------------------------------------------------------


def test_evidence_that_could_not_be_verified_is_one_failed_check() -> None:
    result = appraise(InvalidSignature("No."), Policy(), NOW, family=Family.SNP)
    assert not result.trusted
    assert [(check.code, check.seen) for check in result.checks] == [("invalid-signature", "No.")]
    assert result.family is Family.SNP


def test_tdx_measurements() -> None:
    good = Tdx(mrtd=MRTD.hex(), rtmrs=("", (b"\1" * 48).hex()))
    assert not failures(tdx_claims(), good)
    assert failures(tdx_claims(), Tdx(mrtd="00" * 48)) == ["mrtd"]
    assert failures(tdx_claims(), Tdx(rtmrs=("ff" * 48,))) == ["rtmr0"]
    assert failures(tdx_claims(measurements={}), good) == ["mrtd", "rtmr1"]
    assert failures(tdx_claims(family=Family.SGX), Tdx()) == ["family"]
    result = appraise(tdx_claims(), Policy.all_of(Tdx(mrtd="00" * 48)), NOW)
    assert (result.failures[0].expected, result.failures[0].seen) == ("00" * 48, MRTD.hex())


def test_sgx_measurements() -> None:
    measurements = {"mrenclave": b"e" * 32, "mrsigner": b"s" * 32, "isvsvn": (258).to_bytes(2, "little")}
    claims = tdx_claims(family=Family.SGX, measurements=measurements)
    signer = (b"s" * 32).hex()
    assert not failures(claims, Sgx(mrsigner=signer, min_isvsvn=258))
    assert failures(claims, Sgx(mrsigner=signer, min_isvsvn=259)) == ["isvsvn"]
    assert failures(replace(claims, measurements={}), Sgx(mrsigner=signer, min_isvsvn=1)) == ["mrsigner", "isvsvn"]


def test_snp_measurements() -> None:
    measurements = {"measurement": b"m" * 48, "host_data": b"h" * 32}
    claims = tdx_claims(
        family=Family.SNP,
        measurements=measurements,
        identity={"chip_id": b"c" * 64},
        versions={"snp": 8, "microcode": 209},
    )
    good = Snp(measurement=(b"m" * 48).hex(), host_data=(b"h" * 32).hex(), min_tcb=SnpTcb(snp=8, microcode=209))
    assert not failures(claims, good, ChipIdIn((("63" * 64),)))
    assert failures(claims, Snp(min_tcb=SnpTcb(snp=9, bootloader=1))) == ["snp-tcb-bootloader", "snp-tcb-snp"]
    assert failures(claims, ChipIdIn(("00" * 64,))) == ["chip-id"]


def test_tpm_and_gpu_as_members() -> None:
    tpm = tdx_claims(family=Family.TPM, measurements={"pcr7": b"p" * 32})
    gpus = [
        tdx_claims(family=Family.NVIDIA, identity={"driver_version": b"535.1", "vbios_version": v})
        for v in (b"96.1", b"96.2")
    ]
    claims = tdx_claims(members=(tpm, *gpus))
    assert not failures(claims, Tpm(pcrs={"7": "70" * 32}), Nvidia(drivers=("535.1",), vbioses=("96.1", "96.2")))
    assert failures(claims, Nvidia(vbioses=("96.1",))) == ["nvidia-vbios"]  # every GPU, not just one
    assert failures(claims, Tpm(pcrs={"8": "70" * 32})) == ["pcr8"]


def test_a_composite_speaks_with_its_machine_and_only_processors_have_levels() -> None:
    gpu = tdx_claims(family=Family.NVIDIA, tcb_status=TcbStatus.UNKNOWN, report_data=b"g" * 32)
    machine = tdx_claims(report_data=Statement(nonce="aa" * 32).digest())
    claims = tdx_claims(family=Family.COMPOSITE, tcb_status=TcbStatus.UNKNOWN, members=(machine, gpu))
    assert not failures(claims, Fresh("aa" * 32), statement=Statement(nonce="aa" * 32))
    assert failures(gpu) == ["tcb-status"]


def test_debug_anywhere_is_refused() -> None:
    assert failures(tdx_claims(debug=True)) == ["debug"]
    assert failures(tdx_claims(members=(tdx_claims(debug=True),))) == ["debug"]


@pytest.mark.parametrize(
    ("status", "exceptions", "passes"),
    [
        (TcbStatus.UP_TO_DATE, {}, True),
        (TcbStatus.SW_HARDENING_NEEDED, {}, False),
        (TcbStatus.SW_HARDENING_NEEDED, {"grace": "365d"}, False),
        (TcbStatus.SW_HARDENING_NEEDED, {"allow_tcb": (TcbStatus.SW_HARDENING_NEEDED,)}, True),
        (TcbStatus.CONFIGURATION_NEEDED, {"allow_tcb": (TcbStatus.SW_HARDENING_NEEDED,)}, False),
        (TcbStatus.SW_HARDENING_NEEDED, {"allow_tcb": (TcbStatus.OUT_OF_DATE,)}, False),
        (TcbStatus.OUT_OF_DATE, {}, False),
        (TcbStatus.OUT_OF_DATE, {"grace": "18d"}, False),
        (TcbStatus.OUT_OF_DATE, {"grace": "19d"}, True),
        (TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED, {"grace": "30d"}, False),
        (
            TcbStatus.OUT_OF_DATE_CONFIGURATION_NEEDED,
            {"grace": "30d", "allow_tcb": (TcbStatus.CONFIGURATION_NEEDED,)},
            True,
        ),
        (TcbStatus.REVOKED, {"grace": "365d", "allow_tcb": (TcbStatus.UNKNOWN,)}, False),
        (TcbStatus.UNKNOWN, {"grace": "365d", "allow_tcb": (TcbStatus.OUT_OF_DATE,)}, False),
        (TcbStatus.UNKNOWN, {"allow_tcb": (TcbStatus.UNKNOWN,)}, True),
    ],
)
def test_tcb(status: TcbStatus, exceptions: dict[str, Any], passes: bool) -> None:
    """The level is far older than its replacement, which came 18 and a half days before."""
    dates = {"tcb_date": NOW - timedelta(days=900), "tcb_superseded": NOW - timedelta(days=18, hours=12)}
    policy = Policy(exceptions=Exceptions(**exceptions))
    result = appraise(tdx_claims(tcb_status=status, **dates), policy, NOW)
    assert result.trusted is passes
    assert [check.code for check in result.failures] == ([] if passes else ["tcb-status"])
    undated = appraise(tdx_claims(tcb_status=status, tcb_date=NOW, tcb_superseded=None), policy, NOW)
    assert undated.trusted is (passes and not status.startswith("OutOfDate"))


def test_expired_collateral_advisories_and_platforms() -> None:
    assert failures(tdx_claims(valid_until=NOW - timedelta(seconds=1))) == ["collateral-valid"]
    assert failures(tdx_claims(), NoAdvisory(("INTEL-SA-00001",))) == ["advisories"]
    assert not failures(tdx_claims(), NoAdvisory(("INTEL-SA-00002",)), PpidIn(("00" * 16,)))
    assert failures(tdx_claims(), PpidIn(("01" * 16,))) == ["ppid"]
    assert failures(tdx_claims(identity={}), PpidIn(("01" * 16,))) == ["ppid"]
    assert failures(tdx_claims(), ChipIdIn(("01" * 64,))) == ["chip-id"]


def test_an_alternative_has_its_time() -> None:
    old = all_of(NotAfter.at(NOW), Tdx(mrtd=MRTD.hex()))
    policy = Policy.all_of(any_of(Tdx(mrtd="00" * 48), old))
    assert appraise(tdx_claims(), policy, NOW).trusted
    late = appraise(tdx_claims(), policy, NOW + timedelta(seconds=1))
    assert [check.code for check in late.failures] == ["any-of"]
    assert "not-after" in late.failures[0].seen
    assert not appraise(tdx_claims(measurements={"mrtd": bytes([1]) * 48}), policy, NOW).trusted


def test_the_statement_counts_only_if_the_hardware_signed_it() -> None:
    statement = Statement("aa" * 32, "bb" * 32, "3", {"hpke": "cc"}, CONFIGURATION)
    asked = (Fresh("aa" * 32), Model("bb" * 32), PolicyVersion("3"), ReportData(statement.digest().hex()))
    signed = tdx_claims(report_data=statement.digest())
    assert not failures(signed, *asked, statement=statement)
    assert failures(tdx_claims(), *asked, statement=statement) == ["nonce", "model", "policy-version", "report-data"]
    assert failures(signed, Model("bb" * 32)) == ["model"]
    assert failures(signed, Fresh("ab" * 32), statement=statement) == ["nonce"]
    gpu = replace(signed, family=Family.NVIDIA, report_data=sha256(statement.digest()).digest())
    assert not failures(gpu, *asked, statement=statement)
    assert failures(replace(signed, report_data=statement.digest()[:32]), asked[1], statement=statement) == ["model"]


def test_a_bare_nonce_is_the_report_data() -> None:
    assert not failures(tdx_claims(report_data=(b"n" * 32).ljust(64, b"\0")), Fresh((b"n" * 32).hex()))
    assert failures(tdx_claims(report_data=(b"n" * 32).ljust(64, b"x")), Fresh((b"n" * 32).hex())) == ["nonce"]
    assert failures(tdx_claims(report_data=b""), Fresh((b"n" * 32).hex())) == ["nonce"]


def test_any_of_says_why_of_each() -> None:
    choice = any_of(Tdx(mrtd="00" * 48), all_of(Snp(), Tdx()))
    (check,) = appraise(tdx_claims(), Policy.all_of(choice), NOW).failures
    assert check.code == "any-of"
    assert check.seen == "tdx: mrtd; all-of: family"
    assert not failures(tdx_claims(), any_of(Snp(), Tdx(mrtd=MRTD.hex())))


def test_the_word_of_a_service_counts_only_where_the_policy_names_it() -> None:
    service = VerifierService("trustee", "CoCo", '{"keys": []}')
    vouched = tdx_claims(verified_by=service.identity)
    assert failures(vouched) == ["verified-by"]
    assert not failures(vouched, service)
    assert failures(tdx_claims(), service) == ["verifier-service"]
    other = VerifierService("trustee", "CoCo", '{"keys": [1]}')
    assert failures(vouched, any_of(other, Tdx())) == ["verified-by"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: Tdx(mrtd="00"),
        lambda: Tdx(mrtd="AB" * 48),
        lambda: Tdx(rtmrs=("00" * 48,) * 5),
        lambda: Sgx(min_isvsvn=1),
        lambda: Sgx(mrsigner="00" * 32, min_isvsvn=1 << 16),
        lambda: Snp(min_tcb=SnpTcb(snp=256)),
        lambda: Tpm(pcrs={"24": "00" * 32}),
        lambda: Tpm(pcrs={"07": "00" * 32}),
        lambda: TcbAtLeast("Fine"),
        lambda: TcbAtLeast("SWHardeningNeeded"),
        lambda: Exceptions(allow_tcb=(TcbStatus.REVOKED,)),
        lambda: Exceptions(allow_tcb=(TcbStatus.UP_TO_DATE,)),
        *(
            partial(Exceptions, grace=grace)
            for grace in ("a month", "0d", "-1d", "1", "367d", "365000d", "999999d", "１d")
        ),
        lambda: Exceptions(min_tcb_evaluation=-1),
        lambda: Exceptions(min_tcb_evaluation=1 << 16),
        lambda: Exceptions(allow_unchecked=("revocation",)),
        lambda: Exceptions(allow_unchecked=("",)),
        lambda: Policy((NotDebug(),), exceptions=Exceptions(allow_debug=True)),
        lambda: Policy((TcbAtLeast("UpToDate"),), exceptions=Exceptions(grace="1d")),
        lambda: SimulatedPolicy((NotDebug(),), exceptions=Exceptions(allow_debug=True)),
        lambda: Tdx(mrtd=""),
        lambda: Tdx(rtmrs=()),
        lambda: Tdx(rtmrs=("", "")),
        lambda: Tdx(mrowner="00" * 32),
        lambda: Tdx(xfam=""),
        lambda: Tdx(min_tee_tcb_svn="00" * 15),
        lambda: Tdx(attributes_set=()),
        lambda: Tdx(attributes_set=("sept_ve_disable",)),
        lambda: Tdx(attributes_set=("pks",), attributes_clear=("kl", "pks")),
        lambda: Sgx(mrsigner=""),
        lambda: Sgx(isvprodid=1),
        lambda: Sgx(mrsigner="00" * 32, isvprodid=-1),
        lambda: Sgx(attributes_clear=("smt",)),
        lambda: Snp(measurement=""),
        lambda: SnpTcb(),
        lambda: Snp(vmpl=4),
        lambda: Snp(vmpl=-1),
        lambda: Snp(policy_set=("SMT",)),
        lambda: Snp(policy_clear=()),
        lambda: Snp(migration_agent=""),
        lambda: Snp(author_key_digest="00"),
        lambda: Tpm(pcrs={}),
        lambda: Nvidia(drivers=()),
        lambda: Nvidia(vbioses=("",)),
        lambda: NoAdvisory(()),
        *(
            partial(NoAdvisory, (name,))
            for name in ("intel-sa-00837", "SA-00837", "INTEL-SA-837", "INTEL-SA-00837 ", "")
        ),
        lambda: PpidIn(()),
        lambda: PpidIn(("00" * 15,)),
        lambda: ChipIdIn(("00" * 63,)),
        lambda: FmspcIn(()),
        lambda: PolicyVersion(""),
        *(
            partial(NotAfter, time)
            for time in (
                "",
                "tomorrow",
                "2026-12-01",
                "2026-12-01T00:00:00",
                "2026-12-1T00:00:00Z",
                "2026-13-01T00:00:00Z",
            )
        ),
        lambda: all_of(),
        lambda: any_of(Tdx(), NotDebug()),
        lambda: TcbAtLeast("Revoked"),
        lambda: TcbAtLeast("UpToDate", grace="a month"),
        lambda: Fresh("00"),
        lambda: Model("0"),
        lambda: PpidIn(("",)),
        lambda: any_of(),
        lambda: VerifierService("trustee", "", ""),
    ],
)
def test_what_cannot_be_meant_is_refused_when_it_is_written(make: object) -> None:
    with pytest.raises(InvalidPolicy):
        make()  # type: ignore[operator]


# -- TOML --------------------------------------------------------------------------------------------------------


def _hexadecimal(size: int) -> st.SearchStrategy[str]:
    return st.binary(min_size=size, max_size=size).map(bytes.hex)


def _tuples(of: st.SearchStrategy[T]) -> st.SearchStrategy[tuple[T, ...]]:
    return st.lists(of, min_size=1, max_size=3).map(tuple)


TEXT = st.text(st.characters(codec="utf-8"), max_size=20)
WORDS = TEXT.filter(bool)
ADVISORIES = st.integers(0, 99999).map("INTEL-SA-{:05}".format)
LEAVES: st.SearchStrategy[AnyRequirement] = st.one_of(
    st.builds(
        Sgx,
        mrenclave=_hexadecimal(32),
        mrsigner=_hexadecimal(32),
        min_isvsvn=st.none() | st.integers(0, 0xFFFF),
        attributes_set=st.none() | st.just(("kss",)),
    ),
    st.builds(
        Tdx,
        mrtd=st.none() | _hexadecimal(48),
        rtmrs=_tuples(st.just("") | _hexadecimal(48)).filter(any),
        mrowner=st.none() | _hexadecimal(48),
        xfam=st.none() | _hexadecimal(8),
    ),
    st.builds(
        Snp,
        measurement=st.none() | _hexadecimal(48),
        min_tcb=st.none() | st.builds(SnpTcb, st.integers(0, 255), snp=st.integers(1, 255)),
        vmpl=st.none() | st.integers(0, 3),
        policy_clear=st.none() | st.just(("smt", "migrate-ma")),
        migration_agent=st.none() | st.just("none") | _hexadecimal(32),
    ),
    st.builds(Tpm, pcrs=st.dictionaries(st.integers(0, 23).map(str), _hexadecimal(32), min_size=1, max_size=3)),
    st.builds(Nvidia, drivers=_tuples(WORDS), vbioses=st.none() | _tuples(WORDS)),
    st.builds(NoAdvisory, _tuples(ADVISORIES)),
    st.builds(FmspcIn, _tuples(_hexadecimal(6))),
    st.builds(PpidIn, _tuples(_hexadecimal(16))),
    st.builds(ChipIdIn, _tuples(_hexadecimal(64))),
    st.builds(VerifierService, TEXT, TEXT.filter(bool), TEXT.filter(bool)),
    st.builds(ReportData, _hexadecimal(64)),
    st.builds(Fresh, _hexadecimal(32)),
    st.builds(Model, _hexadecimal(32)),
    st.builds(PolicyVersion, WORDS),
    st.builds(NotAfter.at, st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 31), timezones=st.just(UTC))),
)
REQUIREMENTS = st.recursive(
    LEAVES,
    lambda inner: st.builds(AllOf, _tuples(inner)) | st.builds(AnyOf, _tuples(inner)),
    max_leaves=6,
)
EXCEPTIONS = st.builds(
    Exceptions,
    allow_debug=st.booleans(),
    allow_tcb=st.lists(st.sampled_from(["SWHardeningNeeded", "OutOfDate", "Unknown"]), max_size=2).map(
        lambda names: tuple(map(TcbStatus, names))
    ),
    grace=st.sampled_from(["", "30d", "12h", "9m"]),
    revocation=st.sampled_from(["required", "if-available"]),
    allow_unchecked=st.just(()) | st.just(("reference-measurements",)),
    allow_device_alone=st.booleans(),
    min_tcb_evaluation=st.integers(0, 0xFFFF),
)
SOME = st.just(()) | _tuples(REQUIREMENTS)
POLICIES: st.SearchStrategy[AnyPolicy] = st.builds(Policy, SOME, TEXT, EXCEPTIONS) | st.builds(
    SimulatedPolicy, SOME, TEXT, EXCEPTIONS
)


NAMED = """
confide-policy = 1
kind = "production"

[[all]]
require = "not-debug"

[[all]]
require = "tcb-at-least"
status = "UpToDate"

[[all]]
require = "collateral-valid"
"""
"""What policies used to say, and what each asks for now in any case."""


def test_to_name_a_default_changes_nothing() -> None:
    assert policy_from_toml(NAMED) == Policy()


@given(POLICIES)
def test_toml_and_back(policy: AnyPolicy) -> None:
    read = policy_from_toml if isinstance(policy, Policy) else simulated_policy_from_toml
    assert read(to_toml(policy)) == policy


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (('require = "not-debug"', 'require = "not-debug"\nreally = true'), "really"),
        (('require = "not-debug"', 'require = "debug"'), "debug"),
        (('kind = "production"', 'kind = "production"\nallow_simulated = true'), "allow_simulated"),
        (('kind = "production"', 'kind = "whatever"'), "whatever"),
        (("confide-policy = 1", "confide-policy = 2"), "confide-policy"),
        (('kind = "production"', ""), "kind"),
        (("confide-policy = 1", "confide-policy = "), "understood"),
        (('status = "UpToDate"', "status = 3"), "status"),
        (('status = "UpToDate"', 'status = "OutOfDate"'), "allow-tcb"),
        (('kind = "production"', 'kind = "production"\nallow-debug = 1'), "allow-debug"),
        (('kind = "production"', 'kind = "production"\nrevocation = "never"'), "revocation"),
        (('kind = "production"', 'kind = "production"\nallow-tcb = ["Fine"]'), "Fine"),
        (("confide-policy = 1", "x = " + "[" * 5000), "keys and tables"),
        (("confide-policy = 1", "x = " + "[" * 1500), "understood"),
    ],
)
def test_files_that_say_something_else_are_refused(change: tuple[str, str], says: str) -> None:
    text = NAMED
    assert change[0] in text
    with pytest.raises(InvalidPolicy, match=says):
        policy_from_toml(text.replace(*change))


def test_files_have_a_size() -> None:
    with pytest.raises(InvalidPolicy, match="KiB"):
        policy_from_toml("#" * (1 << 20))


def test_a_policy_has_one_digest_however_it_is_written() -> None:
    """SHA-256 of RFC 8785's JSON: member names in order, no spaces."""
    policy = Policy.all_of(Model("ab" * 32), version="7")
    expected = (
        '{"all":[{"require":"model","sha256":"'
        + "ab" * 32
        + '"}],"confide-policy":1,"kind":"production","version":"7"}'
    )
    assert policy_digest(policy) == hashlib.sha256(expected.encode()).hexdigest()
    text = to_toml(policy)
    assert policy_digest(policy_from_toml("# a comment\n\n" + text)) == policy_digest(policy)
    assert policy_digest(policy_from_toml(text.replace("7", "8", 1))) != policy_digest(policy)
