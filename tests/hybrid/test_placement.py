"""Groups and placements as text and files: one form, whole models, the smallest largest share, and no strange file."""

import itertools
import os
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.errors import InvalidPlacement
from confide.hybrid.groups import MAX_RANGES, Groups, require_partition
from confide.hybrid.placement import MAX_SERVERS, Placement, share_out

DIGEST = "0f" * 32
NUMBERS = st.sets(st.integers(0, 40), min_size=1)


@given(NUMBERS)
def test_a_set_of_groups_has_one_form(numbers: set[int]) -> None:
    groups = Groups.of(numbers)
    assert list(groups) == sorted(numbers)
    assert groups.last == max(numbers)
    assert Groups.parse(str(groups)) == groups
    assert Groups(groups.ranges) == groups


@given(NUMBERS, NUMBERS)
def test_groups_cover_others(some: set[int], others: set[int]) -> None:
    assert Groups.of(some).cover(Groups.of(others)) == (others <= some)


@pytest.mark.parametrize(
    "text",
    ["", ",", "3-", "-3", "5-3", "0-1,2", "0,0", "4,1", "1.5", "٣", "0-65536", "99999", "0-1-2", "0,", "a", "0\n1"],
    ids=range(16),
)
def test_what_is_no_set_of_groups_is_refused(text: str) -> None:
    with pytest.raises(InvalidPlacement):
        Groups.parse(text)


def test_as_many_ranges_as_a_greeting_holds() -> None:
    Groups.parse(",".join(str(2 * number) for number in range(MAX_RANGES)))
    with pytest.raises(InvalidPlacement):
        Groups.parse(",".join(str(2 * number) for number in range(MAX_RANGES + 1)))
    with pytest.raises(InvalidPlacement):
        Groups.parse("1," * 100_000)


@given(st.text("0123456789-, ٣x", max_size=40))
def test_any_text_is_groups_or_refused(text: str) -> None:
    try:
        groups = Groups.parse(text)
    except InvalidPlacement:
        return
    assert Groups.parse(str(groups)) == groups


@given(st.sets(NUMBERS.map(Groups.of), min_size=1, max_size=4), st.integers(1, 41))
def test_parts_are_a_partition_or_refused(parts: set[Groups], total: int) -> None:
    whole = sorted(itertools.chain.from_iterable(parts)) == list(range(total))
    if whole:
        require_partition(parts, total)
    else:
        with pytest.raises(InvalidPlacement):
            require_partition(parts, total)


@pytest.mark.parametrize("parts", [["0-3"], ["0-1,3", "2"], ["0", "1", "2", "3"]], ids=["one", "two", "four"])
def test_a_partition_is_taken(parts: list[str]) -> None:
    require_partition(map(Groups.parse, parts), 4)


@given(st.lists(st.integers(1, 50), min_size=1, max_size=8), st.integers(1, 9))
def test_the_largest_share_is_as_small_as_it_can_be(sizes: list[int], machines: int) -> None:
    if machines > len(sizes):
        with pytest.raises(InvalidPlacement):
            share_out(sizes, machines)
        return
    shares = share_out(sizes, machines)
    require_partition(shares, len(sizes))
    assert len(shares) == machines
    largest = max(sum(sizes[number] for number in share) for share in shares)
    cuts = itertools.combinations(range(1, len(sizes)), machines - 1)
    best = min(max(sum(sizes[start:end]) for start, end in itertools.pairwise([0, *cut, len(sizes)])) for cut in cuts)
    assert largest == best


@pytest.mark.parametrize("parts", [["0-2", "2-3"], ["0-3", "1-2"], ["0-1", "1-3"]], ids=["end", "within", "begin"])
def test_an_overlap_is_refused(parts: list[str]) -> None:
    with pytest.raises(InvalidPlacement, match="at servers of which one"):
        require_partition(map(Groups.parse, parts), 4)


# -- files -------------------------------------------------------------------------------------------------------


def test_a_file_says_what_was_placed(tmp_path: Path) -> None:
    servers = (("wss://a.example:1", Groups.parse("0-2,7")), ("wss://b.example/chat", Groups.parse("3-6")))
    placement, path = Placement(DIGEST, servers), tmp_path / "placement.toml"
    path.write_bytes(placement.write())
    assert Placement.read(path) == placement


def _document(**changes: object) -> bytes:
    server = [{"address": "wss://a.example:1", "groups": "0-3"}]
    return msgspec.toml.encode({"confide-placement": 1, "model": DIGEST, "server": server} | changes)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff",
        b"confide-placement = 1",
        _document(**{"confide-placement": 2}),
        _document(model="short"),
        _document(server=[]),
        _document(server=[{"address": "wss://a.example:1"}]),
        _document(server=[{"address": "wss://a.example:1", "groups": "3-0"}]),
        _document(server=[{"address": "wss://a.example:1", "groups": "0-3", "insecure_no_tls": True}]),
        _document(server=[{"address": "a", "groups": "0"}] * (MAX_SERVERS + 1)),
        _document(licence="key"),
        b'model = "' + b"x" * (1 << 19) + b'"',
        b"a." * 5000 + b"b = 1",
        b"server = " + b"[" * 2000 + b"]" * 2000,
    ],
    ids=range(14),
)
def test_files_of_another_form_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "placement.toml"
    path.write_bytes(content)
    with pytest.raises(InvalidPlacement):
        Placement.read(path)


def test_a_file_that_others_can_change_or_that_is_none_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "placement.toml"
    with pytest.raises(InvalidPlacement, match="cannot be taken"):
        Placement.read(path)
    path.write_bytes(_document())
    path.chmod(0o666)
    with pytest.raises(InvalidPlacement, match="others on this machine can change it"):
        Placement.read(path)
    os.mkfifo(tmp_path / "pipe", 0o600)
    with pytest.raises(InvalidPlacement):
        Placement.read(tmp_path / "pipe")
