"""Traces of arrivals: the format as it is published, its bounds, and one that is made up."""

import random
import statistics

import pytest

from confide.errors import BenchmarkError
from confide.evaluate.trace import (
    MAX_ARRIVALS,
    MAX_BYTES,
    MAX_TOKENS,
    Arrival,
    read_trace,
    synthetic_trace,
    write_trace,
)

HEAD = b"TIMESTAMP,ContextTokens,GeneratedTokens\n"


def test_both_years_forms_are_read() -> None:
    older = HEAD + b"2023-11-16 18:17:03.9799600,4808,10\r\n2023-11-16 18:17:04.0319600,3180,8"
    assert read_trace(older) == [Arrival(0.0, 4808, 10), Arrival(0.052, 3180, 8)]
    newer = HEAD + b"2024-05-10 00:00:01+00:00,5,6\n2024-05-10 00:00:00.009930+00:00,3,4\n"
    assert read_trace(newer) == [Arrival(0.0, 3, 4), Arrival(0.99007, 5, 6)]


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "begins with the line"),
        (b"a,b,c\n1,2,3\n", "begins with the line"),
        (HEAD, "1 to"),
        ("TIMESTAMP,Context\u00e9".encode(), "ASCII"),
        (HEAD + b"2023-11-16 18:17:03,1\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,1,2\n2023-11-16 18:17:03,1,2,3\n", "Line 3"),
        (HEAD + b"yesterday,1,2\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03.98x,1,2\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,0,2\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,1,-2\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,1,%d\n" % (MAX_TOKENS + 1), "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,1," + b"9" * 5000, "Line 2"),
        (HEAD + b"\n", "Line 2"),
        (HEAD + b"2023-11-16 18:17:03,1,2\n" * (MAX_ARRIVALS + 1), "1 to"),
        (b"x" * (MAX_BYTES + 1), "at most"),
    ],
    ids=range(15),
)
def test_anything_else_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(BenchmarkError, match=said):
        read_trace(data)


def test_damage_is_refused_or_a_trace() -> None:
    chance = random.Random(1)
    whole = write_trace(synthetic_trace(1, 5))
    for _ in range(2000):
        data = bytearray(whole)
        for _ in range(chance.randint(1, 4)):
            data[chance.randrange(len(data))] = chance.randrange(256)
        try:
            arrivals = read_trace(bytes(data))
        except BenchmarkError:
            continue
        assert all(one.at >= 0 and 1 <= one.context <= MAX_TOKENS for one in arrivals)


def test_one_that_is_made_up_is_the_same_from_each_seed_and_as_long_as_it_says() -> None:
    made = synthetic_trace(7, 4000)
    assert read_trace(write_trace(made)) == made == synthetic_trace(7, 4000)
    assert made != synthetic_trace(8, 4000)
    assert made[-1].at / len(made) == pytest.approx(1, rel=0.1)
    assert statistics.median(one.context for one in made) == pytest.approx(160, rel=0.1)
    assert statistics.median(one.generated for one in made) == pytest.approx(16, rel=0.1)
    assert max(one.context for one in made) > 5 * 160
