"""Collateral kept on disk, fetched politely, and usable without a network.

This opens no socket: it is given a `Fetcher`. Each answer is kept under the SHA-256 of its address, with the time when
it was fetched and the time that the vendor named for the next update. Until then (and for a day at most) nobody is
asked again; for a few minutes nobody is asked even where the vendor itself serves something outdated.

Nothing here is believed. Signatures and validity are the verifier's to judge, at its own time; answers are only parsed,
so that a login page or half a file does not replace something good. A vendor who says 429 or 503 is left alone for as
long as its Retry-After says (RFC 9110, 10.2.3), and with ever longer pauses where it says nothing.
"""

import hashlib
import random
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path
from threading import Lock
from typing import Final, Protocol
from urllib.parse import urlsplit

import msgspec

from confide.disk.files import replace_file
from confide.errors import (
    CollateralUnavailable,
    ConnectionLost,
    MalformedEvidence,
    WrongCollateral,
)

MAX_BODY_BYTES: Final = 4 << 20
MAX_HEADER_BYTES: Final = 64 << 10
ATTEMPTS: Final = 4
FIRST_PAUSE: Final = timedelta(seconds=1)
PATIENCE: Final = timedelta(seconds=20)
"""How long one pause may be; a vendor who asks for more is not asked again before, and the caller hears of it."""

MIN_HOLD: Final = timedelta(minutes=5)
MAX_HOLD: Final = timedelta(days=1)
_KEPT_HEADER: Final = "-issuer-chain"


class Response(msgspec.Struct, frozen=True):
    """What a vendor answered. headers: by name in lower case."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = {}


class Fetcher(Protocol):
    """Gets one address, whatever its status, and follows nothing; ConnectionLost where there was no whole answer.

    body: an OCSP request to send there (RFC 6960, A.1); without one, nothing is sent but the address.
    """

    def __call__(self, url: str, body: bytes = b"") -> Response: ...


Ends = Callable[[Response], datetime | None]
"""When an answer needs renewal, in the vendor's words; MalformedEvidence where it is not what it should be."""


class Document(msgspec.Struct, frozen=True):
    """One answer. url: with the digest of what was sent, if anything. stale: its time is over, and no new one came."""

    url: str
    response: Response
    fetched: datetime
    ends: datetime | None = None
    stale: bool = False


class CollateralCache:
    """Answers of vendors, in a folder. One request at a time, since the vendors count them."""

    def __init__(
        self,
        folder: Path,
        fetch: Fetcher | None,
        *,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """fetch: None to use what is there and never ask anybody."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder, self._fetch, self._clock, self._sleep = folder, fetch, clock, sleep
        self._lock = Lock()
        self._not_before: dict[str, datetime] = {}

    def get(self, url: str, ends: Ends, *, body: bytes = b"", allow_stale: bool = False) -> Document:
        """The answer from disk while it is current, otherwise a new one. body: the question, where there is one.

        Where none is to be had: the old one, marked as stale, if the caller allows that; CollateralUnavailable if not.
        """
        with self._lock:
            kept = self._load(_name(url, body))
            if kept is not None and self._current(kept):
                return kept
            try:
                return self._renew(url, body, ends)
            except (CollateralUnavailable, MalformedEvidence):
                if kept is None or not allow_stale:
                    raise
                return msgspec.structs.replace(kept, stale=True)

    def newest_evaluation(self, platform: str) -> int | None:
        """The highest evaluation number of Intel's that was learnt for a platform; None if none was."""
        try:
            with self._evaluation(platform).open("rb") as file:
                number = msgspec.msgpack.decode(file.read(16), type=int)
        except (OSError, msgspec.MsgspecError, RecursionError):
            return None
        return number if number > 0 else None

    def learn_evaluation(self, platform: str, number: int) -> None:
        """Keep a number that was verified, unless a higher one is kept already."""
        with self._lock:
            if number > (self.newest_evaluation(platform) or 0):
                with suppress(OSError):  # then it is learnt again when collateral is next fetched
                    replace_file(self._evaluation(platform), msgspec.msgpack.encode(number), mode=0o600)

    def _evaluation(self, platform: str) -> Path:
        return self._folder / f"evaluation-{hashlib.sha256(platform.encode()).hexdigest()}"

    def _current(self, document: Document) -> bool:
        latest = document.fetched + MAX_HOLD
        until = max(min(document.ends or latest, latest), document.fetched + MIN_HOLD)
        return document.fetched <= self._clock() < until  # a clock that was set back makes nothing current

    def _renew(self, url: str, body: bytes, ends: Ends) -> Document:
        answer = self._ask(url, body)
        headers = {name: value for name, value in answer.headers.items() if name.endswith(_KEPT_HEADER)}
        if len(answer.body) > MAX_BODY_BYTES or sum(map(len, headers.values())) > MAX_HEADER_BYTES:
            raise MalformedEvidence(f"{url} answered with more than collateral can be; check the address.")
        response = Response(answer.status, answer.body, headers)
        document = Document(_name(url, body), response, self._clock(), ends(response))
        with suppress(OSError):  # a cache that cannot be written costs a request next time, and nothing else
            replace_file(self._path(document.url), msgspec.msgpack.encode(document), mode=0o600)
        return document

    def _ask(self, url: str, body: bytes) -> Response:
        """Ask until there is an answer, with pauses; a refusal that asking again cannot change is WrongCollateral."""
        if self._fetch is None:
            raise CollateralUnavailable(f"Nothing current is kept of {url}, and no network may be used; allow either.")
        host = urlsplit(url).netloc
        self._respect(host)
        reason = ""
        for attempt in range(ATTEMPTS):
            pause = FIRST_PAUSE * 2**attempt * random.uniform(1, 1.5)  # noqa: S311 - spreads load, keeps no secret
            try:
                answer = self._fetch(url, body) if body else self._fetch(url)
            except ConnectionLost as error:
                reason = str(error)
            else:
                if answer.status == 200:
                    return answer
                if answer.status != 429 and answer.status < 500:
                    raise WrongCollateral(
                        f"{url} answered {answer.status}: the vendor knows no such platform, or the address is wrong."
                    )
                reason = f"it answered {answer.status}"
                pause = retry_after(answer, self._clock()) or pause
            self._wait(host, pause, last=attempt + 1 == ATTEMPTS)
        raise CollateralUnavailable(f"{host} gave no collateral ({reason}); try again later or allow what is stale.")

    def _respect(self, host: str) -> None:
        until = self._not_before.get(host)
        if until is not None and self._clock() < until:
            raise CollateralUnavailable(f"{host} asked to be left alone until {until:%Y-%m-%d %H:%M:%S}; wait for it.")

    def _wait(self, host: str, pause: timedelta, last: bool) -> None:
        if last or pause > PATIENCE:
            self._not_before[host] = self._clock() + pause
        self._respect(host)
        self._sleep(pause.total_seconds())

    def _path(self, url: str) -> Path:
        return self._folder / hashlib.sha256(url.encode()).hexdigest()

    def _load(self, url: str) -> Document | None:
        """What is kept, or None; a damaged file is as good as none."""
        try:
            with self._path(url).open("rb") as file:
                content = file.read(MAX_BODY_BYTES + 2 * MAX_HEADER_BYTES)
            document = msgspec.msgpack.decode(content, type=Document)
        except (OSError, msgspec.MsgspecError, RecursionError):
            return None
        return document if document.url == url and document.fetched.tzinfo is not None else None


def _name(url: str, body: bytes) -> str:
    """Under what an answer is kept: its address, and the digest of the question where there was one."""
    return f"{url} {hashlib.sha256(body).hexdigest()}" if body else url


def retry_after(response: Response, now: datetime) -> timedelta | None:
    """How long the vendor asks to be left alone: seconds or a date (RFC 9110, 10.2.3); None where it does not say."""
    text = response.headers.get("retry-after", "").strip()
    if text.isascii() and text.isdecimal() and len(text) < 8:
        return timedelta(seconds=int(text))
    try:
        date = parsedate_to_datetime(text)
    except ValueError:
        return None
    return max(date.replace(tzinfo=date.tzinfo or UTC) - now, timedelta())
