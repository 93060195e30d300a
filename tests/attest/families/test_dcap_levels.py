"""When a level was replaced: by real lists, and on the simulated machine."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tests.attest.families.conftest import MADE, Case

from confide.attest.claims import Claims, TcbStatus
from confide.attest.collateral import Collateral
from confide.attest.defaults import Exceptions
from confide.attest.families.dcap_levels import date_of, superseded
from confide.attest.policy import SimulatedPolicy, appraise
from confide.attest.simulated import SimulatedTee
from confide.attest.simulated_vendor import Listing
from confide.errors import MalformedEvidence, OutsideValidity

QUIET = {"tcbStatus": "UpToDate", "tcbDate": "2024-01-01T00:00:00Z"}


def lists(test_data: Path) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """TCB info and QE identity of each real collateral."""
    for path in sorted((test_data / "evidence").rglob("*.collateral.json")):
        content = json.loads(path.read_text())
        yield json.loads(content["tcb_info"]), json.loads(content["qe_identity"])


def test_in_real_lists_every_outdated_level_was_replaced_later_than_its_own_day(test_data: Path) -> None:
    seen = 0
    for info, identity in lists(test_data):
        levels = info["tcbLevels"]
        days = sorted({date_of(level) for level in levels})
        for level in levels:
            found = {"platform": {"tcb_level": level}, "qe": {"tcb_level": QUIET}}
            replaced = superseded(found, info, identity, None)
            if level["tcbStatus"].startswith("OutOfDate"):
                seen += 1
                assert replaced == days[days.index(date_of(level)) + 1]
            else:
                assert replaced is None
    assert seen >= 10


def test_in_real_lists_of_modules_and_quoting_enclaves(test_data: Path) -> None:
    seen = 0
    for info, identity in lists(test_data):
        newest = identity["tcbLevels"][0]
        for level in identity["tcbLevels"][1:]:
            found = {"platform": {"tcb_level": QUIET}, "qe": {"tcb_level": level}}
            replaced = superseded(found, info, identity, None)
            assert replaced is not None
            assert date_of(level) < replaced <= date_of(newest)
            seen += 1
        for module in info.get("tdxModuleIdentities", ()):
            for level in module["tcbLevels"]:
                svn = bytes([level["tcb"]["isvsvn"], int(module["id"][4:], 16)])
                quiet = {"platform": {"tcb_level": QUIET}, "qe": {"tcb_level": QUIET}}
                replaced = superseded(quiet, info, identity, svn)
                assert (replaced is not None) == level["tcbStatus"].startswith("OutOfDate")
                assert replaced is None or replaced > date_of(level)
                seen += 1
    assert seen >= 8


def test_no_later_level_is_no_day() -> None:
    level = {"tcbStatus": "OutOfDate", "tcbDate": "2024-01-01T00:00:00Z"}
    found = {"platform": {"tcb_level": level}, "qe": {"tcb_level": QUIET}}
    assert superseded(found, {"tcbLevels": [level]}, {}, None) is None
    later = {**level, "tcbDate": "2024-02-01T00:00:00Z"}
    two = {"platform": {"tcb_level": later}, "qe": {"tcb_level": level}}
    info = {"tcbLevels": [{**QUIET, "tcbDate": "2025-01-01T00:00:00Z"}, later]}
    assert superseded(two, info, {"tcbLevels": [level]}, None) is None
    both = superseded(two, info, {"tcbLevels": [later, level]}, None)
    assert both == datetime.fromisoformat("2024-02-01T00:00:00+00:00")  # the first that was replaced


@pytest.mark.parametrize("date", ["soon", "", None])
def test_a_level_has_a_date(date: object) -> None:
    with pytest.raises(MalformedEvidence):
        date_of({"tcbDate": date})


def outdated(tee: SimulatedTee, simulated: Case, **changes: Any) -> Claims:
    listing = Listing(MADE, status="OutOfDate", newer=MADE + timedelta(days=3), **changes)
    return Case(simulated.evidence, tee.collateral(listing), simulated.roots, MADE + timedelta(days=10)).verify()


def test_grace_counts_from_the_replacement(tee: SimulatedTee, simulated: Case) -> None:
    claims = outdated(tee, simulated)
    assert (claims.tcb_status, claims.tcb_date) == (TcbStatus.OUT_OF_DATE, MADE)
    assert claims.tcb_superseded == MADE + timedelta(days=3)
    for grace, trusted in (("", False), ("6d", False), ("7d", True), ("8d", True)):
        policy = SimulatedPolicy(exceptions=Exceptions(grace=grace))
        assert appraise(claims, policy, MADE + timedelta(days=10)).trusted is trusted


def test_the_evaluation_number_is_a_claim(tee: SimulatedTee, simulated: Case) -> None:
    for number in (1, 22):
        assert outdated(tee, simulated, evaluation=number).tcb_evaluation == number


def test_a_list_from_the_future_is_refused(tee: SimulatedTee, simulated: Case) -> None:
    """The library does not look at when a revocation list was issued."""
    lists, rest = tee.collateral(Listing(MADE + timedelta(days=2))), tee.collateral(Listing(MADE))
    for name in ("pck_crl", "root_ca_crl"):
        mixed = json.loads(rest.documents["dcap"]) | {name: json.loads(lists.documents["dcap"])[name]}
        case = replace(simulated, collateral=Collateral({"dcap": json.dumps(mixed).encode()}))
        with pytest.raises(OutsideValidity, match=r"revocation list is of .* check the clock"):
            replace(case, now=MADE + timedelta(days=1)).verify()
        replace(case, now=MADE + timedelta(days=2)).verify()


def test_an_expired_list_has_its_own_words(tee: SimulatedTee, simulated: Case) -> None:
    short, rest = tee.collateral(Listing(MADE, days=1)), tee.collateral(Listing(MADE))
    for name, words in (("pck_crl", "PCK revocation list"), ("root_ca_crl", "root CA's revocation list")):
        mixed = json.loads(rest.documents["dcap"]) | {name: json.loads(short.documents["dcap"])[name]}
        case = replace(simulated, collateral=Collateral({"dcap": json.dumps(mixed).encode()}))
        with pytest.raises(OutsideValidity, match=f"{words} expired"):
            replace(case, now=MADE + timedelta(days=2)).verify()
        assert replace(case, now=MADE + timedelta(hours=1)).verify().valid_until == MADE + timedelta(days=1)
