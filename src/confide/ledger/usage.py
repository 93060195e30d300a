"""What is counted while serving: the tokens of a licence, and what its answers disclose of each model's layer groups.

What is disclosed belongs to the model's weights, whatever package they are served from: it is kept by model digest.
"""

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Final

from confide.errors import BudgetExhausted, DisclosureLimit, LicenceRefused, RateLimited
from confide.ledger.licences import Licence
from confide.ledger.store import LAYERS, Unit
from confide.packages.manifest import Group
from confide.rlwe.parameters import ANSWER_BITS

WARN_DISCLOSED: Final = 0.5
CHECK_BITS: Final = 61
"""Of a column, in one set of check vectors."""


def share_disclosed(group: Group, tokens: int, check_sets: int = 1) -> float:
    """How much of what solves a layer group has been disclosed, in the worst case; 1.0 is all of it.

    Every answer has 32 bits about each row. A set of check vectors u^T W mod p has 61 bits a column about all rows
    together. A row is solved after as many bits as its weights have entropy.
    """
    bits = ANSWER_BITS * tokens + CHECK_BITS * check_sets * group.columns / group.rows
    return bits / group.entropy_bits


def bits_disclosed(group: Group, tokens: int, check_sets: int = 1) -> int:
    """The same for all rows together, in bits."""
    return round(share_disclosed(group, tokens, check_sets) * group.entropy_bits * group.rows)


def licensed_tokens(limit: float, group: Group, check_sets: int = 1) -> int:
    """The tokens after which a licence of this disclosure limit ends at a layer group; never below 0."""
    checks = CHECK_BITS * check_sets * group.columns / group.rows
    return max(0, int((limit * group.entropy_bits - checks) / ANSWER_BITS))


@dataclass
class Budget:
    """A licence and the tokens it has used, of whatever models. now: seconds since 1970.

    leased_elsewhere: tokens that other servers may be using meanwhile. held: those that requests will be charged which
    were let in, and have not been answered yet.
    """

    licence: Licence
    now: Callable[[], float]
    used: int = 0
    leased_elsewhere: int = 0
    held: int = 0
    _allowance: float = math.inf
    _allowed_at: float = 0.0

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be asked for; None without a limit."""
        return None if self.licence.tokens is None else max(0, self.licence.tokens - self.used - self.held)

    def require_active(self) -> None:
        """LicenceRefused for a licence that is revoked or has expired."""
        state = self.licence.state(self.now())
        if state != "active":
            raise LicenceRefused(f"The licence {self.licence.label} is {state}; ask the model's owner for another.")

    def require(self, tokens: int) -> None:
        """BudgetExhausted unless so many tokens more are left."""
        left = self.tokens_left
        if left is not None and tokens > left:
            raise BudgetExhausted(
                f"The licence {self.licence.label} has {left} tokens left and {tokens} are needed; "
                "ask the model's owner for more."
            )

    def require_rate(self, tokens: int) -> None:
        """RateLimited where so many tokens more are too many for this minute."""
        rate = self.licence.tokens_per_minute
        if rate is None or not tokens:
            return
        now = time.monotonic()
        # A minute's worth may be asked for at once, or a larger prompt when nothing was asked for a minute.
        self._allowance = min(rate, self._allowance + (now - self._allowed_at) * rate / 60)
        self._allowed_at = now
        missing = min(tokens, rate) + self.held - self._allowance
        if missing > 0:
            wait = missing * 60 / rate
            raise RateLimited(
                f"The licence {self.licence.label} allows {rate} tokens a minute; try again in {math.ceil(wait)} s.",
                wait,
            )

    @contextmanager
    def holding(self, tokens: int) -> Iterator[None]:
        """Set so many aside until the block ends, so that nobody else is let in for the same.

        Raises what `require_active`, `require` and `require_rate` do, where they are not there.
        """
        self.require_active()
        self.require(tokens)
        self.require_rate(tokens)
        self.held += tokens
        try:
            yield
        finally:
            self.held -= tokens

    def charge(self, tokens: int) -> None:
        """Count what is billed."""
        self.used += tokens
        self._allowance -= tokens


AccountKey = tuple[bytes, bytes, Unit]
"""Of the licence, its id; of the model, its digest; and what is counted."""


@dataclass
class Account:
    """What one model has answered to a licence, in one unit, of each layer group. model: its digest.

    lost: tokens of leases that a crash ended; every layer group may have answered them. leased_elsewhere: those that
    every layer group may be answering at other servers meanwhile. peak: the most tokens that any layer group has
    answered, which is what is billed.
    """

    budget: Budget
    model: bytes
    unit: Unit = LAYERS
    lost: int = 0
    leased_elsewhere: int = 0
    answered: Counter[int] = field(default_factory=Counter)
    peak: int = 0
    warned: bool = False

    @property
    def key(self) -> AccountKey:
        """What tells it from others."""
        return self.budget.licence.id, self.model, self.unit

    @property
    def licence(self) -> Licence:
        """As it was read last."""
        return self.budget.licence

    @property
    def used(self) -> int:
        """Tokens billed to the licence, of whatever models."""
        return self.budget.used

    @property
    def tokens_left(self) -> int | None:
        """Tokens that may still be asked for; None without a limit."""
        return self.budget.tokens_left

    def billed(self, group: int, count: int) -> int:
        """What answers of so many tokens of a layer group would cost, in tokens."""
        return max(0, self.answered.get(group, 0) + count - self.peak)

    def require(self, index: int, count: int, group: Group | None, *, admitted: bool = False) -> None:
        """Raise a LicenceError, or RateLimited, unless the licence allows answers of so many tokens more.

        group: what they would disclose something of; None where the weights are public. admitted: see `Ledger.charge`.
        """
        self.budget.require_active()
        tokens = self.billed(index, count)
        self.budget.require(tokens)
        if self._discloses_too_much(index, count, group):
            raise DisclosureLimit(
                f"With {count} tokens more, the licence {self.licence.label} could solve a layer's weights; "
                "only the model's owner can lift that limit (`confide licence change --lift-disclosure`)."
            )
        if not admitted:
            self.budget.require_rate(tokens)

    def _discloses_too_much(self, index: int, count: int, group: Group | None) -> bool:
        limit = self.licence.disclosure
        return group is not None and limit is not None and self.share_disclosed(index, group, count) > limit

    def waits_for_others(self, index: int, count: int, group: Group | None) -> bool:
        """Whether such answers are allowed only if other servers give back what they have leased."""
        if not self.budget.leased_elsewhere:
            return False
        left = self.tokens_left
        if left is not None and self.billed(index, count) > left - self.budget.leased_elsewhere:
            return True
        return self.leased_elsewhere > 0 and self._discloses_too_much(index, count + self.leased_elsewhere, group)

    def answers_left(self, index: int, group: Group) -> int | None:
        """Tokens of a layer group until what they disclose ends the licence; None without a limit."""
        limit = self.licence.disclosure
        if limit is None:
            return None
        licensed = licensed_tokens(limit, group, self.licence.check_sets)
        return max(0, licensed - self.answered.get(index, 0) - self.lost)

    def share_disclosed(self, index: int, group: Group, more: int = 0) -> float:
        """How much of what solves a layer group is disclosed; see the function of this name."""
        return share_disclosed(group, self.answered.get(index, 0) + self.lost + more, self.licence.check_sets)

    def bits_disclosed(self, index: int, group: Group) -> int:
        """See the function of this name."""
        return bits_disclosed(group, self.answered.get(index, 0) + self.lost, self.licence.check_sets)

    def charge(self, group: int, count: int) -> int:
        """Count what is answered; the tokens of it that are billed."""
        tokens = self.billed(group, count)
        self.answered[group] += count
        if tokens:
            self.peak += tokens
            self.budget.charge(tokens)
        return tokens
