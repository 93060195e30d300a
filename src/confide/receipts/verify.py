"""Whether a receipt is what it says, offline: every check with the clause of ACI that asks for it.

A document that is not at hand is a check that was not made, and never one that passed. A receipt is verified once its
signature, and evidence for the key that made it, are.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Final

from confide.attest.appraise import Verifies
from confide.attest.bundle import Bundle
from confide.attest.check import Check, check, skipped
from confide.attest.collateral import Collateral
from confide.attest.explain import verdict
from confide.attest.policy import AnyPolicy
from confide.attest.requirements import Subject
from confide.attest.result import AttestationResult
from confide.attest.statement import Statement
from confide.receipts.documents import API_VERSION, digest_of
from confide.receipts.events import (
    CHAIN,
    SAMPLING,
    SOURCES,
    STATED,
    sampling_event,
    sources_event,
    stated_events,
)
from confide.receipts.keyset import PURPOSE, Keyset, report_data
from confide.receipts.receipt import FORWARDED, RECEIVED, RETURNED, UPSTREAM, Event, Receipt
from confide.receipts.report import Report
from confide.receipts.session import AttestedSession
from confide.receipts.verdict import Verdict
from confide.receipts.verify_report import appraise_report

_REQUIRED: Final = frozenset(
    {"receipt-version", "receipt-events", "receipt-keyset", "receipt-expiry", "receipt-signature"}
)
_ATTESTED: Final = frozenset({"receipt-attestation", "receipt-binding"})
_OURS: Final = "confide receipts 1"
"""What is asked of our own events, of which ACI knows nothing: docs/receipts.md."""


def _clause(section: str) -> str:
    return f"ACI {API_VERSION}, {section}"


@dataclass(frozen=True)
class Grounds:
    """What is known of the workload that a receipt is by, and the checks that say how well.

    pinned: the digest of a keyset that the verifier has established before. aggregator: it hands questions on.
    """

    keyset: Keyset | None
    checks: tuple[Check, ...]
    statement: Statement | None = None
    simulated: bool = False
    pinned: str = ""
    aggregator: bool = False


@dataclass(frozen=True, kw_only=True)
class ReceiptResult(Verdict):
    """The verdict on one receipt: signature, keyset and evidence have to be checked, bodies need not be."""

    receipt: Receipt


def no_grounds(pinned: str = "") -> Grounds:
    """Nothing is at hand."""
    because = "neither a bundle nor a report was given"
    return Grounds(None, tuple(_unattested(because)), pinned=pinned)


def grounds_of_bundle(
    bundle: Bundle, verifier: Verifies, *, policy: AnyPolicy | None = None, now: datetime | None = None
) -> Grounds:
    """From evidence that was frozen, with the workload's statement. MalformedReceipt where its keyset is none.

    policy, now: in place of the bundle's own, which are whoever froze it's.
    """
    return grounds_of_statement(bundle.reverify(verifier, policy=policy, now=now), bundle.statement)


def grounds_of_statement(result: AttestationResult, said: Statement | None) -> Grounds:
    """From a verdict on evidence, and what the workload says of itself. MalformedReceipt where its keyset is none."""
    # A verdict ignores a statement that the hardware did not sign, as long as the policy asks nothing of it.
    statement = Subject(result.claims, result.at, said).signed_statement if result.claims else None
    digits = "" if statement is None else statement.channel_keys.get(PURPOSE, "")
    keyset = Keyset.parse(digits) if digits else None
    bound = check(
        "receipt-binding",
        "a keyset in the signed statement",
        keyset.digest if keyset else "none",
        keyset is not None,
        _clause("9.1(2)"),
    )
    return Grounds(keyset, (_attestation(result), bound), statement, result.simulated)


def grounds_of_report(
    report: Report,
    verifier: Verifies,
    policy: AnyPolicy,
    now: datetime,
    *,
    nonce: str | None = None,
    collateral: Collateral | None = None,
    pinned: str = "",
) -> Grounds:
    """From a report in ACI's form, of whatever gateway. nonce: that it was asked for with, if it was.

    collateral: in place of what the report brought. Source provenance, custody and channels are the policy's business
    and the verifier's, and not looked at.
    """
    expected = report_data(report.keyset.digest, nonce)
    named = check(
        "receipt-report", report.keyset.digest, report.keyset_digest, report.keyset.digest == report.keyset_digest,
        _clause("4.1"),
    )  # fmt: skip
    same = expected[:32].hex() == report.report_data
    bound = check("receipt-binding", expected[:32].hex(), report.report_data, same, _clause("9.1(2)"))
    result = appraise_report(report, verifier, policy, now, nonce=nonce, collateral=collateral)
    if result is None:
        because = f"evidence of {report.tee_type} in this form is not known"
        attested, simulated = skipped("receipt-attestation", _ACCEPTED, because, _clause("9.1(1)")), False
    else:
        attested, simulated = _attestation(result), result.simulated
    aggregator = report.serving != "direct"
    return Grounds(report.keyset, (attested, bound, named), None, simulated, pinned, aggregator)


def verify_receipt(
    receipt: Receipt,
    grounds: Grounds,
    *,
    request: bytes | None = None,
    response: bytes | None = None,
    returned: str | None = None,
    receipt_id: str | None = None,
    session: AttestedSession | None = None,
    previous: Receipt | None = None,
) -> ReceiptResult:
    """Every check. request, response: the exact bytes, of a stream with all that frames its events.

    returned: in place of the response, the digest of its bytes, from whoever hashed them on their way. receipt_id: that
    the answer named. session: the one that the receipt names, where an aggregator made it. previous: the receipt before
    this one.
    """
    checks = (
        *grounds.checks,
        *_document(receipt),
        *_named(receipt, receipt_id),
        *_signature(receipt, grounds),
        _body(receipt, RECEIVED, "receipt-request", "request", _digest(request), "9.3(3)"),
        _body(receipt, RETURNED, "receipt-response", "response", returned or _digest(response), "9.3(4)"),
        *_rewrite(receipt),
        *_upstream(receipt, grounds, session),
        *_stated(receipt, grounds.statement),
        *_sampling(receipt, grounds.statement, request),
        *_sources(receipt, response),
        *_chain(receipt, previous),
    )
    required = _REQUIRED if grounds.pinned else _REQUIRED | _ATTESTED
    return ReceiptResult(receipt=receipt, checks=checks, required=required, simulated=grounds.simulated)


_ACCEPTED: Final = "evidence that the policy accepts"


def _attestation(result: AttestationResult) -> Check:
    reasons = "".join(f"; {one.code}: {one.seen}" for one in result.failures)
    return check("receipt-attestation", _ACCEPTED, verdict(result) + reasons, result.trusted, _clause("9.1(1)"))


def _unattested(because: str) -> Iterator[Check]:
    yield skipped("receipt-attestation", _ACCEPTED, because, _clause("9.1(1)"))
    yield skipped("receipt-binding", "a keyset that the evidence binds", because, _clause("9.1(2)"))


def _document(receipt: Receipt) -> Iterator[Check]:
    fields = receipt.fields
    yield check(
        "receipt-version", API_VERSION, fields.api_version, fields.api_version == API_VERSION, _clause("9.3(2)")
    )
    kinds = [event["type"] for event in fields.event_log]
    whole = kinds[:1] == [RECEIVED] and kinds.count(RECEIVED) == kinds.count(RETURNED) == 1
    expected = f"{RECEIVED} first, and {RETURNED}, each once"
    yield check("receipt-events", expected, ", ".join(kinds) or "none", whole, _clause("7.3 and 7.4"))


def _named(receipt: Receipt, receipt_id: str | None) -> Iterator[Check]:
    """That it is not the one for the same question and answer at another time."""
    if receipt_id is not None:
        said = receipt.fields.receipt_id
        yield check("receipt-id", receipt_id, said, said == receipt_id, _clause("7.1"))


def _signature(receipt: Receipt, grounds: Grounds) -> Iterator[Check]:
    fields, keyset = receipt.fields, grounds.keyset
    if keyset is None:
        because = "there is no keyset to hold it against"
        yield skipped("receipt-keyset", fields.workload_keyset_digest, because, _clause("9.3(2)"))
        yield skipped("receipt-expiry", "a keyset that was valid then", because, _clause("3.1"))
        yield skipped("receipt-signature", f"a signature by {fields.key_id}", because, _clause("9.3(1)"))
        return
    digests = {keyset.digest, grounds.pinned or keyset.digest}
    named = digests == {fields.workload_keyset_digest}
    yield check(
        "receipt-keyset", " and ".join(sorted(digests)), fields.workload_keyset_digest, named, _clause("9.3(2)")
    )
    until = keyset.fields.not_after
    in_time = fields.served_at < until
    yield check("receipt-expiry", f"before {_time(until)}", _time(fields.served_at), in_time, _clause("3.1"))
    key = keyset.signing_key(fields.key_id)
    held = key is not None and receipt.signed_by(key)
    seen = "no such key in the keyset" if key is None else f"{key.algo}, {'holds' if held else 'does not hold'}"
    yield check("receipt-signature", f"a signature by {fields.key_id}", seen, held, _clause("9.3(1)"))


def _digest(body: bytes | None) -> str | None:
    return None if body is None else digest_of(body)


def _body(receipt: Receipt, kind: str, code: str, name: str, digest: str | None, section: str) -> Check:
    said = " and ".join(event["body_hash"] for event in receipt.events(kind)) or "none"
    if digest is None:
        return skipped(code, said, f"the {name} was not given", _clause(section))
    return check(code, said, digest, said == digest, _clause(section))


def _rewrite(receipt: Receipt) -> Iterator[Check]:
    received = [event["body_hash"] for event in receipt.events(RECEIVED)]
    for event in receipt.events(FORWARDED):
        used, expected = event["body_hash"], " and ".join(received) or "none"
        if received == [used]:
            yield check("receipt-rewrite", expected, used, ok=True, clause=_clause("9.3"))
        else:
            because = f"the service made {used} of it, and whether it may is for you to say"
            yield skipped("receipt-rewrite", expected, because, _clause("9.3"))


def _upstream(receipt: Receipt, grounds: Grounds, session: AttestedSession | None) -> Iterator[Check]:
    events = list(receipt.events(UPSTREAM))
    if not events and not grounds.aggregator:
        return
    good = [one for one in events if one.get("result") == "verified" and one.get("required") is True]
    seen = "; ".join(f"{one.get('result')}, required: {one.get('required')}" for one in events) or "no such event"
    yield check("receipt-upstream", "verified, required: True", seen, bool(good), _clause("9.3(5)"))
    cited = [str(one.get("session_id")) for one in good]
    expected = " or ".join(cited) or "a session"
    if session is None:
        yield skipped("receipt-session", expected, "no session was given", _clause("9.3(6)"))
        return
    yield check("receipt-session", expected, session.id, session.id in cited, _clause("9.3(6)"))
    window = f"{_time(session.fields.established_at)} to {_time(session.fields.expires_at)}"
    then = receipt.fields.served_at
    within = session.fields.established_at <= then <= session.fields.expires_at
    yield check("receipt-session-time", window, _time(then), within, _clause("9.3(6)"))
    claim = session.tee_attested
    yield check(
        "receipt-session-tee", "asserted, hardware_proven", claim, claim == "asserted, hardware_proven",
        _clause("9.2(3)"),
    )  # fmt: skip
    yield skipped(
        "receipt-session-evidence", "evidence of the upstream that holds", "it is in a form of the aggregator's",
        _clause("9.2(4)"),
    )  # fmt: skip


def _stated(receipt: Receipt, statement: Statement | None) -> Iterator[Check]:
    said = {kind: _words(receipt.events(kind)) for kind in STATED}
    if statement is None or statement.configuration is None:
        for kind, words in said.items():
            if words:
                yield skipped(_code(kind), words, "no bundle with a statement was given", _OURS)
        return
    events = stated_events(statement.configuration, statement.model_digest)
    for kind in STATED:
        expected = _words(event for event in events if event["type"] == kind)
        if expected or said[kind]:
            yield check(_code(kind), expected or "none", said[kind] or "none", said[kind] == expected, _OURS)


def _sampling(receipt: Receipt, statement: Statement | None, request: bytes | None) -> Iterator[Check]:
    said = _words(receipt.events(SAMPLING))
    if not said:
        return
    defaults = statement.configuration.sampling if statement and statement.configuration else None
    if request is None or defaults is None:
        missing = "the request was not given" if request is None else "no statement with the workload's own was given"
        yield skipped(_code(SAMPLING), said, missing, _OURS)
        return
    event = sampling_event(request, defaults)
    expected = _words([event] if event else [])
    yield check(_code(SAMPLING), expected or "none", said, said == expected, _OURS)


def _sources(receipt: Receipt, response: bytes | None) -> Iterator[Check]:
    """That the chunks named here are those that the answer cites.

    Who hands an answer on, as a guard does, names none of its sources.
    """
    said = _words(receipt.events(SOURCES))
    event = None if response is None else sources_event(response)
    expected = _words([event] if event else [])
    if response is None and said:
        yield skipped(_code(SOURCES), said, "the response was not given", _OURS)
    elif expected and not said:
        yield skipped(_code(SOURCES), expected, "the receipt names none of them", _OURS)
    elif said:
        yield check(_code(SOURCES), expected or "none", said or "none", said == expected, _OURS)


def _chain(receipt: Receipt, previous: Receipt | None) -> Iterator[Check]:
    said = _words(receipt.events(CHAIN))
    if previous is None:
        if said:
            yield skipped(_code(CHAIN), said, "the receipt before this one was not given", _OURS)
        return
    place = next(previous.events(CHAIN), {}).get("sequence")
    expected = f"previous {previous.digest}, sequence {place + 1 if isinstance(place, int) else 'unknown'}"
    yield check(_code(CHAIN), expected, said or "none", said == expected, _OURS)


def _code(kind: str) -> str:
    return f"receipt-{kind.removeprefix('confide.')}"


def _words(events: Iterable[Event]) -> str:
    """Events without their types, in one order."""
    return "; ".join(
        ", ".join(f"{name} {_word(value)}" for name, value in sorted(event.items()) if name != "type")
        for event in events
    )


def _word(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value)


def _time(seconds: int) -> str:
    try:
        return datetime.fromtimestamp(seconds, UTC).isoformat().replace("+00:00", "Z")
    except (OverflowError, ValueError, OSError):
        return f"{seconds} s"
