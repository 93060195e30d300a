"""Whether an audit log is what its owner's programs wrote: every line in its place, none gone that was counted."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypeVar

from confide.attest.check import Check, check, skipped
from confide.audit.entries import (
    Checkpoint,
    Entry,
    Retired,
    is_signed,
    read_statement,
    read_statement_file,
    segment_name,
)
from confide.audit.log import CHECKPOINT, RETIRED, Place, segments_of, walk
from confide.disk.chained import GENESIS
from confide.errors import AuditLogCorrupted, AuditLogUnavailable
from confide.receipts.verdict import Verdict

_CLAUSE: Final = "confide audit log 1"
"""What is asked of it: docs/audit-log.md."""
_Statement = TypeVar("_Statement", Checkpoint, Retired)
_REQUIRED: Final = frozenset({"audit-segments", "audit-chain", "audit-signature", "audit-key", "audit-checkpoint"})


@dataclass(frozen=True, kw_only=True)
class AuditResult(Verdict):
    """The verdict on a log. entries: from its very beginning, retired ones counted. head: the last line's hash."""

    entries: int
    head: str


def verify_log(folder: Path, key: str | None = None, kept: bytes | None = None) -> AuditResult:
    """Every check of the log in a folder. key: the public key of whoever's log it is.

    kept: a checkpoint of the same log from elsewhere; without one, whoever can write the folder can put back an older
    state of all of it. AuditLogUnavailable where there is nothing to be read.
    """
    numbers = segments_of(folder)
    checkpoint = read_statement_file(folder / CHECKPOINT, Checkpoint)
    retired_there = (folder / RETIRED).exists()
    retired = read_statement_file(folder / RETIRED, Retired) if retired_there else None
    log = "" if checkpoint is None else checkpoint.log
    checks: list[Check] = []
    start = Place(0, 0, 0, GENESIS.hex())
    if retired_there:
        good = retired is not None and is_signed(retired) and retired.log == log and _by(checkpoint, retired)
        seen = "a signed statement" if good else "none that this log's owner signed"
        checks.append(check("audit-retired", "a signed statement of what is gone", seen, good, _CLAUSE))
        if retired is not None and good:
            start = Place(retired.segment, 0, retired.entries, retired.head)
    present = [number for number in numbers if number > start.segment]
    whole = present == list(range(start.segment + 1, start.segment + 1 + len(present))) and bool(present)
    checks.append(
        check("audit-segments", f"segments from {start.segment + 1} on, none missing", _listed(present), whole, _CLAUSE)
    )
    statements = {"audit-checkpoint": checkpoint}
    if kept is not None:
        statements["audit-kept"] = read_statement(kept, Checkpoint)
    end, broken, reached, torn = _follow(folder, start, present, whole, statements)
    said = f"{end.entries} entries, head {end.head}"
    checks.append(check("audit-chain", "every line follows the one before", broken or said, not broken, _CLAUSE))
    checks += _signed(checkpoint, key)
    for code, statement in statements.items():
        if statement is not None and statement.log == log and statement.entries < start.entries:
            because = f"the log is whole from entry {start.entries + 1} on; what was before is retired"
            checks.append(skipped(code, f"entry {statement.entries}", because, _CLAUSE))
            continue
        checks.append(_counted(code, statement, statement is not None and statement.log == log, reached, end))
    if kept is None:
        because = "no checkpoint from elsewhere was given"
        checks.append(skipped("audit-kept", "a line that an earlier checkpoint counts", because, _CLAUSE))
    elif (other := statements["audit-kept"]) is not None:
        same = is_signed(other) and checkpoint is not None and other.public_key == checkpoint.public_key
        checks.append(
            check("audit-kept-signature", "by the same key", "holds" if same else "does not hold", same, _CLAUSE)
        )
    if torn:
        because = f"{torn} bytes at its end are a line that a crash tore; the next entry cuts them off"
        checks.append(skipped("audit-end", "a whole last line", because, _CLAUSE))
    return AuditResult(checks=tuple(checks), required=_REQUIRED, entries=end.entries, head=end.head)


def entries(folder: Path) -> Iterator[Entry]:
    """What is there, oldest first, held against its chain: AuditLogCorrupted where that breaks, AuditLogUnavailable."""
    numbers = segments_of(folder)
    retired = read_statement_file(folder / RETIRED, Retired)
    start = Place(0, 0, 0, GENESIS.hex())
    if retired is not None:
        start = Place(retired.segment, 0, retired.entries, retired.head)
    if start.segment + 1 not in numbers:
        raise AuditLogCorrupted(f"The beginning of the log is not in {folder}; `confide audit verify` says more.")
    for _, entry in walk(folder, Place(start.segment + 1, 0, start.entries, start.head)):
        yield entry


def _follow(
    folder: Path, start: Place, present: list[int], whole: bool, statements: dict[str, Checkpoint | None]
) -> tuple[Place, str, set[tuple[int, str]], int]:
    """Where the chain ends, why it breaks if it does, which counted places it goes through, and what is torn."""
    wanted = {(one.entries, one.head) for one in statements.values() if one is not None}
    reached = {(start.entries, start.head)} & wanted
    place = begin = Place(start.segment + 1, 0, start.entries, start.head)
    broken = ""
    if not whole:
        return place, "a segment is missing", reached, 0
    try:
        for place, _ in walk(folder, begin):
            if (place.entries, place.head) in wanted:
                reached.add((place.entries, place.head))
        torn = (folder / segment_name(place.segment)).stat().st_size - place.offset
        if place.segment != present[-1]:
            broken, torn = f"segment {present[-1]} has no whole line", 0
    except (AuditLogCorrupted, AuditLogUnavailable):
        return place, f"entry {place.entries + 1}, in segment {place.segment} or the next, does not follow", reached, 0
    return place, broken, reached, torn


def _signed(checkpoint: Checkpoint | None, key: str | None) -> Iterator[Check]:
    if checkpoint is None:
        yield check("audit-signature", "a signed checkpoint", "none", ok=False, clause=_CLAUSE)
        return
    holds = is_signed(checkpoint)
    seen = f"ed25519, {'holds' if holds else 'does not hold'}"
    yield check("audit-signature", f"a signature by {checkpoint.public_key}", seen, holds, _CLAUSE)
    if key is None:
        yield skipped("audit-key", checkpoint.public_key, "nobody said whose log this is", _CLAUSE)
    else:
        yield check("audit-key", key, checkpoint.public_key, key == checkpoint.public_key, _CLAUSE)


def _counted(
    code: str, statement: Checkpoint | None, same_log: bool, reached: set[tuple[int, str]], end: Place
) -> Check:
    """That the chain goes through what a checkpoint counts: else lines at its end are gone, or it was written anew."""
    if statement is None:
        return check(code, "a line that a checkpoint counts", "no checkpoint", ok=False, clause=_CLAUSE)
    expected = f"entry {statement.entries} with the hash {statement.head}"
    if not same_log:
        return check(code, expected, "a checkpoint of another log", ok=False, clause=_CLAUSE)
    there = (statement.entries, statement.head) in reached
    behind = end.entries - statement.entries
    seen = f"there, and {behind} after it" if there else f"not there; the log ends with entry {end.entries}"
    return check(code, expected, seen, there, _CLAUSE)


def _by(checkpoint: Checkpoint | None, retired: Retired) -> bool:
    return checkpoint is not None and checkpoint.public_key == retired.public_key


def _listed(numbers: list[int]) -> str:
    return f"{len(numbers)}, from {numbers[0]} to {numbers[-1]}" if numbers else "none"
