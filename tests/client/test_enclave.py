"""`confide.connect` to a workload: what is sent when, what is refused, and what an attacker in between achieves."""

import asyncio
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import openai
import pytest
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response
from tests import hostile
from tests.client.workload import ERRORS, MODEL, ODD, FakeWorkload, serving, simulated
from tests.net.recording_proxy import proxy_in_environment

import confide
from confide.attest.policy import Policy, SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Model, NotDebug, PolicyVersion, Tdx
from confide.attest.simulated import SimulatedTee
from confide.attest.wire import Attested, WireCollateral
from confide.channel.keys import ChannelKey
from confide.client.conversation import Conversation
from confide.client.enclave import EnclaveSession
from confide.errors import (
    WORKLOAD_CODES,
    AttestationRefused,
    ChannelBroken,
    ChannelRefused,
    ConfideError,
    ConnectionLost,
    EngineError,
    GatewayError,
    InsecureConnection,
    InvalidPolicy,
    KeyChanged,
    MalformedEvidence,
    PromptTooLong,
    ProtocolError,
    ServerBusy,
    ServerFault,
    WrongMode,
)

DIGEST = "ab" * 32
HELLO = [{"role": "user", "content": "hello"}]


@dataclass(frozen=True)
class Running:
    fake: FakeWorkload
    root: Path

    def connect(self, **options: Any) -> EnclaveSession:
        session = confide.connect(self.fake.url, **{"simulated_root": self.root, **options})
        assert isinstance(session, EnclaveSession)
        return session


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("workload") / "tee"
    with serving(simulated(folder, model_digest=DIGEST)) as fake:
        yield Running(fake, folder / "root.pem")


@pytest.fixture
def running(served: Running) -> Running:
    """The same server, as it was at first."""
    fresh = FakeWorkload(served.fake.workload)
    for name in ("alter", "tell", "outer"):
        setattr(served.fake, name, getattr(fresh, name))
    served.fake.seen.clear()
    served.fake.stopped.clear()
    return served


# -- appraisal first ---------------------------------------------------------------------------------------------------


def test_nothing_but_a_nonce_is_sent_before_the_workload_is_verified(running: Running) -> None:
    with running.connect() as session:
        assert running.fake.seen == ["/attestation"]
        assert session.chat("hello") == "olleh"
    assert running.fake.seen[:2] == ["/attestation", "/encrypted"]
    assert json.loads(running.fake.prompts[-1][1])["messages"] == HELLO


def test_each_session_has_a_salt_of_its_own_which_goes_encrypted(running: Running) -> None:
    def salts() -> list[str]:
        return [dict(head.headers)["confide-cache-salt"] for head in running.fake.heads if "/chat/" in head.path]

    async def asynchronously(session: EnclaveSession) -> None:
        await session.async_openai.chat.completions.create(model=MODEL, messages=HELLO)  # type: ignore[arg-type]
        await session.aclose()

    running.fake.heads.clear()
    with running.connect() as session:
        session.chat("hello")
        session.chat("hello again")
        asyncio.run(asynchronously(session))
    with running.connect() as session:
        session.chat("hello")
        own = {"confide-cache-salt": "ab" * 32}  # for whoever asks for several users through one session
        session.openai.chat.completions.create(model=MODEL, messages=HELLO, extra_headers=own)  # type: ignore[arg-type]
    first, second, third, other, given = salts()
    assert first == second == third
    assert len({first, other, given}) == 3
    assert given == "ab" * 32
    assert all(len(bytes.fromhex(salt)) == 32 for salt in (first, other))


def test_a_licence_goes_where_prompts_go_and_only_there(running: Running) -> None:
    async def asynchronously(session: EnclaveSession) -> None:
        await session.async_openai.chat.completions.create(model=MODEL, messages=HELLO)  # type: ignore[arg-type]
        await session.aclose()

    running.fake.heads.clear()
    with running.connect(licence="confide-mine") as session:
        assert "confide-mine" not in repr(session)
        session.chat("hello")
        asyncio.run(asynchronously(session))
    with running.connect() as session:
        session.chat("hello")
    shown = [dict(head.headers).get("authorization") for head in running.fake.heads if "/chat/" in head.path]
    assert shown == ["Bearer confide-mine", "Bearer confide-mine", "Bearer none"]


def restated(**changes: Any) -> Callable[[Attested], Attested]:
    """Says something else than what the hardware signed."""

    def tell(attested: Attested) -> Attested:
        return msgspec.structs.replace(attested, statement=msgspec.structs.replace(attested.statement, **changes))

    return tell


def resigned(running: Running, **changes: Any) -> Callable[[Attested], Attested]:
    """The hardware signs a statement with these changes."""

    def tell(attested: Attested) -> Attested:
        statement = msgspec.structs.replace(attested.statement, **changes)
        evidence = running.fake.workload.reader.read(statement.digest())
        return Attested.make(evidence, statement, running.fake.workload.collateral())

    return tell


def without_collateral(attested: Attested) -> Attested:
    return msgspec.structs.replace(attested, collateral=WireCollateral())


LIES: dict[str, tuple[Callable[[Running], Callable[[Attested], Attested]], str]] = {
    "a nonce of the past": (lambda running: resigned(running, nonce="cd" * 32), "nonce"),
    "a nonce that was not signed": (lambda _: restated(nonce="cd" * 32), "nonce"),
    "another channel key": (lambda _: restated(channel_keys={"hpke": ChannelKey().public.raw.hex()}), "nonce"),
    "no channel key": (lambda running: resigned(running, channel_keys={}), "channel-key"),
    "a channel key that is none": (lambda running: resigned(running, channel_keys={"hpke": "00"}), "channel-key"),
    "no collateral": (lambda _: without_collateral, "wrong-collateral"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_workload_that_lies_gets_nothing(running: Running, lie: str) -> None:
    tell, check = LIES[lie]
    running.fake.tell = tell(running)
    with pytest.raises(AttestationRefused, match=f"Failed: .*{check}") as caught:
        running.connect()
    assert check in caught.value.checks
    assert running.fake.seen == ["/attestation"]


def test_every_failed_check_is_named(running: Running) -> None:
    policy = SimulatedPolicy.all_of(Tdx(mrtd="11" * 48), Model("22" * 32), PolicyVersion("7"), NotDebug())
    with pytest.raises(AttestationRefused) as caught:
        running.connect(policy=policy)
    assert caught.value.checks == ("mrtd", "model", "policy-version")
    assert all(f"{name}: expected" in str(caught.value) for name in caught.value.checks)
    assert running.fake.seen == ["/attestation"]


def test_another_simulated_root_is_refused(running: Running, tmp_path: Path) -> None:
    SimulatedTee.create(tmp_path / "tee")
    with pytest.raises(AttestationRefused, match="unknown-root"):
        running.connect(simulated_root=tmp_path / "tee" / "root.pem")


@pytest.mark.parametrize("policy", [None, Policy(), Policy.all_of()])
def test_no_policy_for_production_takes_simulated_evidence(running: Running, policy: Policy | None) -> None:
    with pytest.raises(AttestationRefused):
        running.connect(policy=policy, simulated_root=None)
    assert running.fake.seen == ["/attestation"]


def test_policy_and_root_are_of_one_kind(running: Running) -> None:
    with pytest.raises(InvalidPolicy, match="simulated_root"):
        running.connect(policy=Policy())
    with pytest.raises(InvalidPolicy, match="simulated root"):
        running.connect(policy=SimulatedPolicy(), simulated_root=None)
    assert running.fake.seen == []


def test_a_policy_may_be_a_file(running: Running, tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(to_toml(SimulatedPolicy.all_of(Model(DIGEST))))
    with running.connect(policy=path) as session:
        assert "model" in [check.code for check in session.result.checks]
    with pytest.raises(InvalidPolicy, match="cannot be read"):
        running.connect(policy=tmp_path / "none.toml")


@pytest.mark.parametrize("body", [b"", b"<html>login</html>", b"{}", b"x" * (5 << 20)])
def test_what_is_no_attestation_is_refused(running: Running, body: bytes) -> None:
    class Raw:
        def encode(self) -> bytes:
            return body

    running.fake.tell = lambda _: Raw()  # type: ignore[assignment, return-value]
    with pytest.raises(MalformedEvidence):
        running.connect()


# -- the channel -------------------------------------------------------------------------------------------------------


def test_another_key_is_verified_under_the_same_policy_and_asked_then(running: Running) -> None:
    with running.connect() as session:
        conversation = Conversation()
        assert "".join(conversation.say("hello", lambda said: session.chat(said, stream=True))) == "olleh"
        old = session.replicas
        for ask in (
            lambda: session.chat("abc"),
            lambda: session.generate("abc"),
            lambda: "".join(conversation.say("abc", lambda said: session.chat(said, stream=True))),
        ):
            running.fake.restart()
            running.fake.seen.clear()
            assert ask() == "cba"
            assert running.fake.seen[:2] == ["/encrypted", "/attestation"]
            assert session.receipt().verified
        assert len(conversation.messages) == 4
        assert session.replicas != old


def test_another_key_that_is_refused_leaves_nothing_to_rely_on(running: Running) -> None:
    with running.connect() as session:
        assert session.chat("hello") == "olleh"
        running.fake.restart()
        running.fake.tell, honest = restated(nonce="cd" * 32), running.fake.tell
        with pytest.raises(AttestationRefused):
            session.chat("a secret")
        asked = len(running.fake.seen)
        with pytest.raises(KeyChanged, match="verify"):
            session.chat("a secret")
        with pytest.raises(KeyChanged):
            session.openai.models.list()
        with pytest.raises(KeyChanged):
            asyncio.run(chat_async(session, "a secret"))
        assert len(running.fake.seen) == asked
        running.fake.tell = honest
        assert session.verify().trusted
        assert session.chat("hello") == "olleh"
    assert "secret" not in str(running.fake.seen)


def key_changed() -> Response:
    return JSONResponse({"error": {"code": "key-changed", "key": "ab" * 32}}, 409)


def test_who_says_there_is_another_key_and_has_the_same_is_asked_once(running: Running) -> None:
    """Else whoever stands in between could have a question answered twice."""
    with running.connect() as session:
        assert session.model == MODEL
        running.fake.seen.clear()
        running.fake.outer = key_changed
        with pytest.raises(KeyChanged):
            session.chat("hello")
        assert running.fake.seen == ["/encrypted", "/attestation"]
        running.fake.outer = None
        assert session.chat("hello") == "olleh"


def test_keys_that_change_again_and_again_are_given_up(running: Running) -> None:
    with running.connect() as session:
        assert session.model == MODEL

        def restarting() -> Response:
            running.fake.restart()
            return key_changed() if running.fake.seen.count("/encrypted") < 9 else PlainTextResponse("Enough", 502)

        running.fake.seen.clear()
        running.fake.outer = restarting
        with pytest.raises(KeyChanged):
            session.chat("hello")
        assert running.fake.seen == ["/encrypted", "/attestation", "/encrypted"]


def test_where_verifying_another_key_may_work_later_it_is_tried_later(running: Running) -> None:
    """The workload starts up, for example, and its gateway has nobody to ask yet."""
    with running.connect() as session:
        assert session.model == MODEL
        running.fake.restart()

        def tell(attested: Attested) -> Attested:
            raise HTTPException(502)

        running.fake.tell, honest = tell, running.fake.tell
        with pytest.raises(GatewayError):
            session.chat("hello")
        running.fake.tell = honest
        assert session.chat("hello") == "olleh"


async def chat_async(session: EnclaveSession, prompt: str) -> str:
    return (await session.async_openai.completions.create(model=MODEL, prompt=prompt)).choices[0].text


def test_the_same_for_another_key_with_asyncio(running: Running) -> None:
    async def ask() -> None:
        async with running.connect() as session:
            assert await chat_async(session, "hello") == "olleh"
            running.fake.restart()
            running.fake.seen.clear()
            assert await chat_async(session, "abc") == "cba"
            assert running.fake.seen[:2] == ["/encrypted", "/attestation"]

    asyncio.run(ask())


def test_a_verification_that_fails_leaves_nothing_to_rely_on(running: Running) -> None:
    with running.connect() as session:
        running.fake.tell = restated(nonce="cd" * 32)
        with pytest.raises(AttestationRefused):
            session.verify()
        with pytest.raises(KeyChanged):
            session.chat("hello")
        assert "/encrypted" not in running.fake.seen


def changed(frames: list[bytes]) -> list[bytes]:
    return [*frames[:-2], frames[-2][:-1] + bytes([frames[-2][-1] ^ 1]), frames[-1]]


ATTACKS: dict[str, Callable[[list[bytes]], list[bytes]]] = {
    "nothing at all": lambda frames: [],
    "half a frame": lambda frames: [frames[0][:10]],
    "no body": lambda frames: frames[:1],
    "no end": lambda frames: frames[:-1],
    "swapped": lambda frames: [frames[0], *reversed(frames[1:])],
    "one left out": lambda frames: [frames[0], *frames[2:]],
    "one twice": lambda frames: [frames[0], frames[1], *frames[1:]],
    "something after the end": lambda frames: [*frames, frames[-1]],
    "a byte changed": changed,
}


@pytest.mark.parametrize("attack", ATTACKS)
@pytest.mark.parametrize("path", ["completions", "stream"])
def test_an_answer_that_was_tampered_with_is_broken(running: Running, attack: str, path: str) -> None:
    with running.connect() as session:
        assert session.model == MODEL
        running.fake.alter = ATTACKS[attack]
        if path == "completions":
            with pytest.raises(ChannelBroken):
                session.generate("hello")
            return
        # What comes after [DONE] is read, too: the last that the SDK reads waits for the receipt for all of it.
        pieces: list[str] = []
        with pytest.raises(ChannelBroken):
            pieces.extend(session.chat("hello", stream=True))
        assert "olleh".startswith("".join(pieces))


@pytest.mark.parametrize("attack", ["no body", "no end", "swapped", "a byte changed"])
def test_the_same_with_asyncio(running: Running, attack: str) -> None:
    async def ask() -> None:
        async with running.connect() as session:
            running.fake.alter = ATTACKS[attack]
            await session.async_openai.completions.create(model=MODEL, prompt="hello")

    with pytest.raises(ChannelBroken):
        asyncio.run(ask())


def test_an_answer_to_something_else_is_broken(running: Running) -> None:
    recorded: list[list[bytes]] = []

    def record(frames: list[bytes]) -> list[bytes]:
        recorded.append(frames)
        return frames

    with running.connect() as session:
        running.fake.alter = record
        assert session.generate("yes") == "sey"
        running.fake.alter = lambda _: recorded[-1]
        with pytest.raises(ChannelBroken):
            session.generate("yes")


def test_nothing_is_sent_twice_unasked(running: Running) -> None:
    with running.connect() as session:
        assert session.model == MODEL
        running.fake.alter = ATTACKS["swapped"]
        running.fake.seen.clear()
        with pytest.raises(ChannelBroken):
            session.chat("hello")
        assert running.fake.seen.count("/encrypted") == 1


OUTER: dict[str, tuple[Callable[[], Response], type[ConfideError]]] = {
    "not found": (lambda: PlainTextResponse("no such page", 404), GatewayError),
    "a login page": (lambda: PlainTextResponse("<html>log in</html>", 200), ChannelBroken),
    "an answer in the clear": (lambda: JSONResponse({"choices": [{"text": "trust me"}]}), ChannelBroken),
    "elsewhere": (lambda: RedirectResponse("/v1/completions", 307), GatewayError),
    "busy": (lambda: PlainTextResponse("later", 503), ServerBusy),
    "broken": (lambda: PlainTextResponse("oops", 502), GatewayError),
    "a code of ours that it has no say in": (
        lambda: JSONResponse({"error": {"code": "integrity", "message": "INJECTED"}}, 400),
        GatewayError,
    ),
    "a repetition": (lambda: JSONResponse({"error": {"code": "channel-refused"}}, 400), ChannelRefused),
    "large": (lambda: PlainTextResponse("x" * (1 << 20), 500), GatewayError),
}


@pytest.mark.parametrize("reply", OUTER)
def test_what_the_outer_hop_says_is_never_an_answer(running: Running, reply: str) -> None:
    make, error = OUTER[reply]
    with running.connect() as session:
        running.fake.outer = make
        with pytest.raises(error) as caught:
            session.openai.completions.create(model=MODEL, prompt="hello")
        assert type(caught.value) is error
        assert "INJECTED" not in str(caught.value)
        assert "x-stainless" not in str(caught.value)
        running.fake.outer = None
        assert session.generate("hello") == "olleh"


# -- the surface -------------------------------------------------------------------------------------------------------


def test_what_a_session_can_do(running: Running) -> None:
    with running.connect() as session:
        assert session.model == MODEL
        assert session.model_digest == DIGEST
        assert session.generate("abc", max_tokens=5) == "cba"
        assert session.chat("abc") == session.chat([{"role": "user", "content": "abc"}]) == "cba"
        assert list(session.chat("abc", stream=True)) == ["c", "b", "a"]
    assert json.loads(running.fake.prompts[1][1]) == {"model": MODEL, "max_tokens": 5, "prompt": "abc"}


def test_the_sdk_streams_through_the_channel(running: Running) -> None:
    with running.connect() as session:
        with session.openai.chat.completions.create(model=MODEL, messages=HELLO, stream=True) as chunks:  # type: ignore[call-overload]
            assert "".join(chunk.choices[0].delta.content for chunk in chunks) == "olleh"
        assert session.openai.models.list().data[0].id == MODEL


def test_the_sdk_with_asyncio(running: Running) -> None:
    async def ask() -> tuple[str, str]:
        async with running.connect() as session:
            chat: Any = session.async_openai.chat.completions
            whole, stream = await asyncio.gather(
                chat.create(model=MODEL, messages=HELLO), chat.create(model=MODEL, messages=HELLO, stream=True)
            )
            pieces = [chunk.choices[0].delta.content async for chunk in stream]
            return whole.choices[0].message.content, "".join(pieces)

    assert asyncio.run(ask()) == ("olleh", "olleh")


def test_an_answer_that_is_given_up_stops_at_the_workload(running: Running) -> None:
    with running.connect() as session:
        pieces = session.chat("x" * 4000, stream=True)
        assert next(pieces) == "x"
        pieces.close()  # type: ignore[attr-defined]
        assert running.fake.stopped.wait(60)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        ("too long", PromptTooLong),
        ("busy", ServerBusy),
        ("fault", ServerFault),
        ("ours", EngineError),
        ("unprocessable", ProtocolError),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_errors_of_the_workload_are_typed(running: Running, said: str, error: type[ConfideError], stream: bool) -> None:
    with running.connect() as session:
        with pytest.raises(error, match=r"The workload says: .*It does not work\.") as caught:
            list(session.chat(said, stream=True)) if stream else session.chat(said)
        assert type(caught.value) is error
        with pytest.raises(openai.APIStatusError):
            session.openai.chat.completions.create(model=MODEL, messages=[{"role": "user", "content": said}])


@pytest.mark.parametrize(("status", "own"), [(400, ProtocolError), (429, ServerBusy), (500, ServerFault)])
def test_a_workload_chooses_no_error_but_its_own(
    running: Running, monkeypatch: pytest.MonkeyPatch, status: int, own: type[ConfideError]
) -> None:
    """What the user's side finds out by itself, no workload can say; and its words are quoted."""
    with running.connect() as session:
        for kind in hostile.kinds():
            monkeypatch.setitem(ERRORS, "hostile", (status, kind.code, hostile.ALL))
            with pytest.raises(ConfideError, match=r'^The workload says: "') as caught:
                session.chat("hostile")
            assert type(caught.value) is (kind if kind.code in WORKLOAD_CODES else own)
            assert str(caught.value).isprintable()
            assert str(caught.value).count('"') == 2


ODD_ANSWERS: dict[str, Any] = {
    "no object": [],
    "no choices": {},
    "choices that are none": {"choices": {}},
    "an empty list": {"choices": []},
    "no message": {"choices": [{"index": 0}]},
    "a number": {"choices": [{"index": 0, "text": 1, "message": {"content": 1}, "delta": {"content": 1}}]},
    "a list": {"choices": [{"index": 0, "text": ["a"], "message": {"content": ["a"]}, "delta": {"content": ["a"]}}]},
}


@pytest.mark.parametrize("odd", ODD_ANSWERS)
@pytest.mark.parametrize("way", ["generate", "chat"])
def test_an_answer_that_is_none_is_a_typed_error(
    running: Running, monkeypatch: pytest.MonkeyPatch, odd: str, way: str
) -> None:
    monkeypatch.setitem(ODD, "odd", json.dumps(ODD_ANSWERS[odd]).encode())
    with running.connect() as session:
        with pytest.raises(ProtocolError, match="OpenAI API"):
            getattr(session, way)("odd")


@pytest.mark.parametrize("body", [b"", b"no JSON", b"[" * 100_000])
@pytest.mark.parametrize("way", ["generate", "chat", "stream"])
def test_neither_is_what_is_no_json(running: Running, monkeypatch: pytest.MonkeyPatch, body: bytes, way: str) -> None:
    monkeypatch.setitem(ODD, "odd", body)
    with running.connect() as session:
        with pytest.raises(ProtocolError, match="OpenAI API"):
            list(session.chat("odd", stream=True)) if way == "stream" else getattr(session, way)("odd")


def test_a_workloads_words_about_itself_stay_on_their_line(running: Running) -> None:
    running.fake.tell = resigned(running, policy_version=hostile.ALL[:64])
    with pytest.raises(AttestationRefused) as caught:
        running.connect(policy=SimulatedPolicy.all_of(PolicyVersion("7")))
    assert caught.value.checks == ("policy-version",)
    assert caught.value.args[0].isprintable()


def test_trust_says_that_simulated_evidence_protects_nothing(running: Running) -> None:
    with running.connect() as session:
        trust = session.trust
        assert trust.protection == "none (SIMULATED EVIDENCE: NOTHING IS PROTECTED)"
        assert all(exposure.hidden_from == () for exposure in (trust.prompt, trust.weights, trust.output))
        assert session.result.simulated


def test_nothing_shows_in_a_repr(running: Running) -> None:
    with running.connect() as session:
        assert repr(session) == f"EnclaveSession('{running.fake.url}', tdx)"


def test_no_proxy_of_the_environment_sees_a_session(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(session: EnclaveSession) -> None:
        async with session:
            await session.async_openai.models.list()

    with proxy_in_environment(monkeypatch) as asked:
        session = running.connect()
        assert session.chat("hello") == "olleh"
        asyncio.run(ask(session))
    assert running.fake.seen.count("/encrypted") == 4  # its names, an answer with its receipt, and its names
    assert asked == []


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_an_encrypted_request_goes_to_one_place(running: Running, status: int) -> None:
    """Whoever answers in the workload's place cannot have the request sent elsewhere."""

    async def ask(session: EnclaveSession) -> None:
        async with session:
            await session.async_openai.models.list()

    session = running.connect()
    running.fake.outer = lambda: RedirectResponse("/v1/models", status)
    with pytest.raises(GatewayError):
        session.openai.models.list()
    with pytest.raises(GatewayError):
        asyncio.run(ask(session))
    assert running.fake.seen == ["/attestation", "/encrypted", "/encrypted"]


# -- the door ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "error"),
    [
        ("http://models.example", {}, InsecureConnection),
        ("https://models.example/?a=b", {}, ConnectionLost),
        ("https://models.example:99999", {}, ConnectionLost),
        ("https://[::1", {}, ConnectionLost),
        ("http://127.0.0.1:9", {"ra_tls": True}, InsecureConnection),
        ("https://127.0.0.1:9", {"ra_tls": True, "ca": "ca.pem"}, WrongMode),
        ("http://127.0.0.1:9", {"shell": "folder"}, WrongMode),
        ("ws://127.0.0.1:9", {}, WrongMode),
        ("ws://127.0.0.1:9", {"shell": "folder", "policy": Policy()}, WrongMode),
        ("folder", {}, WrongMode),
        ("folder", {"server": "ws://127.0.0.1:9", "simulated_root": "root.pem"}, WrongMode),
    ],
)
def test_what_cannot_be_had_raises(url: str, options: dict[str, Any], error: type[ConfideError]) -> None:
    with pytest.raises(error):
        confide.connect(url, **options)


def test_nobody_there_is_a_lost_connection(running: Running) -> None:
    with pytest.raises(ConnectionLost, match="cannot be reached"):
        confide.connect("http://127.0.0.1:9", simulated_root=running.root)
