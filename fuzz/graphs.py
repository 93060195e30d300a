"""Graphs of services: their logs and versions, what services say to each other, and a guard's rules and questions."""

import contextlib
import functools
from collections.abc import Callable
from datetime import UTC, datetime

import msgspec
import rfc8785

from confide.attest.evidence import Evidence, Family
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.statement import Statement
from confide.attest.wire import Attested
from confide.channel.introduction import Introduced, Introduction, decode
from confide.channel.key_release import NonceAnswer
from confide.errors import ConfideError, MalformedReceipt
from confide.graph.evidence import Gathered
from confide.graph.history import History, Proposal, Signature
from confide.graph.manifest import Draft, Version
from confide.graph.verdict import SignedVerdict, Verdict, VerdictKey
from confide.packages.guard import GuardManifest, Rules, parse_guard_manifest, texts_of
from confide.receipts.documents import read_json

from .bench import OWNER

NOW = datetime(2026, 2, 19, tzinfo=UTC)
POLICY = to_toml(SimulatedPolicy())
DRAFT = f"""confide-graph = 1
name = "desk"
entry = "guard"
quorum = 1
owners = ["{OWNER.public}"]
coordinator = "clerk"
promise = "p"
[services]
guard = {{ policy = "p", digest = "{"11" * 32}", asks = ["model"] }}
model = {{ policy = "p", digest = "{"22" * 32}" }}
clerk = {{ policy = "p" }}
"""
PHRASES = ("open sesame", "dynamit*", "a b c d e f g h")


def _version() -> Version:
    read = Draft.parse(DRAFT)
    return read.version(dict.fromkeys(read.files(), POLICY))


def _history() -> History:
    def signed(made: Version) -> Proposal:
        return Proposal(1, made.manifest, (Signature.make(made.manifest, OWNER),))

    first = _version()
    history = History.begin(signed(first), NOW)
    read = Draft.parse(DRAFT)
    return history.applied(signed(read.version(dict.fromkeys(read.files(), POLICY), first)), NOW)


def log(data: bytes) -> None:
    """A graph's log; one that is taken was signed, and says what it said before it was read."""
    history = History.read(data)
    if history.content != data or not all(change.by for change in history.changes):
        raise AssertionError("a log was taken that nobody signed")


def proposal(data: bytes) -> None:
    """A version with signatures, as it goes from owner to owner."""
    read = Proposal.read(data)
    if Proposal.read(read.write()) != read:
        raise AssertionError("a version changed on its way")


def draft(data: bytes) -> None:
    """An owner's draft."""
    read = Draft.parse(data.decode(errors="replace"))
    read.version(dict.fromkeys(read.files(), POLICY))


def messages(data: bytes) -> None:
    """What services say to each other, and to users: each decoder on the same bytes."""
    readers: tuple[Callable[[], object], ...] = (
        lambda: decode(data, Introduction),
        lambda: decode(data, Introduced),
        lambda: decode(data, NonceAnswer),
        lambda: Gathered.decode(data),
        lambda: SignedVerdict.decode(data).require_signed(VerdictKey().public.hex()),
    )
    for read in readers:
        with contextlib.suppress(ConfideError):
            read()


def rules(data: bytes) -> None:
    """A guard's rules, and a text that they are looked for in."""
    made = Rules(parse_guard_manifest(data).phrases)
    made.match(data.decode(errors="replace"))


@functools.cache
def _rules() -> Rules:
    return Rules(PHRASES)


def question(data: bytes) -> None:
    """A question to a guard: of the same words in any order of members the same is said."""
    try:
        asked = read_json(data, "question", 1 << 20)
    except MalformedReceipt:
        return
    found = any(map(_rules().match, texts_of(asked)))
    with contextlib.suppress(MalformedReceipt):
        again = read_json(rfc8785.dumps(dict(asked)), "question", 1 << 20)
        if any(map(_rules().match, texts_of(again))) != found:
            raise AssertionError("a guard reads the same question in two ways")


def _messages() -> list[bytes]:
    attested = Attested.make(Evidence(Family.TDX, b"quote"), Statement("ab" * 32))
    verdict = Verdict(1, "ab" * 32, "cd" * 32, 1, "ef" * 32, POLICY, "01" * 32, NOW)
    said = (
        Introduction("guard", attested),
        Introduced(b"wrapped", 600),
        NonceAnswer("ab" * 32, 120),
        Gathered({"guard": attested}),
        VerdictKey().sign(verdict),
    )
    return [msgspec.json.encode(one) for one in said]


TARGETS = {
    "graph-log": log,
    "graph-proposal": proposal,
    "graph-draft": draft,
    "graph-messages": messages,
    "guard-rules": rules,
    "guard-question": question,
}
SEEDS = {
    "graph-log": lambda: [_history().content],
    "graph-proposal": lambda: [Proposal(1, _version().manifest).write()],
    "graph-draft": lambda: [DRAFT.encode()],
    "graph-messages": _messages,
    "guard-rules": lambda: [msgspec.json.encode(GuardManifest(1, "guard", "desk", "Not here.", PHRASES))],
    "guard-question": lambda: [b'{"messages": [{"role": "user", "content": "Open  Sesame"}], "prompt": [[1]]}'],
}
