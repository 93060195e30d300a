"""Who asks, by the licence key that came inside the channel: what a request may use, and what it has used.

The operator's machine carries the key encrypted and keeps its hash alone. It keeps the ledger too: whom it lets in and
how much it grants are its to say, and so is what it writes down. What was read and made is counted in here as well, and
a user may have that count, with a receipt: it says what a bill of this workload's can be about.
"""

import asyncio
import contextlib
import hmac
import logging
import secrets
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from threading import Lock
from typing import Any, Final, TypeVar

from starlette.requests import Request
from starlette.types import Scope

from confide.errors import (
    ApiKeyRefused,
    ConfideError,
    LedgerCopied,
    LedgerCorrupted,
    LedgerUnavailable,
    LicenceRefused,
)
from confide.ledger.keys import MAX_KEY, licence_digest
from confide.ledger.ledger import Ledger
from confide.ledger.store import INPUT, OUTPUT, Unit
from confide.ledger.usage import Account, AccountKey
from confide.net.body import bearer

CHECKPOINT_SECONDS: Final = 5.0
"""How often the ledger is brought up to date."""
_THREADS: Final = 4
_USER: Final = "confide.user"
_Result = TypeVar("_Result")

_log = logging.getLogger(__name__)


class Users:
    """The licensed users of one model. model: its digest."""

    def __init__(self, ledger: Ledger, model: bytes) -> None:
        self._ledger = ledger
        self._model = model
        self._secret = secrets.token_bytes(32)
        self._worker = ThreadPoolExecutor(_THREADS, "users")
        self._renewing: set[AccountKey] = set()
        self._since = int(time.time())
        self._counted: defaultdict[bytes, Counter[Unit]] = defaultdict(Counter)
        self._counting = Lock()

    def __repr__(self) -> str:
        return "Users(<hidden>)"

    async def admit(self, request: Request) -> "User":
        """Whoever's key a request has, if there is anything left to use. Nothing of the request was read for that.

        BudgetExhausted, RateLimited, and what `identify` raises.
        """
        user = await self.identify(request)
        with user.holding(1):
            return user

    async def identify(self, request: Request) -> "User":
        """The same, whatever is left. ApiKeyRefused; LedgerUnavailable where the ledger cannot be asked."""
        key = _key(request)
        try:
            read = await self.ask(lambda: self._ledger.authenticate(key, self._model, INPUT))
            made = await self.ask(lambda: self._ledger.account(read.budget, self._model, OUTPUT))
        except LicenceRefused as error:
            raise ApiKeyRefused(str(error)) from None
        return User(self, {INPUT: read, OUTPUT: made}, licence_digest(key))

    async def ask(self, work: Callable[[], _Result]) -> _Result:
        """What a thread finds out from the ledger, whose database the event loop does not wait for."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._worker, work)
        except (LedgerUnavailable, LedgerCorrupted, LedgerCopied) as error:
            _log.error("Nobody can be answered without the ledger: %s", error)
            raise _uncounted() from None

    def require_alive(self) -> None:
        """LedgerUnavailable while the ledger cannot be followed."""
        if not self._ledger.in_touch:
            raise _uncounted()

    @property
    def over(self) -> bool:
        """Whether nobody can be counted any more before this process is started again."""
        return self._ledger.over

    async def charge(self, account: Account, tokens: int, key_hash: bytes) -> None:
        """Count tokens, durably leased. LicenceRefused, BudgetExhausted, ServerBusy, and as `ask`."""
        ledger = self._ledger
        while not ledger.ready(account, 0, tokens, None):
            await self.ask(lambda: ledger.prepare(account, 0, tokens, None, admitted=True))
        ledger.require_key(account, key_hash)
        low = ledger.charge(account, 0, tokens, None, admitted=True)
        self._count(account, tokens)
        if low:
            self._renew(account)

    def charge_later(self, account: Account, tokens: int) -> None:
        """The same for what nobody waits for any more."""

        def work() -> None:
            try:
                self._ledger.charge(account, 0, tokens, None, admitted=True)
                self._count(account, tokens)
            except ConfideError as error:
                _log.warning("What was read for a client that left is not charged: %s", error)

        with contextlib.suppress(RuntimeError):  # the server is stopping
            self._worker.submit(work)

    def _count(self, account: Account, tokens: int) -> None:
        with self._counting:
            self._counted[account.licence.id][account.unit] += tokens

    def usage(self, account: Account) -> dict[str, Any]:
        """What was counted in here for a licence since this process began, and what the ledger says of it."""
        licence, budget = account.licence, account.budget
        with self._counting:
            counted = self._counted[licence.id]
            tokens = {f"{unit}_tokens": counted[unit] for unit in (INPUT, OUTPUT)}
        return {
            "licence": licence.id.hex(),
            "counted": {"since": self._since, "until": int(time.time())} | tokens,
            "ledger": {
                "tokens_used": budget.used,
                "tokens_left": budget.tokens_left,
                "tokens_per_minute": licence.tokens_per_minute,
                "expires": licence.expires,
            },
        }

    def _renew(self, account: Account) -> None:
        """Have the next lease written while the present one lasts."""
        if account.key in self._renewing:
            return
        self._renewing.add(account.key)

        def work() -> None:
            try:
                self._ledger.renew(account)
            except ConfideError as error:
                _log.warning("A lease could not be renewed: %s", error)
            finally:
                self._renewing.discard(account.key)

        self._worker.submit(work)

    def salt(self, secret: bytes) -> bytes:
        """32 bytes that stand for a user's secret in this process alone."""
        return hmac.digest(self._secret, secret, "sha256")

    async def keep_recording(self) -> None:
        """Until it is cancelled."""
        while True:
            await asyncio.sleep(CHECKPOINT_SECONDS)
            with contextlib.suppress(LedgerUnavailable):  # which `ask` has logged
                await self.ask(self._ledger.checkpoint)

    def close(self) -> None:
        """Record what was answered, and close the ledger."""
        self._worker.shutdown()
        self._ledger.close()


class User:
    """One request's user, as far as the request goes. id: what the line knows them by; tells them from addresses."""

    def __init__(self, users: Users, accounts: dict[Unit, Account], key_hash: bytes) -> None:
        self._users = users
        self._accounts = accounts
        self._key_hash = key_hash
        self.id = f"licence {accounts[INPUT].licence.id.hex()}"

    def __repr__(self) -> str:
        return f"User({self.id})"

    def usage(self) -> dict[str, Any]:
        """See `Users.usage`."""
        return self._users.usage(self._accounts[INPUT])

    def salt(self, given: bytes | None) -> bytes:
        """For what is kept of this user's prompts. given: a secret of their own, for a part of their requests.

        It is of the key that they showed: a ledger that gives the same licence another key finds nothing with it.
        """
        return self._users.salt(self._key_hash + (given or b""))

    @contextmanager
    def holding(self, tokens: int) -> Iterator[None]:
        """Set so many aside for the block. LicenceError and RateLimited where they are not there."""
        try:
            with self._accounts[INPUT].budget.holding(tokens):
                yield
        except LicenceRefused as error:
            raise ApiKeyRefused(str(error)) from None

    async def charge(self, unit: Unit, tokens: int) -> None:
        """Count what was read or made, before anybody has it. Raises what `Users.charge` does."""
        if not tokens:
            return
        try:
            await self._users.charge(self._accounts[unit], tokens, self._key_hash)
        except LicenceRefused as error:
            raise ApiKeyRefused(str(error)) from None

    def charge_later(self, unit: Unit, tokens: int) -> None:
        """Count what was read for an answer that is not waited for any more."""
        self._users.charge_later(self._accounts[unit], tokens)


def with_user(scope: Scope, user: User | None) -> Scope:
    """A request's scope that says whose it is."""
    return {**scope, _USER: user}


def user_of(request: Request) -> User | None:
    """Whose a request is; None where users have no licences."""
    found: User | None = request.scope.get(_USER)
    return found


def _uncounted() -> LedgerUnavailable:
    return LedgerUnavailable(
        "What is answered cannot be counted here at the moment, so nothing is; try again later, or tell the operator."
    )


def _key(request: Request) -> str:
    """What a request shows. ApiKeyRefused for what cannot be a licence's."""
    key = bearer(request.headers)
    if not key:
        raise ApiKeyRefused(
            "A licence key is needed here; give it as your program's API key, or in CONFIDE_LICENCE to `confide chat` "
            "and `confide proxy`."
        )
    if len(key) > MAX_KEY or not key.isascii():
        raise ApiKeyRefused("The server does not know this licence key; check it, or ask for another.")
    return key
