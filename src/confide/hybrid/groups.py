"""Which of a model's layer groups: ranges of their numbers in the layer table, as people and both sides write them.

A set of groups has one form, so that two servers with the same groups are found to be replicas by comparing.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Final, Self

from confide.errors import InvalidPlacement
from confide.packages.manifest import MAX_GROUPS

MAX_RANGES: Final = 256
"""Of one server."""
MAX_TEXT: Final = 12 * MAX_RANGES
_RANGE: Final = re.compile(r"([0-9]{1,5})(?:-([0-9]{1,5}))?")


@dataclass(frozen=True)
class Groups:
    """Layer groups by number, from 0. ranges: (first, last) of each range, ascending, with a group between any two.

    Raises InvalidPlacement for ranges of another form, for none, and for more than MAX_RANGES.
    """

    ranges: tuple[tuple[int, int], ...]

    def __post_init__(self) -> None:
        ascending = all(0 <= first <= last < MAX_GROUPS for first, last in self.ranges)
        apart = all(last + 1 < first for (_, last), (first, _) in pairwise(self.ranges))
        if not 1 <= len(self.ranges) <= MAX_RANGES or not ascending or not apart:
            raise InvalidPlacement(
                f"Layer groups are 1 to {MAX_RANGES} ranges of numbers, ascending and apart; write such as 0-47 or "
                "0-11,24-35."
            )

    @classmethod
    def parse(cls, text: str) -> Self:
        """From text such as 0-47, or 0-11,24. Raises InvalidPlacement for any other, also for ranges that touch."""
        found = [_RANGE.fullmatch(part.strip()) for part in text[: MAX_TEXT + 1].split(",")]
        if len(text) > MAX_TEXT or None in found:
            raise InvalidPlacement(f"{text[:100]!r} are no layer groups; write such as 0-47 or 0-11,24-35.")
        return cls(tuple((int(one[1]), int(one[2] or one[1])) for one in found if one is not None))

    @classmethod
    def of(cls, numbers: Iterable[int]) -> Self:
        """Those of these numbers."""
        ranges: list[tuple[int, int]] = []
        for number in sorted(set(numbers)):
            if ranges and ranges[-1][1] + 1 == number:
                ranges[-1] = (ranges[-1][0], number)
            else:
                ranges.append((number, number))
        return cls(tuple(ranges))

    def __str__(self) -> str:
        return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in self.ranges)

    def __iter__(self) -> Iterator[int]:
        return (number for first, last in self.ranges for number in range(first, last + 1))

    @property
    def last(self) -> int:
        """The largest number."""
        return self.ranges[-1][1]

    def cover(self, others: Self) -> bool:
        """Whether all of the others are among these."""
        return set(others) <= set(self)


def require_partition(parts: Iterable[Groups], total: int) -> None:
    """InvalidPlacement unless each of a model's `total` groups is in one of the parts, which all differ."""
    after = 0
    for first, last in sorted(one for part in parts for one in part.ranges):
        if first > after:
            raise _gap(after, first - 1)
        if first < after:
            raise InvalidPlacement(
                f"Layer group {first} is at servers of which one has groups that another has not; servers that share a "
                "group must have all of theirs in common. Say with a placement file what each is asked for."
            )
        after = last + 1
    if after < total:
        raise _gap(after, total - 1)
    if after > total:
        raise InvalidPlacement(
            f"The model has {total} layer groups, and a server is to have number {after - 1}; take a placement that "
            "was made for this model."
        )


def _gap(first: int, last: int) -> InvalidPlacement:
    return InvalidPlacement(
        f"None of the servers has the layer groups {Groups(((first, last),))} of this model; give the address of one "
        "that has them."
    )
