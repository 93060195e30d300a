"""What every policy asks for whatever it says, what its exceptions take away, and what skipped checks do."""

from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from tests.attest.families.authorities import YEAR, crl
from tests.attest.families.cases import NOW as NOW_OF_CASES
from tests.attest.families.cases import Case
from tests.attest.families.forged_nvidia import ROOT as GPU_ROOT
from tests.attest.families.forged_nvidia import Messages, gpu_case
from tests.attest.families.forged_snp import ARK, snp_case
from tests.attest.families.forged_tpm import tpm_case
from tests.attest.made_up import NOW, tdx_claims

from confide.attest.check import Outcome, check, skipped
from confide.attest.claims import Claims, RootKind, TcbStatus
from confide.attest.collateral import OWN, Collateral, Provenance
from confide.attest.defaults import Exceptions
from confide.attest.evidence import Evidence, Family
from confide.attest.explain import explain, verdict
from confide.attest.families.composite import gpu_nonce
from confide.attest.policy import AnyPolicy, Policy, SimulatedPolicy, appraise
from confide.attest.requirements import (
    AnyRequirement,
    CollateralValid,
    FmspcIn,
    NotDebug,
    ProductionRoot,
    Sgx,
    Snp,
    SnpTcb,
    TcbAtLeast,
    Tdx,
    any_of,
)
from confide.attest.result import AttestationResult
from confide.attest.roots import SimulatedRoots

MEASUREMENT = b"m" * 48
SNP = tdx_claims(
    family=Family.SNP,
    tcb_status=TcbStatus.UNKNOWN,
    measurements={"measurement": MEASUREMENT, "id_key_digest": b"i" * 48, "author_key_digest": bytes(48)},
    identity={
        "chip_id": b"c" * 64,
        "policy": (0x30000 | 1 << 20).to_bytes(8, "big"),
        "platform_info": (0b100001).to_bytes(8, "big"),
        "vmpl": (1).to_bytes(4, "big"),
        "report_id_ma": b"\xff" * 32,
        "signer": b"vcek",
        "family_id": b"f" * 16,
    },
    versions={"bootloader": 4, "tee": 0, "snp": 24, "microcode": 219, "guest_svn": 3},
    tcb_evaluation=None,
)
CURRENT = Snp(min_tcb=SnpTcb(snp=24, microcode=219))


def verdict_of(claims: Claims, *asked: AnyRequirement, provenance: Provenance = OWN, **named: Any) -> AttestationResult:
    return appraise(claims, Policy(asked, exceptions=Exceptions(**named)), NOW, provenance=provenance)


def failures(claims: Claims, *asked: AnyRequirement, provenance: Provenance = OWN, **named: Any) -> list[str]:
    result = verdict_of(claims, *asked, provenance=provenance, **named)
    assert result.trusted == (not result.failures)
    return [failed.code for failed in result.failures]


# -- always on ---------------------------------------------------------------------------------------------------

BAD = {
    "debug": {"debug": True},
    "tcb-status": {"tcb_status": TcbStatus.OUT_OF_DATE},
    "root": {"root": RootKind.SIMULATED},
    "collateral-valid": {"valid_until": NOW - timedelta(seconds=1)},
    "speaks-for-a-workload": {"speaks": False},
    "tcb-evaluation": {"tcb_evaluation": None},
}


@pytest.mark.parametrize("code", BAD)
@pytest.mark.parametrize(
    "asked",
    [
        (),
        (Tdx(),),
        (Tdx(mrtd=bytes(range(48)).hex()),),
        (any_of(Tdx(), Snp()),),
        (ProductionRoot(), NotDebug(), CollateralValid(), TcbAtLeast("UpToDate")),
    ],
)
def test_no_requirement_takes_a_default_away(code: str, asked: tuple[AnyRequirement, ...]) -> None:
    claims = tdx_claims(**BAD[code])
    assert failures(claims, *asked) == [code]
    member = tdx_claims(family=Family.COMPOSITE, members=(claims, tdx_claims()))
    assert code in failures(member, *asked)


def test_a_list_from_the_future_is_refused() -> None:
    assert failures(tdx_claims(issued_at=NOW + timedelta(seconds=1))) == ["collateral-valid"]


def test_a_verdict_says_how_old_the_collateral_is_and_who_chose_it() -> None:
    claims = tdx_claims(issued_at=NOW - timedelta(days=12, hours=1))

    def said(provenance: Provenance) -> str:
        checks = verdict_of(claims, provenance=provenance, min_tcb_evaluation=1).checks
        return next(one.seen for one in checks if one.code == "collateral-valid")

    assert "12 days old" in said(OWN)
    assert "the workload chose it" in said(Provenance(sent=True))
    assert "fetched 3 hours ago" in said(Provenance(fetched=NOW - timedelta(hours=3)))


# -- exceptions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("named", "codes"),
    [
        ({"allow_debug": True}, {"debug"}),
        ({"allow_tcb": (TcbStatus.OUT_OF_DATE,)}, {"tcb-status"}),
        ({"allow_device_alone": True}, {"speaks-for-a-workload"}),
    ],
)
def test_an_exception_takes_away_what_it_names_and_the_verdict_repeats_it(named: Any, codes: set[str]) -> None:
    for code, change in BAD.items():
        result = verdict_of(tdx_claims(**change), **named)
        assert result.trusted == (code in codes)
        (sentence,) = result.exceptions
        assert sentence.startswith(next(iter(named)).replace("_", "-"))


def test_every_exception_has_its_sentence() -> None:
    every = Exceptions(True, (TcbStatus.UNKNOWN,), "3d", "if-available", ("rim",), True, 20)
    assert len(every.sentences()) == 6
    assert Exceptions(min_tcb_evaluation=20).sentences() == ()


# -- checks that were not made -----------------------------------------------------------------------------------

LIST = skipped("revocation", "on no list", "no list was given")
RIM = skipped("reference-measurements", "the vendor's", "no manifest was given")


def test_a_skipped_check_is_no_pass() -> None:
    claims = tdx_claims(checks=(LIST,))
    assert failures(claims) == ["revocation"]
    assert failures(tdx_claims(members=(claims,))) == ["revocation"]
    result = verdict_of(claims, revocation="if-available")
    assert result.trusted
    assert [one.outcome for one in result.not_checked] == [Outcome.SKIPPED]
    assert "not checked, by leave of the policy: revocation" in verdict(result)
    assert explain(result)[0].verdict == "not checked"
    assert f"all {len(result.checks) - 1} checks passed" in verdict(result)


def test_each_skipped_check_needs_its_own_exception() -> None:
    claims = tdx_claims(checks=(LIST, RIM))
    assert failures(claims, revocation="if-available") == ["reference-measurements"]
    assert failures(claims, allow_unchecked=("reference-measurements",)) == ["revocation"]
    assert not failures(claims, revocation="if-available", allow_unchecked=("reference-measurements",))
    failed = check("revocation", "on no list", "revoked", ok=False)
    assert failures(tdx_claims(checks=(failed,)), revocation="if-available") == ["revocation"]


def test_nothing_but_skipped_checks_is_no_trust() -> None:
    assert not AttestationResult(Family.TDX, NOW, (LIST,), tdx_claims()).trusted
    assert not AttestationResult(Family.TDX, NOW, (), tdx_claims()).trusted


# -- who chose the collateral ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "provenance", "named", "passes"),
    [
        (20, OWN, {}, True),
        (20, Provenance(newest_evaluation=20), {}, True),
        (20, Provenance(newest_evaluation=22), {}, False),
        (20, Provenance(sent=True), {}, False),
        (20, Provenance(sent=True, newest_evaluation=20), {}, True),
        (20, Provenance(sent=True, newest_evaluation=22), {}, False),
        (20, Provenance(sent=True), {"min_tcb_evaluation": 20}, True),
        (20, OWN, {"min_tcb_evaluation": 21}, False),
        (20, Provenance(sent=True), {"allow_unchecked": ("tcb-evaluation",)}, True),
        (None, OWN, {}, False),
    ],
)
def test_an_older_evaluation_is_refused(seen: int | None, provenance: Provenance, named: Any, passes: bool) -> None:
    for family in (Family.TDX, Family.SGX):
        found = failures(tdx_claims(family=family, tcb_evaluation=seen), provenance=provenance, **named)
        assert found == ([] if passes else ["tcb-evaluation"])


# -- AMD ---------------------------------------------------------------------------------------------------------


def test_amd_is_current_where_the_policy_says_what_that_is() -> None:
    assert failures(SNP) == ["tcb-status"]
    (failed,) = verdict_of(SNP).failures
    assert "min_tcb" in failed.seen
    assert not failures(SNP, CURRENT)
    assert failures(SNP, Snp(min_tcb=SnpTcb(bootloader=1))) == ["tcb-status"]  # says nothing of what bulletins fix
    assert failures(SNP, Snp(min_tcb=SnpTcb(snp=24, microcode=220))) == ["tcb-status", "snp-tcb-microcode"]
    assert not failures(SNP, allow_tcb=(TcbStatus.UNKNOWN,))
    assert failures(replace(SNP, tcb_status=TcbStatus.REVOKED), CURRENT) == ["tcb-status"]
    other = any_of(Snp(measurement=MEASUREMENT.hex()), Snp(min_tcb=SnpTcb(snp=25, microcode=1)))
    assert failures(SNP, other) == ["tcb-status"]


def test_a_minimum_for_amd_says_nothing_of_others() -> None:
    assert failures(tdx_claims(tcb_status=TcbStatus.UNKNOWN), any_of(Tdx(), CURRENT)) == ["tcb-status"]
    gpu = tdx_claims(family=Family.NVIDIA, tcb_status=TcbStatus.UNKNOWN, speaks=False)
    assert failures(gpu) == ["speaks-for-a-workload", "tcb-status"]
    assert not failures(gpu, allow_device_alone=True, allow_tcb=(TcbStatus.UNKNOWN,))


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Snp(policy_set=("single-socket",), policy_clear=("migrate-ma", "debug")), ""),
        (Snp(policy_set=("mem-aes-256-xts",)), "policy-flags"),
        (Snp(policy_clear=("smt",)), "policy-flags"),
        (Snp(platform_set=("alias-check-complete",), platform_clear=("tsme-en",)), ""),
        (Snp(platform_clear=("smt-en",)), "platform-flags"),
        (Snp(vmpl=1), ""),
        (Snp(vmpl=0), "vmpl"),
        (Snp(id_key_digest="69" * 48, author_key_digest="00" * 48), ""),
        (Snp(author_key_digest="01" * 48), "author-key-digest"),
        (Snp(migration_agent="none", signer="vcek", family_id="66" * 16, min_guest_svn=3), ""),
        (Snp(migration_agent="00" * 32), "migration-agent"),
        (Snp(signer="vlek"), "signer"),
        (Snp(min_guest_svn=4), "guest-svn"),
        (Snp(image_id="00" * 16), "image-id"),
    ],
)
def test_what_an_snp_report_says_can_be_asked_for(asked: Snp, code: str) -> None:
    assert failures(SNP, CURRENT, asked) == ([code] if code else [])
    assert failures(replace(SNP, identity={}, measurements={}, versions=SNP.versions), CURRENT, asked) or not code


TDX = tdx_claims(
    measurements={
        "mrowner": b"o" * 48,
        "mrownerconfig": b"c" * 48,
        "mrsignerseam": b"s" * 48,
        "mrservicetd": b"t" * 48,
        "td_attributes": (1 << 28 | 1 << 30).to_bytes(8, "little"),
        "xfam": b"x" * 8,
        "tee_tcb_svn": bytes([5, 1, 3]).ljust(16, b"\0"),
    },
    identity={"fmspc": b"fmspc!"},
)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Tdx(mrowner="6f" * 48, mrownerconfig="63" * 48, mrsignerseam="73" * 48, mrservicetd="74" * 48), ""),
        (Tdx(mrowner="00" * 48), "mrowner"),
        (Tdx(mrservicetd="00" * 48), "mrservicetd"),
        (Tdx(xfam="78" * 8, td_attributes="0000005000000000"), ""),
        (Tdx(xfam="79" * 8), "xfam"),
        (Tdx(td_attributes="00" * 8), "td-attributes"),
        (Tdx(attributes_set=("sept-ve-disable",), attributes_clear=("migratable", "debug")), ""),
        (Tdx(attributes_clear=("pks",)), "attributes-flags"),
        (Tdx(min_tee_tcb_svn="050103".ljust(32, "0")), ""),
        (Tdx(min_tee_tcb_svn="040203".ljust(32, "0")), "tee-tcb-svn"),
        (FmspcIn((b"fmspc!".hex(),)), ""),
        (FmspcIn(("00" * 6,)), "fmspc"),
    ],
)
def test_what_a_td_report_says_can_be_asked_for(asked: AnyRequirement, code: str) -> None:
    assert failures(TDX, asked) == ([code] if code else [])
    assert failures(replace(TDX, measurements={}, identity={}), asked)


SGX = tdx_claims(
    family=Family.SGX,
    measurements={
        "mrsigner": b"s" * 32,
        "isvprodid": (7).to_bytes(2, "little"),
        "isvsvn": (3).to_bytes(2, "little"),
        "configid": b"c" * 64,
        "configsvn": (2).to_bytes(2, "little"),
        "attributes": (1 << 2 | 1 << 7).to_bytes(16, "little"),
        "miscselect": bytes(4),
    },
)


@pytest.mark.parametrize(
    ("asked", "code"),
    [
        (Sgx(mrsigner="73" * 32, isvprodid=7, min_isvsvn=3, configid="63" * 64, min_configsvn=2), ""),
        (Sgx(mrsigner="73" * 32, isvprodid=0), "isvprodid"),
        (Sgx(configid="00" * 64), "configid"),
        (Sgx(min_configsvn=3), "configsvn"),
        (Sgx(attributes_set=("mode64bit", "kss"), attributes_clear=("debug", "provision-key")), ""),
        (Sgx(attributes_clear=("kss",)), "attributes-flags"),
        (Sgx(miscselect="00" * 4), ""),
        (Sgx(miscselect="01" * 4), "miscselect"),
    ],
)
def test_what_an_enclaves_report_says_can_be_asked_for(asked: Sgx, code: str) -> None:
    assert failures(SGX, asked) == ([code] if code else [])
    assert failures(replace(SGX, measurements={}), asked)


def test_simulated_policies_have_the_same_defaults() -> None:
    simulated = tdx_claims(root=RootKind.SIMULATED)
    policies: list[AnyPolicy] = [SimulatedPolicy(), SimulatedPolicy((Tdx(),))]
    for policy in policies:
        assert appraise(simulated, policy, NOW).trusted
        for code in set(BAD) - {"root"}:
            assert [one.code for one in appraise(replace(simulated, **BAD[code]), policy, NOW).failures] == [code]


# -- what families report ----------------------------------------------------------------------------------------


GPU_CODES = {"revocation", "nvidia-measurements"}
"""What cannot be checked of a GPU without lists and reference manifests."""


def skipped_codes(claims: Claims) -> set[str]:
    return {one.code for one in claims.checks if one.outcome is Outcome.SKIPPED}


def test_a_missing_list_is_a_check_that_was_not_made_whatever_the_family() -> None:
    gpu = gpu_case()
    for case, codes in ((snp_case(), {"revocation"}), (snp_case(kind="vlek"), {"revocation"}), (gpu, GPU_CODES)):
        claims = case.verify()
        assert skipped_codes(claims) == codes
        assert all(one.clause for one in claims.checks)
    for case, root, codes in ((snp_case(), ARK, set()), (gpu, GPU_ROOT, GPU_CODES - {"revocation"})):
        listed = case.with_documents(crl=crl(root))
        assert skipped_codes(listed.verify()) == codes
        assert listed.verify().issued_at == NOW_OF_CASES - YEAR


def test_a_device_alone_is_no_workload() -> None:
    for case in (gpu_case(), tpm_case()):
        claims = case.verify()
        assert not claims.speaks
        failed = appraise(claims, SimulatedPolicy(), NOW_OF_CASES).failures
        assert failed[0].code == "speaks-for-a-workload"
    machine = snp_case()
    bound = gpu_case(Messages(nonce=gpu_nonce(machine.evidence)))
    evidence = Evidence(Family.COMPOSITE, b"", members=(machine.evidence, bound.evidence))
    roots = SimulatedRoots({Family.SNP: ARK.der, Family.NVIDIA: GPU_ROOT.der})
    collateral = Collateral(members=(machine.collateral, bound.collateral))
    claims = Case(evidence, collateral, roots).verify()
    assert claims.speaks
    least = Snp(min_tcb=SnpTcb(snp=1, microcode=1))
    policy = SimulatedPolicy((least,), exceptions=Exceptions(revocation="if-available"))
    assert {one.code for one in appraise(claims, policy, NOW_OF_CASES).failures} == GPU_CODES - {"revocation"}
    lenient = Exceptions(revocation="if-available", allow_unchecked=("nvidia-measurements",))
    result = appraise(claims, SimulatedPolicy((least,), exceptions=lenient), NOW_OF_CASES)
    assert result.trusted, result.failures
    assert {one.code for one in result.not_checked} == GPU_CODES
