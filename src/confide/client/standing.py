"""What is verified of a workload at present: of each replica that answers at its address, and which of them is asked.

A balancer may hand any request to any replica, and each replica has a channel key of its own. A request is encrypted to
one verified replica; any other that gets it can read nothing, says which key it has, and the request is made anew.
What a refusal says is nobody's word: it only leads to another try, or to a verification.
"""

import time
from collections.abc import Callable
from threading import Lock
from typing import Final

from confide.client.relying_party import Verified
from confide.errors import AttestationError, ConfideError, KeyChanged

MAX_REPLICAS: Final = 16
_ASKS: Final = 2
"""How often evidence is asked for, for each replica that there may be, until the one that is looked for gives it."""
_TRIES: Final = 12
"""How often a request is sent for each replica that there may be. A balancer that picks blindly among two misses the
right one so often once in 16 million requests; among sixteen, once in 240,000."""
_REFUSED_SECONDS: Final = 60.0
"""How long a key that nobody gave good evidence for is not looked for again."""
_MAX_REFUSED: Final = 64


class Standing:
    """The replicas that are verified. With one: nothing any more once it has another key, until it is verified again.

    last: the last that held, for showing it; `current` is for relying on it.
    """

    def __init__(self, verify: Callable[[], Verified], replicas: int = 1) -> None:
        """Verifies one of them for the first time.

        verify: appraises whichever the balancer picks; raises where it is not to be trusted. replicas: how many there
        may be, at most MAX_REPLICAS; ValueError otherwise.
        """
        if not 1 <= replicas <= MAX_REPLICAS:
            raise ValueError(f"replicas is from 1 to {MAX_REPLICAS}.")
        self.limit = replicas
        self._verify = verify
        self._lock = Lock()
        self._searching = Lock()
        self._verified: dict[bytes, Verified] = {}
        """By the id of the key. The one that answered last is last."""
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
        """Verify anew. Until that has succeeded, nothing may be relied on; other replicas follow as they are met."""
        with self._searching:
            with self._lock:
                self._verified.clear()
                self._refused.clear()
            for left in reversed(range(self._asks)):
                try:
                    verified = self._verify()
                except AttestationError:
                    if not left:
                        raise
                else:
                    self._add(verified)
                    return verified
            raise AssertionError("There is at least one attempt.")

    def find(self, key_id: bytes) -> None:
        """Verify the replica with this key, if there is one, and others that answer meanwhile. No error if not."""
        with self._searching:
            if self._is_settled(key_id):
                return
            problem: ConfideError | None = None
            for _ in range(self._asks):
                try:
                    verified = self._verify()
                except AttestationError as error:
                    problem = error
                    continue
                except ConfideError:
                    break  # nobody there, or too busy: what is verified already can be asked all the same
                self._add(verified)
                if verified.key.id == key_id:
                    return
            with self._lock:
                self._refused[key_id] = time.monotonic() + _REFUSED_SECONDS, problem
                while len(self._refused) > _MAX_REFUSED:
                    del self._refused[next(iter(self._refused))]

    @property
    def _asks(self) -> int:
        return 1 if self.limit == 1 else _ASKS * self.limit

    def _is_settled(self, key_id: bytes) -> bool:
        with self._lock:
            until, _ = self._refused.get(key_id, (0.0, None))
            return key_id in self._verified or time.monotonic() < until

    def _add(self, verified: Verified) -> None:
        """One too many takes the place of that which has been without an answer or a verification for longest."""
        with self._lock:
            self._verified.pop(verified.key.id, None)
            self._verified[verified.key.id] = self.last = verified
            while len(self._verified) > self.limit:
                del self._verified[next(iter(self._verified))]

    def with_key(self, key_id: bytes) -> Verified | None:
        """The verified replica that has this key."""
        with self._lock:
            return self._verified.get(key_id)

    def answered(self, verified: Verified) -> None:
        """The next request goes where this answer came from: the conversation's cache is there."""
        with self._lock:
            if self._verified.get(verified.key.id) is verified:
                del self._verified[verified.key.id]
                self._verified[verified.key.id] = verified

    def withdraw(self, verified: Verified) -> None:
        """Rely on this no more. A verification that came later stands."""
        with self._lock:
            if self._verified.get(verified.key.id) is verified:
                del self._verified[verified.key.id]


class Delivery:
    """One request on its way: whom it is encrypted to, try after try, until that replica gets it.

    verified: whom. anew: whether to leave the connection after this try, for a balancer that picks once for each.
    """

    def __init__(self, standing: Standing, to: Verified | None = None) -> None:
        """to: the replica that has to answer; any without. KeyChanged where nothing is verified."""
        current = standing.current
        self.verified = current if to is None else to
        self.anew = False
        self._standing = standing
        self._bound = to is not None
        self._tries = _TRIES * standing.limit
        self._searches = standing.limit
        self._refusals = 0
        self._refuser: bytes | None = None

    def refused(self, error: KeyChanged) -> None:
        """A replica got it that it was not for. Raises where that is the end; otherwise it may be sent again.

        The same key again is right where replicas take turns; the refusing one's where it refuses twice, or where the
        first is not reached in as many tries as there are replicas.
        """
        if self._standing.limit == 1:
            self._standing.withdraw(self.verified)
            raise error
        self._tries -= 1
        if self._standing.with_key(error.key_id) is None and self._searches:
            self._searches -= 1
            self._standing.find(error.key_id)
        if self._tries == 0:
            raise self._given_up() from error
        self.anew = error.key_id == self._refuser
        self._refuser = error.key_id
        self._refusals += 1
        other = self._standing.with_key(error.key_id)
        if self._bound or other is None:
            return
        if self.anew or self._refusals >= max(2, len(self._standing.replicas)):
            self.verified, self._refusals = other, 0

    def _given_up(self) -> ConfideError:
        problems = self._standing.problems
        if problems:
            return problems[-1]
        return KeyChanged(
            "The request came again and again to replicas that it was not encrypted to, which could not read it. "
            "Nothing was answered; have the balancer keep a client at one replica, or give the number of replicas."
        )

    def answered(self) -> None:
        """It was taken, and an answer begins."""
        self._standing.answered(self.verified)
