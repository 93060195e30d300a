"""A client's own receipts: what verifying one finds, and whose word it is."""

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest

from confide.attest.check import Outcome
from confide.attest.configuration import SamplingDefaults
from confide.disk.files import create_file
from confide.errors import ClientKeyError, MalformedReceipt
from confide.receipts.client import (
    CLIENT_VERSION,
    STATEMENT,
    ClientReceipt,
    ClientReceiptFields,
    ClientReceiptResult,
    Generation,
    Link,
    ModelUsed,
    Package,
    ProtocolUsed,
    SamplingUsed,
    verify_client_receipt,
)
from confide.receipts.client_key import FILE_NAME, ClientKey, signed_by
from confide.receipts.documents import digest_of
from confide.receipts.events import sampling_event

REQUEST, RESPONSE = b'{"prompt":"p","temperature":0.5}', b"answer"
DEFAULTS = SamplingDefaults(0.0, 1.0, 50, 64)
SAMPLED = sampling_event(REQUEST, DEFAULTS)
assert SAMPLED is not None
FIELDS = ClientReceiptFields(
    api_version=CLIENT_VERSION,
    statement=STATEMENT,
    receipt_id="r",
    made_at=1_900_000_000,
    endpoint="generate",
    server="wss://layers.example:8470",
    model=ModelUsed("small", "aa" * 32, "bb" * 32),
    protocol=ProtocolUsed("rlwe-3", 3, "private-weights", "cc" * 32, 2, 2048, 48, 32, 61),
    licence=None,
    generations=(Generation(3, 16, 4, 16, 1000, 2000, 16, 62),),
    disclosed_bits=16000,
    sampling=SamplingUsed(SAMPLED["digest"], DEFAULTS),
    request_hash=digest_of(REQUEST),
    response_hash=digest_of(RESPONSE),
    chain=Link("s", 1, None),
    public_key="00" * 32,
)
PACKAGE = Package("aa" * 32, "bb" * 32, "cc" * 32)


@pytest.fixture(scope="module")
def key(tmp_path_factory: pytest.TempPathFactory) -> ClientKey:
    return ClientKey.open(tmp_path_factory.mktemp("home"))


def made(key: ClientKey, **changes: Any) -> ClientReceipt:
    return ClientReceipt.sign(key, msgspec.structs.replace(FIELDS, **{"public_key": key.public, **changes}))


def verified(key: ClientKey, receipt: ClientReceipt, **given: Any) -> ClientReceiptResult:
    everything = {"client_key": key.public, "request": REQUEST, "response": RESPONSE, "package": PACKAGE}
    return verify_client_receipt(receipt, **{**everything, **given})


def failed(result: ClientReceiptResult) -> set[str]:
    return {one.code for one in result.failures}


def skipped(result: ClientReceiptResult) -> set[str]:
    return {one.code for one in result.checks if one.outcome is Outcome.SKIPPED}


def test_everything_at_hand(key: ClientKey) -> None:
    first = made(key)
    result = verified(key, first)
    assert result.verified
    assert skipped(result) == {"client-server"}  # nothing can stand in for what no server signs
    assert result.verdict().startswith("The client's own statement")
    assert all(one.clause for one in result.checks)
    second = made(key, receipt_id="s", chain=Link("s", 2, first.digest))
    assert verified(key, second, previous=first).verified
    assert "client-chain" in skipped(verified(key, second))
    assert ClientReceipt.read(second.write()).digest == second.digest
    assert failed(verified(key, first, client_key="00" * 32)) == {"client-key"}


@pytest.mark.parametrize(
    ("missing", "code"),
    [
        ("client_key", "client-key"),
        ("request", "client-request"),
        ("request", "client-sampling"),
        ("response", "client-response"),
        ("package", "client-model"),
    ],
)
def test_what_is_missing_is_skipped_and_never_passed(key: ClientKey, missing: str, code: str) -> None:
    result = verified(key, made(key), **{missing: None})
    assert code in skipped(result)
    assert not result.failures
    assert result.verified == (missing != "client_key")


@pytest.mark.parametrize(
    ("change", "code"),
    [
        ({"api_version": "aci/1"}, "client-version"),
        ({"statement": "The server signed all of this."}, "client-statement"),
        ({"generations": ()}, "client-answers"),
        ({"generations": (Generation(3, 16, 4, 16, 1000, 2000, 16, 1),)}, "client-answers"),
        ({"model": ModelUsed("small", "ab" * 32, "bb" * 32)}, "client-model"),
        ({"model": ModelUsed("small", "aa" * 32, "ab" * 32)}, "client-model"),
        ({"sampling": SamplingUsed("sha256:" + "00" * 32, DEFAULTS)}, "client-sampling"),
        ({"request_hash": "sha256:" + "00" * 32}, "client-request"),
        ({"response_hash": "sha256:" + "00" * 32}, "client-response"),
        ({"chain": Link("s", 1, "sha256:" + "00" * 32)}, "client-chain"),
    ],
    ids=range(10),
)
def test_what_a_signed_receipt_may_say_wrongly(key: ClientKey, change: dict[str, Any], code: str) -> None:
    assert failed(verified(key, made(key, **change))) == {code}


@pytest.mark.parametrize("chain", [Link("s", 3, ""), Link("s", 2, "sha256:" + "00" * 32), Link("other", 2, "")])
def test_another_place_in_the_chain(key: ClientKey, chain: Link) -> None:
    first = made(key)
    second = made(key, chain=msgspec.structs.replace(chain, previous=chain.previous or first.digest))
    assert failed(verified(key, second, previous=first)) == {"client-chain"}


def test_every_member_is_signed(key: ClientKey, tmp_path: Path) -> None:
    document = json.loads(made(key).write())
    for name in document:
        if name in ("signature", "api_version", "statement"):
            continue
        changed = dict(document)
        value = changed[name]
        changed[name] = value + 1 if isinstance(value, int) else {
            "receipt_id": "other", "endpoint": "chat", "server": "ws://elsewhere", "licence": "sha256:" + "11" * 32,
            "generations": value * 2 if isinstance(value, list) else value, "sampling": None,
            "request_hash": "sha256:" + "22" * 32, "response_hash": "sha256:" + "22" * 32,
            "public_key": ClientKey.open(tmp_path).public,
            "model": {**document["model"], "name": "other"}, "protocol": {**document["protocol"], "version": 4},
            "chain": {**document["chain"], "session": "other"},
        }[name]  # fmt: skip
        assert "client-signature" in failed(verified(key, ClientReceipt.of(changed))), name


def test_a_signature_is_for_one_kind_of_statement(key: ClientKey) -> None:
    receipt = made(key)
    assert signed_by(key.public, b"confide client receipt 1", receipt.signed, receipt.fields.signature)
    assert not signed_by(key.public, b"confide audit checkpoint 1", receipt.signed, receipt.fields.signature)
    assert not signed_by("zz", b"confide client receipt 1", receipt.signed, receipt.fields.signature)


@pytest.mark.parametrize(
    "change",
    [
        {"more": 1},
        {"model": {"name": "x"}},
        {"generations": [{}]},
        {"signature": "00"},
        {"disclosed_bits": 2**53},
        {"disclosed_bits": -1},
        {"chain": {"session": "s", "sequence": 0, "previous": None}},
    ],
    ids=range(7),
)
def test_what_is_no_receipt(key: ClientKey, change: dict[str, Any]) -> None:
    document = json.loads(made(key).write())
    with pytest.raises(MalformedReceipt):
        ClientReceipt.read(json.dumps(document | change).encode())


def test_the_key_stays_and_is_its_users_alone(tmp_path: Path) -> None:
    first = ClientKey.open(tmp_path)
    path = tmp_path / FILE_NAME
    assert path.stat().st_mode & 0o077 == 0
    assert ClientKey.open(tmp_path).public == first.public
    content = path.read_bytes()
    assert content.split()[-1].decode() not in repr(first)
    path.chmod(0o640)
    with pytest.raises(ClientKeyError, match="chmod 600"):
        ClientKey.open(tmp_path)
    for wrong in (b"", content[:-2], content + b"x", content.replace(b"client", b"others"), b"\xff" * len(content)):
        path.unlink()
        create_file(path, wrong)
        with pytest.raises(ClientKeyError, match="holds no key"):
            ClientKey.open(tmp_path)
    path.unlink()
    path.mkdir()
    with pytest.raises(ClientKeyError):
        ClientKey.open(tmp_path)
    with pytest.raises(ClientKeyError, match="cannot be made"):
        ClientKey.open(tmp_path / "nowhere")
