"""Documents of ACI against its byte vectors, and against whoever writes them otherwise."""

import hashlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.receipts import vectors

from confide.errors import MalformedReceipt
from confide.receipts.documents import canonical, digest_of
from confide.receipts.keyset import Keyset, make_keyset, report_data
from confide.receipts.receipt import Receipt, ReceiptKey


def encoded(document: dict[str, Any], **changes: Any) -> bytes:
    return json.dumps(document | changes).encode()


def receipt(**changes: Any) -> Receipt:
    return Receipt.read(encoded(vectors.RECEIPT, **changes))


def test_digest_of_the_keyset() -> None:
    keyset = Keyset.read(encoded(vectors.KEYSET))
    assert keyset.digest == vectors.KEYSET_DIGEST
    assert Keyset.parse(keyset.canonical.hex()).digest == vectors.KEYSET_DIGEST
    assert Keyset.read(json.dumps(vectors.KEYSET, indent=4).encode()).digest == vectors.KEYSET_DIGEST


@pytest.mark.parametrize(
    ("nonce", "expected"),
    [(vectors.NONCE, vectors.REPORT_DATA), (None, vectors.REPORT_DATA_WITHOUT_NONCE)],
)
def test_report_data(nonce: str | None, expected: str) -> None:
    assert report_data(vectors.KEYSET_DIGEST, nonce).hex() == expected + "00" * 32


def test_receipt_and_its_signature() -> None:
    found = receipt()
    assert digest_of(found.signed) == vectors.SIGNED_DIGEST
    key = Keyset.read(encoded(vectors.KEYSET)).signing_key("receipt-1")
    assert key is not None
    assert found.signed_by(key)
    assert digest_of(vectors.REQUEST) == vectors.REQUEST_HASH
    assert digest_of(vectors.RESPONSE) == vectors.RESPONSE_HASH
    assert Receipt.read(found.write()).signed_by(key)


@pytest.mark.parametrize("name", sorted(set(vectors.RECEIPT) - {"signature"}))
def test_every_member_is_signed(name: str) -> None:
    key = Keyset.read(encoded(vectors.KEYSET)).signing_key("receipt-1")
    assert key is not None
    changed: dict[str, Any] = {
        "workload_keyset_digest": "sha256:" + "0" * 64,
        "served_at": 1,
        "event_log": vectors.RECEIPT["event_log"][:1],  # type: ignore[index]
    }
    assert not receipt(**{name: changed.get(name, "other")}).signed_by(key)


def test_a_member_that_is_not_known_is_signed_too() -> None:
    key = Keyset.read(encoded(vectors.KEYSET)).signing_key("receipt-1")
    assert key is not None
    assert not receipt(extra=1).signed_by(key)


@pytest.mark.parametrize(
    "change",
    [
        lambda key: key | {"algo": "ecdsa-p256"},
        lambda key: key | {"public_key": "00" * 32},
        lambda key: key | {"public_key": "zz"},
        lambda key: key | {"public_key": key["public_key"][:-2]},
    ],
)
def test_other_keys_signed_nothing(change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    keyset = Keyset.read(
        encoded(vectors.KEYSET, receipt_signing_keys=[change(vectors.KEYSET["receipt_signing_keys"][0])])
    )  # type: ignore[index]
    key = keyset.signing_key("receipt-1")
    assert key is not None
    assert not receipt().signed_by(key)


def test_a_key_is_named_once() -> None:
    keys = vectors.KEYSET["receipt_signing_keys"]
    keyset = Keyset.read(encoded(vectors.KEYSET, receipt_signing_keys=[*keys, *keys]))  # type: ignore[misc]
    assert keyset.signing_key("receipt-1") is None
    assert keyset.signing_key("receipt-2") is None


def test_what_a_workload_signs() -> None:
    key = ReceiptKey()
    keyset = make_keyset(key.id, key.public, 2_000_000_000, "ab" * 32)
    made = key.sign(
        receipt_id="r",
        chat_id=None,
        model="m",
        keyset_digest=keyset.digest,
        endpoint="/v1/completions",
        method="POST",
        served_at=1_900_000_000,
        events=[{"type": "request.received", "body_hash": vectors.REQUEST_HASH}],
    )
    named = keyset.signing_key(made.fields.key_id)
    assert named is not None
    assert made.signed_by(named)
    assert keyset.document["tls_public_keys"] == [{"spki_sha256": "ab" * 32}]
    assert hashlib.sha256(keyset.canonical).hexdigest() in keyset.digest
    assert key.public.hex() not in repr(key)


BAD = [
    b"",
    b"[]",
    b"null",
    b"\xff",
    b'{"a":1,"a":1}',
    b'{"x":' + b"[" * 100_000,
    encoded(vectors.RECEIPT)[:-1] + b',"x":' + b"[" * 100 + b"]" * 100 + b"}",
    encoded(vectors.RECEIPT) + b" " * (1 << 16),
    encoded(vectors.RECEIPT, served_at=True),
    encoded(vectors.RECEIPT, served_at=2**60),
    encoded(vectors.RECEIPT, more=2**60),
    encoded(vectors.RECEIPT, more=float("nan")),
    encoded(vectors.RECEIPT).replace(b'"rcpt-0001"', b"1e999"),
    encoded(vectors.RECEIPT, more="\ud800"),
    encoded(vectors.RECEIPT, signature="0"),
    encoded(vectors.RECEIPT, workload_keyset_digest=vectors.KEYSET_DIGEST.upper()),
    encoded(vectors.RECEIPT, event_log=[{}]),
    encoded(vectors.RECEIPT, event_log=["x"]),
    encoded(vectors.RECEIPT, event_log=[{"type": "request.received"}]),
    encoded(vectors.RECEIPT, event_log=[{"type": "response.returned", "body_hash": "00"}]),
    encoded(vectors.RECEIPT).replace(b'"key_id"', b'"receipt_id": "other", "key_id"'),
]


@pytest.mark.parametrize("data", BAD, ids=lambda data: data[:40])
def test_what_is_no_receipt(data: bytes) -> None:
    with pytest.raises(MalformedReceipt):
        Receipt.read(data)


@pytest.mark.parametrize("digits", ["", "zz", "00", "7b7d"])
def test_what_is_no_keyset(digits: str) -> None:
    with pytest.raises(MalformedReceipt):
        Keyset.parse(digits)


def test_numbers_are_written_as_rfc_8785_says() -> None:
    assert canonical({"b": 1.0, "a": [1e21, -0.0, "\u20ac"]}) == '{"a":[1e+21,0,"\u20ac"],"b":1}'.encode()
