"""When the level of an out-of-date Intel platform was replaced, by the dates of the signed lists.

A quote is held against three lists of levels: the platform's (TCB info), the quoting enclave's (QE identity) and, for
TDX, the module's (TCB info, tdxModuleIdentities). In each, `tcbDate` is the day to which a level has the mitigations
that Intel had published; a level is OutOfDate because one of a later date exists. So a level was replaced on the
earliest `tcbDate` that is later than its own, whatever became of that replacement since, and a platform on the
earliest day on which one of its out-of-date parts was. Where a part is out of date and its list shows no later level,
the day is not known, and no grace can be counted from it.

Source: Intel PCS API v4, "Get TDX TCB Info" (tcbDate, tcbStatus) and "Get Quoting Enclave Identity".
"""

from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any, Final

from confide.errors import MalformedEvidence

_OUT_OF_DATE: Final = "OutOfDate"


def superseded(
    found: Mapping[str, Any], tcb_info: Mapping[str, Any], identity: Mapping[str, Any], tee_tcb_svn: bytes | None
) -> datetime | None:
    """The day for a platform, or None if nothing of it is out of date or the lists do not say.

    found: the library's claims. tcb_info, identity: the signed lists that it verified. tee_tcb_svn: of a TD report.
    """
    days = []
    for level, levels in _parts(found, tcb_info, identity, tee_tcb_svn):
        if str(level.get("tcbStatus", "")).startswith(_OUT_OF_DATE):
            own = date_of(level)
            later = [day for day in map(date_of, levels) if day > own]
            if not later:
                return None
            days.append(min(later))
    return min(days, default=None)


def date_of(level: Mapping[str, Any]) -> datetime:
    """A level's tcbDate. MalformedEvidence where it has none that can be read."""
    try:
        day = datetime.fromisoformat(level["tcbDate"])
    except (ValueError, KeyError, TypeError) as problem:
        raise MalformedEvidence("The collateral's TCB level has no readable date; fetch it again.") from problem
    return day if day.tzinfo else day.replace(tzinfo=UTC)


def _parts(
    found: Mapping[str, Any], tcb_info: Mapping[str, Any], identity: Mapping[str, Any], tee_tcb_svn: bytes | None
) -> Iterator[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]]:
    """Each level in use, with its list."""
    yield found["platform"]["tcb_level"], tcb_info.get("tcbLevels", ())
    yield found["qe"]["tcb_level"], identity.get("tcbLevels", ())
    if tee_tcb_svn:
        yield from _module(tcb_info, tee_tcb_svn)


def _module(
    tcb_info: Mapping[str, Any], tee_tcb_svn: bytes
) -> Iterator[tuple[Mapping[str, Any], Iterable[Mapping[str, Any]]]]:
    """The TDX module's: byte 1 of TEE_TCB_SVN says which identity is its, and byte 0 its version; 0 has no identity."""
    svn, version = tee_tcb_svn[:2]
    for module in tcb_info.get("tdxModuleIdentities", ()):
        if version and str(module.get("id", "")).upper() == f"TDX_{version:02X}":
            levels = module.get("tcbLevels", ())
            fitting = (level for level in levels if level.get("tcb", {}).get("isvsvn", 256) <= svn)
            yield from ((level, levels) for level in list(fitting)[:1])
