"""The hybrid mode through the same door."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Thread
from typing import Any

import pytest
from tests.hybrid.server.world import serving
from tests.owners import OWNER

import confide
from confide import HybridModel
from confide.audit.log import FOLDER, start_log
from confide.audit.verify import entries
from confide.client.hybrid import HybridSession
from confide.client.session import Session
from confide.disk.home import home
from confide.errors import InvalidPackage, PromptTooLong, RequestRefused, UnknownModel, WrongMode
from confide.hybrid.server.service import LayerService
from confide.ledger.ledger import Ledger
from confide.packages.server_package import ServerPackage
from confide.receipts.client import ClientReceipt
from confide.receipts.documents import digest_of

TEMPLATE = "{% for message in messages %}{{ message.content }} {% endfor %}"


@pytest.fixture(scope="module")
def demo() -> HybridModel:
    """One layer group only, and a template; its answers in the clear are the reference."""
    model = HybridModel("demo", protect=r"h\.0\.attn\.c_attn", progress=False)
    model.tokenizer.chat_template = TEMPLATE  # type: ignore[union-attr]
    return model


@pytest.fixture(scope="module")
def session(demo: HybridModel, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Session]:
    folder = tmp_path_factory.mktemp("hybrid")
    parts = demo.split(folder / "out", OWNER)
    package = ServerPackage.open(parts.server)
    service = LayerService(package.signed, package.load(), Ledger(folder / "state"), insecure_no_licences=True)
    with serving(service) as served, pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(folder / "home"))
        start_log()
        url = served.url
        options: dict[str, Any] = {"owner": OWNER.public.raw, "progress": False}
        with confide.connect(parts.client, server=url, **options) as opened:
            yield opened
        with confide.connect(url, shell=parts.client, **options) as other_way:
            assert other_way.trust == opened.trust


MESSAGES = [{"role": "user", "content": "The old man"}]


def test_answers_are_those_of_the_model(session: Session, demo: HybridModel) -> None:
    expected = demo.chat(MESSAGES, max_new_tokens=6, do_sample=False, pad_token_id=0)
    assert expected
    assert session.chat(MESSAGES, max_tokens=6) == expected
    assert "".join(session.chat("The old man", stream=True, max_tokens=6)) == expected
    assert session.generate("The old man ", max_tokens=6) == expected


def test_a_turn_sends_what_is_new(session: Session, demo: HybridModel) -> None:
    assert isinstance(session, HybridSession)
    told = [{"role": "user", "content": "Once upon a time there was a king who had three sons and a golden bird " * 4}]

    def asked(messages: list[dict[str, str]]) -> int:
        """How many tokens, with padding. Bytes would tell whether p0 had gone ahead, too."""
        before = session.hybrid.traffic.answers_right
        answer = session.chat(messages, max_tokens=3)
        assert answer == demo.chat(messages, max_new_tokens=3, do_sample=False, pad_token_id=0)
        messages.append({"role": "assistant", "content": answer.strip()})
        return session.hybrid.traffic.answers_right - before

    first = asked(told)
    assert asked([*told, {"role": "user", "content": "and then"}]) < first / 2
    other = [{"role": "user", "content": "A tailor went into the wood one day, as he had nothing to eat, and " * 4}]
    assert asked(other) > first / 2


def test_sampling_follows_its_seed(session: Session) -> None:
    options = {"max_tokens": 6, "temperature": 2.0, "top_p": 0.95}
    first, again, other = (session.generate("The old", seed=seed, **options) for seed in (1, 1, 2))
    assert first == again != other


def test_a_stopped_answer_stops_and_leaves_the_session_usable(session: Session) -> None:
    assert isinstance(session, HybridSession)
    pieces = session.chat(MESSAGES, stream=True, max_tokens=40)
    assert next(pieces)
    pieces.close()
    assert session.hybrid.lengths is not None
    assert session.hybrid.lengths.answer < 40
    assert session.generate("The old", max_tokens=3)


def test_a_receipt_of_ones_own_for_every_answer(session: Session, tmp_path: Path) -> None:
    assert isinstance(session, HybridSession)
    before = None
    asks: list[Callable[[], str]] = [
        lambda: session.generate("The old", max_tokens=3, temperature=0.5, seed=1),
        lambda: session.chat(MESSAGES, max_tokens=3),
        lambda: "".join(session.chat(MESSAGES, max_tokens=3, stream=True)),
    ]
    for number, ask in enumerate(asks):
        answer = ask()
        result = session.receipt()
        assert result.verified
        checked = {one.code for one in result.checks if one.passed}
        assert checked >= {"client-request", "client-response", "client-signature", "client-sampling", "client-answers"}
        fields = result.receipt.fields
        assert fields.response_hash == digest_of(answer.encode())
        assert [one.answer for one in fields.generations] == [3]
        if before is not None:
            assert fields.chain.sequence == before.receipt.fields.chain.sequence + 1
            assert fields.chain.previous == before.receipt.digest
        before = result
        session.save_receipt(tmp_path / f"{number}")
        kept = {path.name: path.read_bytes() for path in (tmp_path / f"{number}").iterdir()}
        assert kept["response"] == answer.encode()
        assert ClientReceipt.read(kept["receipt.json"]).digest == result.receipt.digest
    assert b"The old" not in kept["receipt.json"]
    first, *_, last = logged = list(entries(home() / FOLDER))[1:]
    assert (first.event, first.mode, first.model) == ("connected", "hybrid", fields.model.digest)
    assert (last.event, last.made_by, last.receipt) == ("receipt", "client", result.receipt.digest)
    assert [entry.receipt for entry in logged[-2:-1]] == [fields.chain.previous]


def test_a_shell_that_is_refused_stands_in_the_log(session: Session, tmp_path: Path) -> None:
    with pytest.raises(InvalidPackage):
        confide.connect(tmp_path, server="ws://127.0.0.1:9")
    refused = list(entries(home() / FOLDER))[-1]
    assert (refused.event, refused.peer, refused.failed) == (
        "refused",
        "ws://127.0.0.1:9/v1/layers",
        ("invalid-package",),
    )


def test_the_receipt_is_of_the_threads_own_generation(session: Session) -> None:
    assert isinstance(session, HybridSession)
    session.generate("The old", max_tokens=3)
    mine = session.hybrid.generated
    seen: list[object] = []

    def other() -> None:
        seen.append(session.hybrid.generated)
        session.hybrid.chat(MESSAGES, max_new_tokens=2)
        seen.append(session.hybrid.generated)

    thread = Thread(target=other)
    thread.start()
    thread.join()
    assert seen[0] is None
    assert seen[1] is not mine
    assert session.hybrid.generated is mine


def test_trust_is_that_of_the_hybrid_mode(session: Session) -> None:
    assert session.trust.protection == "hybrid"
    assert session.trust.prompt.hidden_from == ("the layer server",)
    assert session.model == "client"


def test_what_this_mode_has_not_raises(session: Session, demo: HybridModel) -> None:
    with pytest.raises(WrongMode, match="generate and chat"):
        _ = session.openai
    with pytest.raises(WrongMode):
        _ = session.async_openai
    with pytest.raises(TypeError, match="stop"):
        session.generate("The old", stop=["."])
    assert session.models == [session.model]
    with pytest.raises(UnknownModel, match="one model"):
        session.generate("The old", model="gpt-4o")


def test_an_error_while_streaming_is_raised_where_the_pieces_are_read(session: Session) -> None:
    with pytest.raises(PromptTooLong, match="512"):
        list(session.chat([{"role": "user", "content": "The old man " * 300}], stream=True))


def test_odd_temperatures_are_refused_and_tiny_ones_greedy(session: Session) -> None:
    with pytest.raises(RequestRefused, match="temperature"):
        session.chat(MESSAGES, stream=True, temperature=-1.0)
    greedy = session.chat(MESSAGES, max_tokens=3)
    assert session.chat(MESSAGES, max_tokens=3, temperature=1e-38) == greedy
