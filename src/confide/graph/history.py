"""The log of a graph: every version that was in force, each with the signatures that put it there, chained by hashes.

Whoever has the id of a graph, which is the digest of its first version, can tell from its log alone which version is
the newest in it, and that those who could decide about each change did. Knows no network; files only by their bytes.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Final, Literal

import msgspec
import rfc8785

from confide.disk.chained import GENESIS, next_line, read_line
from confide.errors import GraphRefused, InvalidGraph
from confide.graph.manifest import MAX_MANIFEST_BYTES, MAX_OWNERS, Manifest, Version
from confide.packages.manifest import Digest, Record
from confide.packages.owner import OwnerKey, OwnerPublicKey
from confide.packages.signing import Hex64

MAX_LOG_BYTES: Final = 16 << 20
MAX_VERSIONS: Final = 1000
PURPOSE: Final = b"confide graph log 1\0"
"""Before what is hashed of every line."""
_LABELS: Final = {False: b"confide graph change 1\0", True: b"confide graph recovery 1\0"}
"""By whether recovery keys sign: who holds keys of both kinds says which of them speaks."""


class Signature(Record, frozen=True):
    """An owner's over the digest of a manifest, or, with `recovery`, that of whoever holds a recovery key."""

    key: Digest
    signature: Hex64
    recovery: bool = False

    @classmethod
    def make(cls, manifest: Manifest, key: OwnerKey, *, recovery: bool = False) -> "Signature":
        """By the holder of the key."""
        return cls(str(key.public), key.sign(_LABELS[recovery] + bytes.fromhex(manifest.digest)).hex(), recovery)

    def holds(self, digest: str) -> bool:
        """Whether the key made it over this manifest."""
        statement = _LABELS[self.recovery] + bytes.fromhex(digest)
        return OwnerPublicKey.parse(self.key).signed(statement, bytes.fromhex(self.signature))


class Proposal(Record, frozen=True):
    """A version with the signatures that it has so far: a file that goes from owner to owner."""

    format: Literal[1] = msgspec.field(name="confide-graph-proposal")
    manifest: Manifest
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(max_length=2 * MAX_OWNERS)] = ()

    @classmethod
    def read(cls, content: bytes) -> "Proposal":
        """From a file's bytes. InvalidGraph for anything else, and for a manifest that contradicts itself."""
        try:
            if len(content) > 2 * MAX_MANIFEST_BYTES:
                raise ValueError("too large")
            proposal = msgspec.json.decode(content, type=cls)
        except (msgspec.MsgspecError, ValueError, RecursionError):
            raise InvalidGraph("This is no version of a graph; make one with `confide graph init`.") from None
        Version(proposal.manifest)
        return proposal

    def write(self) -> bytes:
        """As a file, for people to read, too."""
        return msgspec.json.format(rfc8785.dumps(msgspec.to_builtins(self))) + b"\n"

    def signed(self, signature: Signature) -> "Proposal":
        """With one signature more, in the place of one of the same key and kind."""
        others = (one for one in self.signatures if (one.key, one.recovery) != (signature.key, signature.recovery))
        return msgspec.structs.replace(self, signatures=(*others, signature))


class _Entry(Record, frozen=True):
    """One line. at: by the clock of whoever applied it, for people."""

    at: Annotated[datetime, msgspec.Meta(tz=True)]
    event: Literal["begun", "changed", "recovered"]
    manifest: Manifest
    signatures: Annotated[tuple[Signature, ...], msgspec.Meta(min_length=1, max_length=MAX_OWNERS)]


@dataclass(frozen=True)
class Change:
    """A line that holds. by: the keys that signed, in their order."""

    at: datetime
    event: str
    version: int
    digest: str
    by: tuple[str, ...]


@dataclass(frozen=True)
class History:
    """A log that holds. id: of the graph. changes: one for each version. head: the hash of its last line.

    content: the bytes of the log.
    """

    id: str
    current: Version
    changes: tuple[Change, ...]
    head: str
    content: bytes = field(default=b"", repr=False)

    @classmethod
    def read(cls, content: bytes, graph: str | None = None) -> "History":
        """From a log's bytes. graph: the id that it must have. InvalidGraph for what is no log.

        GraphRefused where a line is not what was written there, a quorum is missing, or it is another graph's.
        """
        if len(content) > MAX_LOG_BYTES or not 1 <= content.count(b"\n") <= MAX_VERSIONS:
            raise InvalidGraph(
                f"A graph's log has 1 to {MAX_VERSIONS} lines and at most {MAX_LOG_BYTES >> 20} MiB; get it again."
            )
        if not content.endswith(b"\n"):
            raise InvalidGraph("The last line of the graph's log is torn; get it again.")
        first, *later = (line + b"\n" for line in content[:-1].split(b"\n"))
        history = _followed(None, first, graph)
        for raw in later:
            history = _followed(history, raw)
        return replace(history, content=content)

    @classmethod
    def begin(cls, proposal: Proposal, now: datetime) -> "History":
        """The log of a new graph. GraphRefused without the quorum of its own owners."""
        return _added(None, proposal, now)

    def applied(self, proposal: Proposal, now: datetime) -> "History":
        """The log with this version as the next. GraphRefused unless those who may decide that have signed."""
        return _added(self, proposal, now)


def missing(before: Version | None, proposal: Proposal) -> tuple[int, int]:
    """How many signatures of owners, and of recovery keys, a version lacks to take the place of the one before.

    Of a version that nobody can recover, one more recovery key than anybody has.
    """
    deciding = (before or Version(proposal.manifest)).manifest
    counted = {
        recovery: len(_signers(proposal.manifest, proposal.signatures, keys, recovery=recovery))
        for recovery, keys in ((False, deciding.owners), (True, deciding.recovery))
    }
    recovery_quorum = deciding.recovery_quorum if before and deciding.recovery else MAX_OWNERS + 1
    return max(0, deciding.quorum - counted[False]), max(0, recovery_quorum - counted[True])


def _line(before: History | None, proposal: Proposal, now: datetime) -> bytes:
    """The line that puts it in force, with the signatures that count alone."""
    by_owners, by_recovery = missing(before.current if before else None, proposal)
    if by_owners and by_recovery:
        raise GraphRefused(
            f"{by_owners} more of those who own the graph now have to sign this version; `confide graph status` says "
            "whose signatures are missing."
        )
    recovery = bool(by_owners)
    deciding = before.current.manifest if before else proposal.manifest
    keys = deciding.recovery if recovery else deciding.owners
    counted = _signers(proposal.manifest, proposal.signatures, keys, recovery=recovery)
    event: Literal["begun", "changed", "recovered"] = "recovered" if recovery else "changed" if before else "begun"
    entry = _Entry(now, event, proposal.manifest, counted)
    head = before.head if before else GENESIS.hex()
    return next_line(PURPOSE, head, rfc8785.dumps(msgspec.to_builtins(entry))).write()


def _added(before: History | None, proposal: Proposal, now: datetime) -> History:
    raw = _line(before, proposal, now)
    return replace(_followed(before, raw), content=(before.content if before else b"") + raw)


def _followed(before: History | None, raw: bytes, graph: str | None = None) -> History:
    """The log up to and with this line, but for its content. graph: the id that a first line has to have.

    InvalidGraph, GraphRefused. A manifest is looked into once it is known to be one that its owners signed.
    """
    number = len(before.changes) + 1 if before else 1
    line = read_line(raw)
    if line is None or line.hash != next_line(PURPOSE, before.head if before else GENESIS.hex(), line.entry).hash:
        raise GraphRefused(f"Line {number} of the graph's log is not what was written there; get the log again.")
    try:
        entry = msgspec.json.decode(line.entry, type=_Entry)
    except (msgspec.MsgspecError, ValueError, RecursionError):
        raise InvalidGraph(f"Line {number} of the graph's log holds no version of a graph; get it again.") from None
    manifest, digest = entry.manifest, entry.manifest.digest
    if before is None and graph not in (None, digest):
        raise GraphRefused(f"This is the graph {digest[:16]}..., and another one was asked for; check the address.")
    if (manifest.version, manifest.previous) != (number, before.current.digest if before else ""):
        raise GraphRefused(
            f"Version {manifest.version} does not follow version {number - 1}: it was made for another place, or is an "
            "older one. Make it again with `confide graph init --after`."
        )
    signers = _deciders(before, entry)
    current = Version(manifest)
    change = Change(entry.at, entry.event, number, digest, signers)
    earlier = before.changes if before else ()
    return History(before.id if before else digest, current, (*earlier, change), line.hash)


def _deciders(before: History | None, entry: _Entry) -> tuple[str, ...]:
    """The keys of those who put a version in force. GraphRefused where they could not."""
    deciding, recovery = before.current.manifest if before else entry.manifest, entry.event == "recovered"
    if (entry.event == "begun") != (before is None) or (recovery and not (before and deciding.recovery)):
        raise GraphRefused(f"The graph's log says {entry.event!r} where that cannot be; get it again.")
    keys, quorum = (deciding.recovery, deciding.recovery_quorum) if recovery else (deciding.owners, deciding.quorum)
    signers = _signers(entry.manifest, entry.signatures, keys, recovery=recovery)
    if len(signers) < max(1, quorum):
        raise GraphRefused(
            f"Version {entry.manifest.version} has {len(signers)} signatures of those who could put it in force, and "
            f"takes {quorum}; whoever gave you this log is not to be believed."
        )
    return tuple(one.key for one in signers)


def _signers(
    manifest: Manifest, signatures: Iterable[Signature], keys: tuple[str, ...], *, recovery: bool
) -> tuple[Signature, ...]:
    """Those of these keys that hold, one of each key."""
    digest = manifest.digest
    found = {one.key: one for one in signatures if one.recovery is recovery and one.key in keys and one.holds(digest)}
    return tuple(found.values())
