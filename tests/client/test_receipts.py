"""`session.receipt()`: for exactly what was asked and answered, whatever the workload would like to show instead."""

import asyncio
import base64
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving

import confide
from confide.attest.check import Outcome
from confide.attest.configuration import Egress
from confide.attest.simulated import SimulatedTee
from confide.cli.app import main
from confide.client.attested import verify_workload
from confide.client.enclave import EnclaveSession
from confide.client.receipts import ReceiptedTransport
from confide.client.receipts import Receipts as AnswersReceipts
from confide.client.relying_party import RelyingParty, Verified
from confide.client.transport import VERIFIED, EncryptedTransport
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.api.receipts import Receipted, Receipts
from confide.enclave.configuration import configuration_with, own_configuration
from confide.enclave.ra_tls import RaTls
from confide.enclave.workload import Workload
from confide.errors import MalformedReceipt, ReceiptMissing, ReceiptRefused, UnknownReceipt
from confide.receipts.receipt import WITH_ANSWER, Receipt, ReceiptKey
from confide.receipts.verify import ReceiptResult


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tee")


@pytest.fixture(scope="module")
def tee(folder: Path) -> SimulatedTee:
    return SimulatedTee.create(folder)


@pytest.fixture
def workload(tee: SimulatedTee) -> Workload:
    configuration = configuration_with(own_configuration(), FakeEngine(), Egress.NONE)  # type: ignore[arg-type]
    return Workload(tee, tee.collateral, model_digest="ab" * 32, configuration=configuration)


@pytest.fixture
def session(workload: Workload, folder: Path) -> Iterator[EnclaveSession]:
    with serving(public_app(workload, Serving(FakeEngine()))) as url:  # type: ignore[arg-type]
        with confide.connect(url, simulated_root=folder / "root.pem") as session:
            assert isinstance(session, EnclaveSession)
            yield session


def all_passed(result: ReceiptResult) -> bool:
    open_ends = {one.code for one in result.checks if one.outcome is Outcome.SKIPPED}
    return result.verified and open_ends == {"receipt-chain"}


def test_of_an_answer_and_of_a_stream(session: EnclaveSession) -> None:
    with pytest.raises(UnknownReceipt):
        session.receipt()
    session.chat("hello", temperature=0.5)
    first = session.receipt()
    assert all_passed(first)
    assert "".join(session.chat("hello", stream=True))
    second = session.receipt()
    assert all_passed(second)
    chain = next(second.receipt.events("confide.chain"))
    assert chain["previous"] == first.receipt.digest
    session.generate("hello")
    assert all_passed(session.receipt())


def test_what_came_with_an_answer_is_not_fetched_and_counts_as_much(
    session: EnclaveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    real = EncryptedTransport.handle_request

    def noted(self: EncryptedTransport, request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return real(self, request)

    monkeypatch.setattr(EncryptedTransport, "handle_request", noted)
    session.model  # noqa: B018 - asked for now
    asked.clear()
    session.chat("hello")
    assert all_passed(session.receipt())
    assert asked == ["POST /v1/chat/completions"]
    asked.clear()
    with session.openai.completions.create(model=session.model, prompt="hello", stream=True) as stream:
        assert list(stream)
    assert all_passed(session.receipt())
    assert [one.split("/")[0] for one in asked] == ["POST ", "GET "]


@pytest.mark.parametrize("given", ["", "!", "e30=", "bm90IGpzb24=", "another"])
def test_what_came_with_an_answer_and_is_not_its_receipt_is_refused(
    session: EnclaveSession, monkeypatch: pytest.MonkeyPatch, given: str
) -> None:
    """An empty one is none, and is fetched; of everything else nothing is believed."""
    session.chat("something else")
    before = base64.b64encode(session.receipt().receipt.write()).decode()
    real = EncryptedTransport.handle_request

    def changed(self: EncryptedTransport, request: httpx.Request) -> httpx.Response:
        answer = real(self, request)
        if request.method == "POST":
            answer.headers[WITH_ANSWER] = before if given == "another" else given
        return answer

    monkeypatch.setattr(EncryptedTransport, "handle_request", changed)
    if not given:
        session.chat("hello")
        assert all_passed(session.receipt())
        return
    with pytest.raises((ReceiptRefused, MalformedReceipt)):
        session.chat("hello")
    with pytest.raises((ReceiptRefused, MalformedReceipt)):
        session.receipt()


def test_of_an_asynchronous_answer(session: EnclaveSession) -> None:
    async def ask() -> None:
        await session.async_openai.embeddings.create(model="echo", input="hello")

    asyncio.run(ask())
    result = session.receipt()
    assert all_passed(result)
    assert result.receipt.fields.endpoint == "/v1/embeddings"


def test_of_a_stream_that_was_stopped(session: EnclaveSession) -> None:
    answer = session.chat("word " * 200, stream=True)
    next(answer)
    answer.close()
    with pytest.raises(UnknownReceipt, match="stopped"):
        session.receipt()


def test_the_end_of_a_stream_comes_once_its_receipt_holds(
    session: EnclaveSession, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign: Callable[..., Receipt] = ReceiptKey.sign
    monkeypatch.setattr(ReceiptKey, "sign", lambda self, **said: sign(self, **said | {"model": "other", "events": []}))
    whole: list[str] = []
    with pytest.raises(ReceiptRefused, match="receipt-events"):
        whole.extend(session.chat("hello", stream=True))
    assert whole  # as it came; what it lacks is its end

    async def ask() -> None:
        await session.async_openai.completions.create(model="echo", prompt="hello")

    with pytest.raises(ReceiptRefused):
        asyncio.run(ask())


class Parts(httpx.BaseTransport):
    """Answers with a stream in these parts, whose receipt is missing."""

    def __init__(self, verified: Verified, parts: list[bytes]) -> None:
        self._verified, self._parts = verified, parts

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(404)
        headers = {"content-type": "text/event-stream", "confide-receipt": "ab" * 24}
        return httpx.Response(200, headers=headers, stream=Listed(self._parts), extensions={VERIFIED: self._verified})


class Listed(httpx.SyncByteStream):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    def __iter__(self) -> Iterator[bytes]:
        yield from self._parts


@pytest.mark.parametrize(
    ("parts", "seen"),
    [
        ([b"data: a\n\n", b"data: b\n\n", b"data: [DONE]\n\n"], b"data: a\n\ndata: b\n\n"),
        ([b"data: a\n\n", b"data: [DO", b"NE]\n\n"], b"data: a\n\ndata: [DO"),
        ([b"data: a\n\ndata: [DONE]\n\n", b""], b""),
        ([b"data: [DONE]\n\n", b": more\n\n"], b""),
        ([b"data: a\n\n"], b"data: a\n\n"),
    ],
    ids=range(5),
)
def test_a_stream_is_handed_on_at_once_but_for_what_ends_it(
    session: EnclaveSession, folder: Path, parts: list[bytes], seen: bytes
) -> None:
    with httpx.Client(trust_env=False) as http:
        verified = verify_workload(http, session.urls[0], RelyingParty.configure(None, folder / "root.pem"))
    inner = Parts(verified, parts)
    with httpx.Client(transport=ReceiptedTransport(inner, AnswersReceipts("http://workload.invalid/v1"))) as http:
        body = {"model": "echo", "prompt": "hello"}
        with http.stream("POST", "http://workload.invalid/v1/completions", json=body) as answer:
            got: list[bytes] = []
            with pytest.raises(ReceiptMissing):
                got.extend(answer.iter_raw())
    assert b"".join(got) == seen


@pytest.mark.parametrize("promised", [True, False])
def test_an_answer_without_a_receipt_is_no_answer_where_the_statement_promises_one(
    session: EnclaveSession, workload: Workload, monkeypatch: pytest.MonkeyPatch, promised: bool
) -> None:
    async def bare(self: Receipted, scope: Any, receive: Any, send: Any) -> None:
        await self._app(scope, receive, send)

    monkeypatch.setattr(Receipted, "__call__", bare)
    if not promised:
        monkeypatch.setattr("confide.enclave.workload.KEYSET_PURPOSE", "another purpose")
        session.verify()
        assert session.chat("hello")
        with pytest.raises(UnknownReceipt, match="signs none"):
            session.receipt()
        return
    for _ in range(2):
        with pytest.raises(ReceiptMissing, match="promises one"):
            session.chat("hello")
    with pytest.raises(ReceiptMissing):
        session.receipt()


def test_a_receipt_that_is_not_there(session: EnclaveSession, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Receipts, "begin", lambda self, *asked: lambda *said: None)
    with pytest.raises(ReceiptMissing, match="signed no receipt"):
        session.chat("hello")
    with pytest.raises(ReceiptMissing):
        session.save_receipt("nowhere")


def test_a_long_answer_is_hashed_and_not_kept(
    session: EnclaveSession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("confide.client.receipts.MAX_KEPT_BYTES", 100)
    session.chat("hello")
    assert all_passed(session.receipt())
    session.save_receipt(tmp_path / "kept")
    assert not (tmp_path / "kept" / "response").exists()


@pytest.mark.parametrize("kind", ["request", "response", "weights"])
def test_one_for_something_else(session: EnclaveSession, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    sign: Callable[..., Receipt] = ReceiptKey.sign

    def wrong(self: ReceiptKey, **said: Any) -> Receipt:
        events = [
            {
                name: "sha256:" + "00" * 32 if "hash" in name or name == "digest" else value
                for name, value in one.items()
            }
            if kind in one["type"]
            else one
            for one in said["events"]
        ]
        return sign(self, **said | {"events": events})

    monkeypatch.setattr(ReceiptKey, "sign", wrong)
    for wrong_again in (lambda: session.chat("hello"), session.receipt):
        with pytest.raises(ReceiptRefused, match=f"receipt-{kind}"):
            wrong_again()


def test_one_by_another_key(session: EnclaveSession, workload: Workload) -> None:
    workload.receipt_key = ReceiptKey()
    with pytest.raises(ReceiptRefused, match="receipt-keyset"):
        session.chat("hello")
    session.verify()
    session.chat("hello")
    assert all_passed(session.receipt())


def test_where_tls_ends_inside(workload: Workload, folder: Path) -> None:
    tls = RaTls(workload)
    app = public_app(workload, Serving(FakeEngine()), tls_ends_here=True)  # type: ignore[arg-type]
    with serving(app, tls.context) as url:
        with confide.connect(url, simulated_root=folder / "root.pem", ra_tls=True) as session:
            session.chat("hello")
            assert isinstance(session, EnclaveSession)
            assert all_passed(session.receipt())
    assert workload.keyset.document["tls_public_keys"] == [{"spki_sha256": workload.tls_spki}]


def test_kept_for_whoever_audits_it(
    session: EnclaveSession, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "".join(session.chat("hello", stream=True))
    kept = tmp_path / "kept"
    session.save_receipt(kept)
    assert {path.name for path in kept.iterdir()} == {"receipt.json", "bundle.json", "request", "response"}
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept.iterdir())
    with pytest.raises(FileExistsError):
        session.save_receipt(kept)
    command = ["confide", "receipt", "verify", str(kept / "receipt.json"), "--simulated-root", str(folder / "root.pem")]
    for name in ("bundle", "request", "response"):
        command += [f"--{name}", str(kept / (f"{name}.json" if name == "bundle" else name))]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    (kept / "response").write_bytes(b"other")
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 10
