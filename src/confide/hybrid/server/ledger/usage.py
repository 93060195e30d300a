"""What is counted while serving: the indexes of a pack that were answered, and the tokens of a licence."""

import hmac
import math
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from confide.errors import BudgetExhausted, DisclosureLimit, IndexUsed, LicenceRefused, RateLimited
from confide.hybrid.server.ledger.journal import Entry
from confide.hybrid.server.ledger.licences import SECONDS_PER_DAY, Licence
from confide.rlwe.parameters import ANSWER_BITS

WARN_DISCLOSED: Final = 0.5
CHECK_VECTOR_TOKENS: Final = 2
"""A licensee's check vectors u^T W disclose about as much of each layer as this many tokens."""
WEIGHT_BITS: Final = 8
TAG_BYTES: Final = 16


def solving_tokens(columns: int) -> float:
    """After how many tokens the answers hold as many bits as a layer's weights, in the worst case.

    A row has 8 bits a weight, and a token discloses 32 bits of it.
    """
    return columns * WEIGHT_BITS / ANSWER_BITS


def licensed_tokens(disclosure: float, columns: int) -> int:
    """The tokens after which a licence of this disclosure limit ends at a layer of so many inputs; never below 0."""
    return max(0, int(disclosure * solving_tokens(columns)) - CHECK_VECTOR_TOKENS)


@dataclass(frozen=True)
class Answerable:
    """What an online request is about to disclose: the pack's size, and what would solve the layer (inf: nothing)."""

    pack_tokens: int
    solving_tokens: float = math.inf


@dataclass
class Account:
    """A licence and what it has used: in all, today, and of each layer group. now: seconds since 1970."""

    licence: Licence
    now: Callable[[], float]
    used: int = 0
    days: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    disclosed: dict[int, int] = field(default_factory=lambda: defaultdict(int))
    dirty: bool = False
    warned: bool = False
    _allowance: float = math.inf
    _allowed_at: float = 0.0

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be asked for; None without a limit."""
        return None if self.licence.tokens is None else max(0, self.licence.tokens - self.used)

    def require_active(self) -> None:
        """LicenceRefused for a licence that is revoked or has expired."""
        state = self.licence.state(self.now())
        if state != "active":
            raise LicenceRefused(f"The licence {self.licence.label} is {state}; ask the model's owner for another.")

    def require(self, tokens: int, group: int, disclosed: int, answerable: Answerable) -> None:
        """Raise a LicenceError, or RateLimited, unless the licence allows this many tokens more."""
        self.require_active()
        left = self.tokens_left
        if left is not None and tokens > left:
            raise BudgetExhausted(
                f"The licence {self.licence.label} has {left} tokens left and {tokens} are needed; "
                "ask the model's owner for more."
            )
        limit = self.licence.disclosure
        if limit is not None and self.share_disclosed(group, answerable, disclosed) > limit:
            raise DisclosureLimit(
                f"With {disclosed} tokens more, the licence {self.licence.label} could solve a layer's weights; "
                "only the model's owner can lift that limit (`confide licence change --lift-disclosure`)."
            )
        self._require_rate(tokens)

    def share_disclosed(self, group: int, answerable: Answerable, more: int = 0) -> float:
        """How much of what solves a layer group is disclosed."""
        if math.isinf(answerable.solving_tokens):
            return 0.0
        return (self.disclosed[group] + CHECK_VECTOR_TOKENS + more) / answerable.solving_tokens

    def _require_rate(self, tokens: int) -> None:
        rate = self.licence.tokens_per_minute
        if rate is None or not tokens:
            return
        now = time.monotonic()
        # A minute's worth may be asked for at once, or a larger prompt when nothing was asked for a minute.
        self._allowance = min(rate, self._allowance + (now - self._allowed_at) * rate / 60)
        self._allowed_at = now
        if self._allowance < min(tokens, rate):
            wait = (min(tokens, rate) - self._allowance) * 60 / rate
            raise RateLimited(
                f"The licence {self.licence.label} allows {rate} tokens a minute; try again in {math.ceil(wait)} s."
            )

    def charge(self, tokens: int, group: int, disclosed: int) -> None:
        """Count what was answered."""
        if tokens:
            self.used += tokens
            self.days[int(self.now() // SECONDS_PER_DAY)] += tokens
            self._allowance -= tokens
        self.disclosed[group] += disclosed
        self.dirty = True


class PackUsage:
    """Which indexes of one pack have been answered, for each layer group, and for which data.

    Indexes below `floor` are used or burned, whatever the rest says. A server that starts again takes
    `floor_after_restart` for it: the journal does not go back further. `rotated_at` is where the mark stood when the
    journal's present segment began. `touched`: when it was last asked for, by the monotonic clock.
    """

    def __init__(self, pack: bytes, licence: bytes, day: int, floor: int, tokens: int) -> None:
        self.pack = pack
        self.licence = licence
        self.day = day
        self.floor = floor
        self.floor_after_restart = floor
        self.leased_to = floor
        self.used_to = floor
        self.rotated_at = floor
        self.touched = 0.0
        self._tokens = tokens
        self._billed = bytearray(tokens)
        self._groups: dict[int, _GroupUsage] = {}

    def is_retry(self, entry: Entry) -> bool:
        """Whether exactly this was answered before."""
        known = self._groups.get(entry.group)
        return known is not None and known.is_retry(entry)

    def require_unused(self, entry: Entry) -> None:
        """IndexUsed where an index is burned, or was answered for other data."""
        if entry.first < self.floor:
            raise IndexUsed(
                f"Mask index {entry.first} is burned: the server's record of it was lost; go on from {self.floor}."
            )
        known = self._groups.get(entry.group)
        if known is not None:
            known.require_unused(entry)

    def unbilled(self, entry: Entry) -> int:
        """How many of its indexes no layer group has answered yet: what the request costs, in tokens."""
        return entry.count - self._billed.count(1, entry.first, entry.first + entry.count)

    def mark(self, entry: Entry) -> None:
        """Remember an answer."""
        group = self._groups.get(entry.group)
        if group is None:
            group = self._groups[entry.group] = _GroupUsage(self._tokens)
        group.mark(entry)
        end = entry.first + entry.count
        self._billed[entry.first : end] = b"\1" * entry.count
        self.used_to = max(self.used_to, end)


class _GroupUsage:
    """A byte an index, and for the first index of every answer how long it was and its tag."""

    def __init__(self, tokens: int) -> None:
        self._used = bytearray(tokens)
        self._counts = bytearray(4 * tokens)
        self._tags = bytearray(TAG_BYTES * tokens)

    def is_retry(self, entry: Entry) -> bool:
        place = 4 * entry.first
        count = int.from_bytes(self._counts[place : place + 4], "little")
        start = TAG_BYTES * entry.first
        return count == entry.count and hmac.compare_digest(self._tags[start : start + TAG_BYTES], entry.tag)

    def require_unused(self, entry: Entry) -> None:
        if self._used.find(1, entry.first, entry.first + entry.count) >= 0:
            raise IndexUsed("A mask index was already answered for other data; it can never be used again.")

    def mark(self, entry: Entry) -> None:
        self._used[entry.first : entry.first + entry.count] = b"\1" * entry.count
        self._counts[4 * entry.first : 4 * entry.first + 4] = entry.count.to_bytes(4, "little")
        start = TAG_BYTES * entry.first
        self._tags[start : start + TAG_BYTES] = entry.tag
