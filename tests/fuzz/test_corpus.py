"""Every decoder of outside bytes, on kept inputs, on mutations of them and on anything: no crash, no hang, no flood."""

import contextlib
import functools
import logging
import tracemalloc
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import msgspec
import pytest
from fuzz.targets import CORPUS, corpus, targets
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from confide.errors import ConfideError
from confide.hybrid import wire
from confide.hybrid.server.record import read_record
from confide.packages.manifest import parse_manifest
from confide.packages.owner import OwnerKey
from confide.packages.trusted_owners import parse_owners

NAMES = sorted(path.name for path in CORPUS.iterdir())
EXAMPLES = 50
DEADLINE = timedelta(seconds=5)
"""A hang, not a slow machine."""
CLAIMED = (1 << 32) - 1


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    """What servers log of hostile clients is not what is looked at here."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


@functools.cache
def _known(name: str) -> list[bytes]:
    return corpus(name)


ROUNDS, NUMBERS, SHORT = st.integers(1, 3), st.integers(0, (1 << 14) - 1), st.binary(max_size=20)
"""Made once: to make a strategy takes longer than to draw from it."""


@st.composite
def mutations(draw: st.DrawFn, name: str) -> bytes:
    """A kept input with something flipped, cut, put in, repeated, or taken from another one."""

    def other() -> bytes:
        return _known(name)[draw(NUMBERS) % len(_known(name))]

    content = other()
    for _ in range(draw(ROUNDS)):
        start, end = sorted(draw(NUMBERS) % (len(content) + 1) for _ in range(2))
        match draw(NUMBERS) % 5:
            case 0:
                part = b""
            case 1:
                part = draw(SHORT)
            case 2:
                part = content[start:end] * 2
            case 3:
                part = bytes(byte ^ 1 for byte in content[start:end])
            case _:
                part = other()
        content = (content[:start] + part + content[end:])[: 1 << 14]
    return content


def test_every_target_has_a_corpus() -> None:
    assert set(targets()) == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_kept_inputs_are_handled(name: str) -> None:
    for content in _known(name):
        targets()[name](content)


@pytest.mark.parametrize("name", NAMES)
def test_anything_is_handled(name: str) -> None:
    target = targets()[name]

    @settings(max_examples=EXAMPLES, deadline=DEADLINE, suppress_health_check=list(HealthCheck))
    @given(st.one_of(st.binary(max_size=300), mutations(name), mutations(name)))
    def check(content: bytes) -> None:
        target(content)

    target(_known(name)[0])  # what is made at first use takes its time here
    check()


def _allocated(decode: functools.partial[object]) -> int:
    """The most bytes that a call holds at a time."""
    with contextlib.suppress(ConfideError):
        decode()  # what is made at first use
    tracemalloc.start()
    try:
        with contextlib.suppress(ConfideError):
            decode()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("head", [b"\xdd", b"\xdf", b"\xc6", b"\xdb", b"\xc9"], ids=lambda head: head.hex())
@pytest.mark.parametrize("before", [b"", b"\x92\x04", b"\x97\x04\x00\x00\x00\x01", b"\x93\x03\x00", b"\x92\x05"])
def test_a_frame_that_claims_a_huge_length_allocates_nothing(head: bytes, before: bytes) -> None:
    frame = before + head + CLAIMED.to_bytes(4, "big") + bytes(8)
    for decode in (wire.decode_from_client, wire.decode_from_server):
        assert _allocated(functools.partial(decode, frame)) < 1 << 16


def test_a_payload_is_not_copied() -> None:
    frame = wire.encode(wire.Ahead(0, memoryview(bytes(wire.MAX_FRAME))))
    assert _allocated(functools.partial(wire.decode_from_client, frame)) < 1 << 16


def test_a_record_that_claims_a_huge_message_allocates_nothing(tmp_path: Path) -> None:
    path = tmp_path / "record"
    path.write_bytes(CLAIMED.to_bytes(4, "little") + bytes(8))
    assert _allocated(functools.partial(lambda: list(read_record(path)))) < 1 << 20


@pytest.mark.parametrize("content", [b"[" * (1 << 16), b'{"a":' * (1 << 14), b'{"format":' + b"9" * (1 << 16)])
def test_a_layer_table_allocates_in_proportion(content: bytes) -> None:
    assert _allocated(functools.partial(parse_manifest, Path("manifest.json"), content)) < 8 * len(content)


def test_trusted_owners_allocate_in_proportion() -> None:
    content = b"\xff\n" * (1 << 16)
    assert _allocated(functools.partial(parse_owners, content)) < 64 * len(content)


def test_an_owner_key_file_is_read_to_its_limit_only(tmp_path: Path) -> None:
    path = tmp_path / "owner.key"
    path.touch(mode=0o600)
    with path.open("r+b") as file:
        file.truncate(1 << 32)
    assert _allocated(functools.partial(OwnerKey.read, path)) < 1 << 20


def test_a_deep_frame_is_no_deep_recursion() -> None:
    frame = msgspec.msgpack.encode([1, 2]) + b"\x91" * (1 << 20)
    assert _allocated(functools.partial(wire.decode_from_client, frame)) < 1 << 16
