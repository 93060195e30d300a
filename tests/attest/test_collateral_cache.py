from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confide.attest.collateral_cache import (
    ATTEMPTS,
    MAX_BODY_BYTES,
    MAX_HOLD,
    MIN_HOLD,
    CollateralCache,
    Response,
    retry_after,
)
from confide.errors import CollateralUnavailable, ConnectionLost, MalformedEvidence, WrongCollateral

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
URL = "https://vendor.example/crl"
Answer = Response | Exception


class Vendor:
    """Answers in turn, the last one for ever, and has a clock that only its own pauses and tests advance."""

    def __init__(self, *answers: Answer) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.pauses: list[float] = []
        self.now = START

    def fetch(self, url: str) -> Response:
        self.asked.append(url)
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += timedelta(seconds=seconds)

    def cache(self, folder: Path, online: bool = True) -> CollateralCache:
        return CollateralCache(folder, self.fetch if online else None, clock=lambda: self.now, sleep=self.sleep)


def after(hours: float) -> Callable[[Response], datetime]:
    return lambda _: START + timedelta(hours=hours)


def unreadable(_: Response) -> datetime:
    raise MalformedEvidence("Not what it should be; try again later.")


GOOD = Response(200, b"good", {"x-issuer-chain": "chain", "set-cookie": "secret"})
BUSY = Response(503)


def test_is_asked_once_until_the_next_update(tmp_path: Path) -> None:
    vendor = Vendor(GOOD)
    cache = vendor.cache(tmp_path)
    first = cache.get(URL, after(2))
    assert (first.response.body, first.response.headers, first.stale) == (b"good", {"x-issuer-chain": "chain"}, False)
    vendor.now += timedelta(hours=1, minutes=59)
    assert vendor.cache(tmp_path).get(URL, after(2)) == first
    assert len(vendor.asked) == 1
    vendor.now += timedelta(minutes=2)
    cache.get(URL, after(4))
    assert len(vendor.asked) == 2


def test_holds_nothing_for_longer_than_a_day_nor_shorter_than_minutes(tmp_path: Path) -> None:
    vendor = Vendor(GOOD)
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(24 * 365))
    vendor.now += MAX_HOLD
    cache.get(URL, after(-1))
    assert len(vendor.asked) == 2
    vendor.now += MIN_HOLD - timedelta(seconds=1)
    cache.get(URL, after(-1))
    assert len(vendor.asked) == 2


def test_a_clock_set_back_makes_nothing_current(tmp_path: Path) -> None:
    vendor = Vendor(GOOD)
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(2))
    vendor.now -= timedelta(days=1)
    cache.get(URL, after(2))
    assert len(vendor.asked) == 2


@pytest.mark.parametrize("failure", [BUSY, Response(429), ConnectionLost("no route")])
def test_asks_again_with_growing_pauses(tmp_path: Path, failure: Answer) -> None:
    vendor = Vendor(failure, failure, GOOD)
    assert vendor.cache(tmp_path).get(URL, after(2)).response.body == b"good"
    first, second = vendor.pauses
    assert 1 <= first <= 1.5
    assert 2 <= second <= 3


def test_waits_as_long_as_it_is_told(tmp_path: Path) -> None:
    vendor = Vendor(Response(429, headers={"retry-after": "7"}), GOOD)
    vendor.cache(tmp_path).get(URL, after(2))
    assert vendor.pauses == [7]


def test_leaves_a_vendor_alone_who_asks_for_more_patience_than_that(tmp_path: Path) -> None:
    vendor = Vendor(Response(429, headers={"retry-after": "3600"}), GOOD)
    cache = vendor.cache(tmp_path)
    for _ in range(3):
        with pytest.raises(CollateralUnavailable, match="left alone until 2026-03-01 13:00:00"):
            cache.get(URL, after(2))
    assert (len(vendor.asked), vendor.pauses) == (1, [])
    vendor.now += timedelta(hours=1)
    assert cache.get(URL, after(2)).response.body == b"good"


def test_gives_up_and_then_holds_back(tmp_path: Path) -> None:
    vendor = Vendor(BUSY)
    cache = vendor.cache(tmp_path)
    for _ in range(2):
        with pytest.raises(CollateralUnavailable):
            cache.get(URL, after(2))
    assert len(vendor.asked) == ATTEMPTS


def test_stale_answers_are_given_only_where_allowed_and_marked(tmp_path: Path) -> None:
    vendor = Vendor(GOOD, BUSY)
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(1))
    vendor.now += timedelta(days=30)
    with pytest.raises(CollateralUnavailable):
        cache.get(URL, after(1))
    kept = cache.get(URL, after(1), allow_stale=True)
    assert (kept.stale, kept.response.body, kept.fetched) == (True, b"good", START)


def test_works_without_a_network(tmp_path: Path) -> None:
    vendor = Vendor(GOOD)
    vendor.cache(tmp_path).get(URL, after(1))
    offline = vendor.cache(tmp_path, online=False)
    assert not offline.get(URL, after(1)).stale
    vendor.now += timedelta(days=1)
    with pytest.raises(CollateralUnavailable, match="no network may be used"):
        offline.get(URL, after(1))
    assert offline.get(URL, after(1), allow_stale=True).stale
    with pytest.raises(CollateralUnavailable):
        offline.get("https://vendor.example/other", after(1), allow_stale=True)


@pytest.mark.parametrize("answer", [Response(200, bytes(MAX_BODY_BYTES + 1)), Response(200, b"login page")])
def test_something_unusable_never_replaces_something_good(tmp_path: Path, answer: Response) -> None:
    vendor = Vendor(GOOD, answer)
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(1))
    vendor.now += timedelta(days=1)
    with pytest.raises(MalformedEvidence):
        cache.get(URL, unreadable)
    assert cache.get(URL, unreadable, allow_stale=True).response.body == b"good"


def test_a_refusal_is_final_and_no_old_answer_hides_it(tmp_path: Path) -> None:
    vendor = Vendor(GOOD, Response(404))
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(1))
    vendor.now += timedelta(days=1)
    with pytest.raises(WrongCollateral, match="404"):
        cache.get(URL, after(1), allow_stale=True)
    assert len(vendor.asked) == 2


@pytest.mark.parametrize("damage", [b"", b"\xff\xff", b"\x80"])
def test_a_damaged_file_is_fetched_anew(tmp_path: Path, damage: bytes) -> None:
    vendor = Vendor(GOOD)
    vendor.cache(tmp_path).get(URL, after(2))
    [file] = tmp_path.iterdir()
    file.write_bytes(damage or file.read_bytes()[:-1])
    assert vendor.cache(tmp_path).get(URL, after(2)).response.body == b"good"
    assert len(vendor.asked) == 2


def test_one_file_does_not_answer_for_another_address(tmp_path: Path) -> None:
    vendor = Vendor(GOOD, Response(200, b"other"))
    cache = vendor.cache(tmp_path)
    cache.get(URL, after(2))
    [file] = tmp_path.iterdir()
    cache.get(URL + "2", after(2))
    [other] = set(tmp_path.iterdir()) - {file}
    other.write_bytes(file.read_bytes())
    assert cache.get(URL + "2", after(2)).response.body == b"other"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("120", timedelta(seconds=120)),
        ("Sun, 01 Mar 2026 12:00:30 GMT", timedelta(seconds=30)),
        ("Sun, 01 Mar 2020 12:00:30 GMT", timedelta()),
        ("soon", None),
        ("-5", None),
        ("99999999999999", None),
        ("", None),
    ],
)
def test_reads_both_forms_of_retry_after(text: str, expected: timedelta | None) -> None:
    assert retry_after(Response(429, headers={"retry-after": text}), START) == expected
