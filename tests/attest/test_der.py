import pytest
from hypothesis import given
from hypothesis import strategies as st

from confide.attest.der import elements, read_fields
from confide.errors import MalformedEvidence


def test_reads_short_and_long_lengths() -> None:
    content = b"\x04\x01a" + b"\x04\x81\x80" + bytes(128) + b"\x04\x82\x01\x00" + bytes(256)
    assert [len(element.content) for element in elements(content)] == [1, 128, 256]
    assert b"".join(element.whole for element in elements(content)) == content


@pytest.mark.parametrize(
    "content",
    [b"\x04", b"\x04\x02a", b"\x04\x80aa\0\0", b"\x04\x81\x01a", b"\x04\x82\x00\x81" + bytes(129), b"\x1f\x01\x01a",
     b"\x04\x84\x01\0\0\0", b"\x04\x82\x01", b"\x04\0" * 65],
)  # fmt: skip
def test_refuses_what_is_not_der(content: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        elements(content)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused_as_malformed(content: bytes) -> None:
    with pytest.raises(MalformedEvidence):
        read_fields(content)
