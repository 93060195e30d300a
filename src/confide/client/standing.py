"""What is verified of a workload at present: of each replica that answers at its addresses, and which of them is asked.

A balancer may hand any request to any replica behind its address, and each replica has a channel key of its own. A
request is encrypted to one verified replica; any other that gets it can read nothing, says which key it has, and the
request is made anew. What a refusal says is nobody's word: it only leads to another try, or to a verification.
"""

import time
from collections.abc import Callable, Sequence
from threading import Lock
from typing import Final

from confide.client.relying_party import Verified
from confide.errors import (
    PASSING,
    AttestationError,
    ConfideError,
    ConnectionLost,
    GatewayError,
    KeyChanged,
    ServerBusy,
    ServerSilent,
)

MAX_REPLICAS: Final = 16
_ASKS: Final = 2
"""How often a balancer is asked for evidence, for each replica behind it, until the one that is looked for gives it. So
often it may answer a request itself, too, or nobody may."""
_TRIES: Final = 12
"""How often a request is sent for each replica that there may be. A balancer that picks blindly among two misses the
right one so often once in 16 million requests; among sixteen, once in 240,000."""
_REFUSED_SECONDS: Final = 60.0
"""How long a key that nobody gave good evidence for is not looked for again."""
_MAX_REFUSED: Final = 64


class Standing:
    """The replicas that are verified. With one: nothing any more once what has another key there is refused.

    limit: how many there may be, at all addresses. asks: how often one address is asked for what fails. last: the last
    that held, for showing it; `current` is for relying on it.
    """

    def __init__(self, verify: Callable[[str], Verified], urls: Sequence[str], replicas: int = 1) -> None:
        """Verifies one of them for the first time; the others follow as they are met.

        verify: appraises whoever answers at an address; raises where it is not to be trusted. urls: the addresses, at
        least one. replicas: how many a balancer may have behind each; MAX_REPLICAS in all at most, ValueError if not.
        """
        self.limit = replicas * len(urls)
        if not 1 <= self.limit <= MAX_REPLICAS:
            raise ValueError(f"There are 1 to {MAX_REPLICAS} replicas, at all addresses; see `replicas`.")
        self._verify, self._urls, self._per_address = verify, tuple(urls), replicas
        self.asks = 1 if replicas == 1 else _ASKS * replicas
        self._lock = Lock()
        self._searching = Lock()
        self._verified: dict[bytes, Verified] = {}
        """By the id of the key. The one that answered last is last."""
        self._superseded: dict[bytes, Verified] = {}
        """Those whose place others took, for the receipts of answers that they began before, and for nothing else."""
        self._refused: dict[bytes, tuple[float, ConfideError | None]] = {}
        """Keys that nobody gave good evidence for, until when they are not looked for again, and what was wrong."""
        self.last = self.renew()

    @property
    def current(self) -> Verified:
        """The replica that answered last. KeyChanged where there is nothing that may be relied on."""
        with self._lock:
            if not self._verified:
                raise KeyChanged("The workload is not verified any more; nothing is sent until verify() succeeds.")
            return next(reversed(self._verified.values()))

    @property
    def replicas(self) -> tuple[Verified, ...]:
        """Those that may be relied on, as far as they were met; the one that answered last is last."""
        with self._lock:
            return tuple(self._verified.values())

    @property
    def problems(self) -> tuple[ConfideError, ...]:
        """Why others that said to be replicas are not relied on, in the last minute."""
        now = time.monotonic()
        with self._lock:
            return tuple(error for until, error in self._refused.values() if error is not None and now < until)

    def renew(self) -> Verified:
        """Verify anew: one, and with it each that was relied on before and still answers; who answered last stays last.

        Until one holds nothing may be relied on. What is wrong with the first that is refused is raised if none does;
        where none is refused, why none answers.
        """
        with self._searching:
            with self._lock:
                before, superseded = tuple(self._verified.values()), tuple(self._superseded.values())
                self._verified.clear()
                self._superseded.clear()
                self._refused.clear()
            problems = list[ConfideError]()
            for url in self._urls:
                problem = self._search(url)
                if problem is None:
                    break
                problems.append(problem)
            else:
                raise next((one for one in problems if isinstance(one, AttestationError)), problems[0])
            if self.limit == 1:
                self._supersede(*superseded, *before)
                return self.current
            for one in before:
                if self.with_key(one.key.id) is None:
                    self._search(one.url, one.key.id)
                self.answered(one.key.id)
            return self.current

    def find(self, url: str, key_id: bytes) -> None:
        """Verify the replica with this key, if it answers there, and others that do meanwhile. No error if not."""
        with self._searching:
            if self._is_settled(key_id):
                return
            problem = self._search(url, key_id)
            if self.with_key(key_id) is not None or (problem is not None and not _is_refusal(problem)):
                return
            with self._lock:
                self._refused[key_id] = time.monotonic() + _REFUSED_SECONDS, problem
                while len(self._refused) > _MAX_REFUSED:
                    del self._refused[next(iter(self._refused))]

    def elsewhere(self, lost: Sequence[str]) -> Verified | None:
        """One that may be relied on at another address than these: that was met before, or is verified now."""
        with self._searching:
            for url in self._urls:
                if url not in lost and not self.at(url):
                    self._search(url)
            return next((one for one in reversed(self.replicas) if one.url not in lost), None)

    def at(self, url: str) -> int:
        """How many were met at an address, and may be relied on."""
        return sum(one.url == url for one in self.replicas)

    def _search(self, url: str, key_id: bytes | None = None) -> ConfideError | None:
        """Verify whoever answers there, until it is the one with this key, or anybody without one. The last error."""
        problem: ConfideError | None = None
        for _ in range(self.asks):
            try:
                verified = self._verify(url)
            except ConfideError as error:
                problem = error
                if not _is_refusal(error):
                    break
            else:
                self._add(verified)
                if key_id in (None, verified.key.id):
                    return None
        return problem

    def _is_settled(self, key_id: bytes) -> bool:
        with self._lock:
            until, _ = self._refused.get(key_id, (0.0, None))
            return key_id in self._verified or time.monotonic() < until

    def _add(self, verified: Verified) -> None:
        """One too many takes the place of that which has been without an answer or a verification for longest."""
        with self._lock:
            self._verified.pop(verified.key.id, None)
            self._verified[verified.key.id] = self.last = verified
            there = [one for one in self._verified.values() if one.url == verified.url]
            too_many = there[: -self._per_address]
            for one in too_many:
                del self._verified[one.key.id]
        self._supersede(*too_many)

    def _supersede(self, *others: Verified) -> None:
        with self._lock:
            self._superseded |= {one.key.id: one for one in others if one.key.id not in self._verified}
            while len(self._superseded) > MAX_REPLICAS:
                del self._superseded[next(iter(self._superseded))]

    def has_receipts(self, verified: Verified) -> bool:
        """Whether this one may still be asked for the receipt of an answer that it gave."""
        with self._lock:
            return any(verified.key.id in some for some in (self._verified, self._superseded))

    def with_key(self, key_id: bytes) -> Verified | None:
        """The verified replica that has this key."""
        with self._lock:
            return self._verified.get(key_id)

    def answered(self, key_id: bytes) -> None:
        """The next request goes where this answer came from: the conversation's cache is there."""
        with self._lock:
            if (verified := self._verified.pop(key_id, None)) is not None:
                self._verified[key_id] = verified

    def in_place_of(self, other: Verified) -> Verified:
        """Who answers where somebody with another key than this one did: verified now, or by whoever noticed first.

        Where that is refused, nothing is relied on any more until `renew`; what may pass leaves things as they were.
        For one replica alone. KeyChanged where nothing is relied on.
        """
        with self._searching:
            if self.with_key(other.key.id) is not None and (problem := self._search(other.url)) is not None:
                if _is_refusal(problem):
                    with self._lock:
                        self._verified.clear()
                        self._superseded.clear()
                raise problem
            return self.current


def _is_refusal(error: ConfideError) -> bool:
    """Whether evidence was refused, where another replica's may hold. Anything else is the same for all of them."""
    return isinstance(error, AttestationError) and not isinstance(error, PASSING)


class Delivery:
    """One request on its way: whom it is encrypted to, try after try, until an answer begins.

    verified: whom. anew: whether to leave the connection after this try, for a balancer that picks once for each.
    """

    def __init__(self, standing: Standing, to: Verified | None = None) -> None:
        """to: the replica that has to answer; any without. KeyChanged where that one, or nothing, is relied on."""
        current = standing.current
        if to is not None and not standing.has_receipts(to):
            raise KeyChanged("The replica that answered is not verified any more, and is asked nothing; ask again.")
        self.verified = current if to is None else to
        self.anew = False
        self._standing = standing
        self._bound = to is not None
        self._tries = _TRIES * standing.limit
        self._searches = standing.limit
        self._refusals = 0
        self._lost: list[str] = []

    def failed(self, error: ConfideError) -> None:
        """No answer has begun. Raises where that is the end; otherwise the request may be made anew, for `verified`."""
        if self._standing.limit == 1:
            self._taken_over(error)
            return
        self._tries -= 1
        if isinstance(error, KeyChanged):
            self._refused(error)
        elif isinstance(error, ConnectionLost | GatewayError | ServerBusy):
            self._away(error)
        else:
            raise error
        if self._bound:
            if not self._standing.has_receipts(self.verified):
                raise error
        elif self._standing.with_key(self.verified.key.id) is None:  # relied on no more since the last try
            self._go_to(self._standing.current)

    def _taken_over(self, error: ConfideError) -> None:
        """There is one workload, and it may have another key: by a restart, or because a new version took over.

        Whoever has the key that the request was for could have read it. So to the same one nothing is sent twice.
        """
        if not isinstance(error, KeyChanged) or self._bound or not self._searches:
            raise error
        self._searches -= 1
        other = self._standing.in_place_of(self.verified)
        if other.key.id == self.verified.key.id:
            raise error
        self._go_to(other)

    def _refused(self, error: KeyChanged) -> None:
        """A replica got it that it was not for.

        The same key again is right where replicas take turns; that of whoever refused it where the first is not reached
        in as many tries as there are replicas.
        """
        url = self.verified.url
        if self._standing.with_key(error.key_id) is None and self._searches:
            self._searches -= 1
            self._standing.find(url, error.key_id)
        if self._tries <= 0:
            raise self._given_up() from error
        self._refusals += 1
        self.anew = self._refusals > 1
        other = self._standing.with_key(error.key_id)
        if other is not None and not self._bound and self._refusals >= self._standing.at(url):
            self._go_to(other)

    def _away(self, error: ConfideError) -> None:
        """Nobody answered, or had the time. Another address is next; without one a balancer is asked again, for it may
        pick anew. What only one can answer stays with that one.
        """
        self._lost.append(self.verified.url)
        other = None if self._bound else self._standing.elsewhere(self._lost)
        if other is not None:
            self._go_to(other)
        elif isinstance(error, ServerSilent) or self._lost.count(self.verified.url) >= self._standing.asks:
            raise error
        else:
            self._refusals += 1

    def _go_to(self, other: Verified) -> None:
        self.verified, self._refusals, self.anew = other, 0, False

    def _given_up(self) -> ConfideError:
        problems = self._standing.problems
        if problems:
            return problems[-1].with_traceback(None)
        return KeyChanged(
            "The request came again and again to replicas that it was not encrypted to, which could not read it. "
            "Nothing was answered; have the balancer keep a client at one replica, or give the number of replicas."
        )

    def answered(self) -> None:
        """It was taken, and an answer begins."""
        self._standing.answered(self.verified.key.id)
