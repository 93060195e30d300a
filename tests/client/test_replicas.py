"""Several workloads behind one address: a balancer, who may be hostile, picks who gets each request."""

import asyncio
import contextlib
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.responses import JSONResponse, PlainTextResponse, Response
from tests.client.workload import MODEL, Balanced, FakeWorkload, another, serving, simulated

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.requirements import Model
from confide.channel.keys import ChannelKey
from confide.client.enclave import EnclaveSession
from confide.client.relying_party import Verified
from confide.client.standing import MAX_REPLICAS, Delivery, Standing
from confide.client.transport import EncryptedTransport
from confide.errors import (
    AttestationRefused,
    ChannelBroken,
    ConfideError,
    GatewayError,
    KeyChanged,
    ServerBusy,
    WrongMode,
)

GOOD, BAD = "ab" * 32, "cd" * 32
POLICY = SimulatedPolicy.all_of(Model(GOOD))


@pytest.fixture
def balanced(tmp_path: Path) -> Iterator[Balanced]:
    first = simulated(tmp_path / "tee", model_digest=GOOD)
    fake = Balanced(first.workload, replicas=[first, another(tmp_path / "tee", GOOD)])
    with serving(fake):
        yield fake


def session(fake: FakeWorkload, folder: Path, replicas: int = 2, **options: Any) -> EnclaveSession:
    root = folder / "tee" / "root.pem"
    return EnclaveSession(fake.url, policy=POLICY, simulated_root=root, replicas=replicas, **options)


@pytest.mark.parametrize("count", [8, pytest.param(1000, marks=pytest.mark.slow)])
def test_requests_that_take_turns_are_all_answered(balanced: Balanced, tmp_path: Path, count: int) -> None:
    with session(balanced, tmp_path) as opened:
        for index in range(count):
            assert opened.generate(f"{index} x") == f"{index} x"[::-1]
            assert opened.receipt().verified
        assert len(opened.replicas) == 2
        assert "up to 2 replicas answers" in str(opened.trust)
        assert "2 were verified so far" in str(opened.trust)
    assert sum(len(one.prompts) for one in balanced.replicas) == count + 1  # and its names, once


def test_with_asyncio_too(balanced: Balanced, tmp_path: Path) -> None:
    async def ask() -> list[str]:
        async with session(balanced, tmp_path) as opened:
            made = opened.async_openai.completions
            answers = await asyncio.gather(*(made.create(model=MODEL, prompt=f"{n} x") for n in range(12)))
            return [one.choices[0].text for one in answers]

    assert asyncio.run(ask()) == [f"{n} x"[::-1] for n in range(12)]


def test_a_replica_that_the_policy_refuses_can_read_nothing(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas[1] = bad = another(tmp_path / "tee", BAD)
    balanced.count = 1  # it is asked first
    with session(balanced, tmp_path) as opened:
        for index in range(10):
            assert opened.generate(f"{index} x") == f"{index} x"[::-1]
        assert [one.statement.model_digest for one in opened.replicas] == [GOOD]
    assert "/encrypted" in bad.seen
    assert bad.prompts == []
    assert bad.heads == []


def test_with_none_but_that_one_left_the_error_says_why(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas[1] = bad = another(tmp_path / "tee", BAD)
    with session(balanced, tmp_path) as opened:
        balanced.pick = lambda count: 1
        with pytest.raises(AttestationRefused, match="model: expected"):
            opened.generate("a secret")
    assert bad.heads == []


@pytest.mark.parametrize("pick", [lambda count: 0, lambda count: 1], ids=["the first", "the second"])
def test_one_that_is_away_is_replaced(balanced: Balanced, tmp_path: Path, pick: Callable[[int], int]) -> None:
    with session(balanced, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        balanced.pick = pick
        assert [opened.generate("abc") for _ in range(3)] == ["cba"] * 3


@pytest.mark.parametrize("error", [KeyChanged("", bytes(32)), GatewayError("")], ids=["refused", "gone"])
@pytest.mark.parametrize("bound", [False, True], ids=["any", "bound"])
def test_a_request_on_its_way_goes_to_nobody_who_is_relied_on_no_more(
    balanced: Balanced, tmp_path: Path, error: ConfideError, bound: bool
) -> None:
    with session(balanced, tmp_path) as opened:
        (verified,) = opened.replicas
    verdicts: list[Verified | AttestationRefused] = [verified]

    def verify(_url: str) -> Verified:
        if isinstance(verdict := verdicts[-1], AttestationRefused):
            raise verdict
        return verdict

    standing = Standing(verify, [verified.url], replicas=2)
    delivery = Delivery(standing, verified if bound else None)
    verdicts.append(AttestationRefused("Its firmware is out of date by now."))
    with pytest.raises(AttestationRefused):
        standing.renew()
    with pytest.raises(type(error) if bound else KeyChanged):
        delivery.failed(error)


def test_nothing_begins_on_its_way_to_somebody_who_is_relied_on_no_more(balanced: Balanced, tmp_path: Path) -> None:
    """Nor the question for a receipt, while another replica is relied on."""
    with session(balanced, tmp_path) as opened:
        (answered,) = opened.replicas
    with session(balanced, tmp_path) as opened:
        (other,) = opened.replicas
    assert other.key.id != answered.key.id
    standing = Standing(lambda _url: other, [other.url], replicas=2)
    with pytest.raises(KeyChanged):
        Delivery(standing, answered)
    assert Delivery(standing, other).verified is other


def gone() -> Response:
    return PlainTextResponse("Bad gateway", 502)


def busy() -> Response:
    return PlainTextResponse("Too much to do", 503)


@pytest.mark.parametrize("away", [gone, busy], ids=["gone", "busy"])
def test_one_whose_place_a_balancer_takes_is_replaced(
    balanced: Balanced, tmp_path: Path, away: Callable[[], Response]
) -> None:
    with session(balanced, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        (home,) = (one for one in balanced.replicas if one.receipts)
        home.outer = away
        assert [opened.generate("abc") for _ in range(4)] == ["cba"] * 4
        for one in balanced.replicas:
            one.outer = away
        seen = sum(one.seen.count("/encrypted") for one in balanced.replicas)
        with pytest.raises((GatewayError, ServerBusy)):
            opened.generate("abc")
        assert sum(one.seen.count("/encrypted") for one in balanced.replicas) - seen == 4


def test_one_that_starts_anew_is_verified_anew(balanced: Balanced, tmp_path: Path) -> None:
    with session(balanced, tmp_path) as opened:
        for one in (*balanced.replicas, *balanced.replicas):
            assert opened.generate("abc") == "cba"
            one.restart()
        assert opened.generate("abc") == "cba"
        assert len(opened.replicas) == 2


def test_a_receipt_is_asked_of_whoever_answered_and_of_nobody_else(balanced: Balanced, tmp_path: Path) -> None:
    with session(balanced, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        (home,) = (index for index, one in enumerate(balanced.replicas) if len(one.receipts) == 1)
        begun = balanced.count
        # The other one gets the question for the receipt so often that any further question would be for it.
        balanced.pick = lambda count: home if count == begun or count > begun + 3 else 1 - home
        assert opened.generate("abc") == "cba"
        assert opened.receipt().verified


def test_no_more_are_relied_on_than_were_allowed(balanced: Balanced, tmp_path: Path) -> None:
    balanced.replicas += [another(tmp_path / "tee", GOOD), another(tmp_path / "tee", GOOD)]
    with session(balanced, tmp_path) as opened:
        for _ in range(6):
            with contextlib.suppress(KeyChanged):  # the receipt's replica may be the one too many
                opened.openai.models.list()
            assert len(opened.replicas) <= 2


def test_whoever_names_new_keys_for_ever_is_given_up(balanced: Balanced, tmp_path: Path) -> None:
    """The balancer itself answers: it can deny, at a bounded price."""

    def lie() -> Response:
        return JSONResponse({"error": {"code": "key-changed", "key": secrets.token_hex(32)}}, 409)

    with session(balanced, tmp_path) as opened:
        for one in balanced.replicas:
            one.outer = lie
        with pytest.raises(KeyChanged, match="again and again"):
            opened.generate("a secret")
        seen = [entry for one in balanced.replicas for entry in one.seen]
        assert seen.count("/encrypted") == 24
        assert seen.count("/attestation") <= 1 + 2 * 4
        for one in balanced.replicas:
            one.outer = None
        assert opened.generate("abc") == "cba"


def test_a_key_that_is_named_and_not_attested_is_encrypted_to_by_nobody(balanced: Balanced, tmp_path: Path) -> None:
    """A listener beside the workload names its own key; evidence for it there is none."""
    own = ChannelKey()
    listener = another(tmp_path / "tee", BAD)
    listener.workload.key = own
    balanced.replicas[1] = listener
    with session(balanced, tmp_path) as opened:
        assert [opened.generate("abc") for _ in range(5)] == ["cba"] * 5
        assert own.public.id not in [one.key.id for one in opened.replicas]
    assert listener.heads == []


@pytest.mark.parametrize("replicas", [0, -1, MAX_REPLICAS + 1])
def test_a_number_that_cannot_be(balanced: Balanced, tmp_path: Path, replicas: int) -> None:
    with pytest.raises(ValueError, match="replicas"):
        session(balanced, tmp_path, replicas)


@pytest.mark.parametrize("options", [{"replicas": 2}, {"url": ["https://127.0.0.1:9", "https://127.0.0.1:10"]}])
def test_tls_in_the_workload_has_one_end(options: dict[str, Any]) -> None:
    with pytest.raises(WrongMode, match="Give one address without replicas"):
        EnclaveSession(**{"url": "https://127.0.0.1:9", "ra_tls": True, **options})


# -- several addresses -------------------------------------------------------------------------------------------


@pytest.fixture
def both(tmp_path: Path) -> Iterator[list[FakeWorkload]]:
    """Two replicas, each at an address of its own."""
    with (
        serving(simulated(tmp_path / "tee", model_digest=GOOD)) as first,
        serving(another(tmp_path / "tee", GOOD)) as second,
    ):
        yield [first, second]


def connected(both: list[FakeWorkload], folder: Path, **options: Any) -> EnclaveSession:
    urls = [one.url for one in both]
    opened = confide.connect(urls, policy=POLICY, simulated_root=folder / "tee" / "root.pem", **options)
    assert isinstance(opened, EnclaveSession)
    return opened


def test_of_several_addresses_the_first_is_asked_and_the_others_are_left_alone(
    both: list[FakeWorkload], tmp_path: Path
) -> None:
    with connected(both, tmp_path) as opened:
        assert [opened.generate("abc") for _ in range(3)] == ["cba"] * 3
        assert [one.url for one in opened.replicas] == [both[0].url]
        assert "up to 2 replicas answers" in str(opened.trust)
        assert "1 were verified" in str(opened.trust)
    assert both[0].seen.count("/attestation") == 1
    assert both[1].seen == []


@pytest.mark.parametrize("away", [gone, busy], ids=["gone", "busy"])
@pytest.mark.parametrize("asked", ["openai", "async_openai"])
def test_before_an_answer_begins_another_address_takes_over(
    both: list[FakeWorkload], tmp_path: Path, away: Callable[[], Response], asked: str
) -> None:
    async def ask(opened: EnclaveSession) -> str:
        async with opened:
            return (await opened.async_openai.completions.create(model=MODEL, prompt="abc")).choices[0].text

    with connected(both, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        both[0].outer = away
        assert (opened.generate("abc") if asked == "openai" else asyncio.run(ask(opened))) == "cba"
        assert both[1].seen[0] == "/attestation"  # before anything was encrypted to it
        seen = len(both[0].seen)
        both[0].outer = None
        if asked == "openai":
            assert opened.generate("abc") == "cba"  # where the conversation's cache is by now
            assert both[0].seen[seen:] == []
            opened.verify()
            assert opened.generate("abc") == "cba"
            assert both[0].seen[seen:] == ["/attestation"]
            assert len(both[1].prompts) == 3


def test_one_that_is_not_there_at_all_is_passed_over(both: list[FakeWorkload], tmp_path: Path) -> None:
    with serving(another(tmp_path / "tee", GOOD)) as closed:
        pass
    with connected([closed, *both], tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        assert [one.url for one in opened.replicas] == [both[0].url]


@pytest.mark.parametrize("ends", ["cut", "changed", "no answer"])
def test_once_an_answer_has_begun_nobody_else_is_asked(both: list[FakeWorkload], tmp_path: Path, ends: str) -> None:
    with connected(both, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        match ends:
            case "cut":
                both[0].alter = lambda frames: frames[:2]
            case "changed":
                both[0].alter = lambda frames: [frames[0][:-1] + bytes([frames[0][-1] ^ 1]), *frames[1:]]
            case _:
                both[0].outer = lambda: PlainTextResponse("Welcome")
        with pytest.raises(ChannelBroken):
            opened.generate("a secret")
    assert both[1].seen == []


def test_an_answer_that_stops_where_it_begins_is_asked_of_nobody_else(both: list[FakeWorkload], tmp_path: Path) -> None:
    with connected(both, tmp_path) as opened:
        (verified,) = opened.replicas
    standing = Standing(lambda _url: verified, [one.url for one in both])
    sent: list[httpx.URL] = []

    class Silent(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            raise httpx.ReadTimeout("It stopped.")

    def begun(request: httpx.Request) -> httpx.Response:
        sent.append(request.url)
        return httpx.Response(200, stream=Silent())

    with httpx.Client(transport=httpx.MockTransport(begun)) as outer:
        with httpx.Client(transport=EncryptedTransport(outer, standing)) as inside, pytest.raises(ChannelBroken):
            inside.post("http://workload.invalid/v1/completions", content=b"a secret")
    assert [str(url) for url in sent] == [f"{both[0].url}/encrypted"]


def test_nothing_is_encrypted_to_an_address_that_the_policy_refuses(both: list[FakeWorkload], tmp_path: Path) -> None:
    both[1].workload.model_digest = BAD
    with connected(both, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        both[0].outer = gone
        with pytest.raises(GatewayError):
            opened.generate("a secret")
        assert [one.url for one in opened.replicas] == [both[0].url]
    assert set(both[1].seen) == {"/attestation"}


def test_one_at_its_own_address_that_starts_anew_is_verified_anew(both: list[FakeWorkload], tmp_path: Path) -> None:
    with connected(both, tmp_path) as opened:
        assert opened.generate("abc") == "cba"
        both[0].restart()
        assert opened.generate("abc") == "cba"
        assert [one.url for one in opened.replicas] == [both[0].url]
        both[0].restart()
        both[0].workload.model_digest = BAD
        with pytest.raises(AttestationRefused):
            opened.generate("a secret")
        assert "secret" not in str(both[0].seen)


@pytest.mark.parametrize("away", [gone, busy], ids=["gone", "busy"])
def test_where_nobody_answers_it_is_said(
    both: list[FakeWorkload], tmp_path: Path, away: Callable[[], Response]
) -> None:
    with connected(both, tmp_path) as opened:
        for one in both:
            one.outer = away
        with pytest.raises((GatewayError, ServerBusy)):
            opened.generate("abc")
        assert [one.seen.count("/encrypted") for one in both] == [1, 1]


@pytest.mark.parametrize(
    "targets",
    [[], ["https://a.example", "wss://b.example"], ["wss://a.example", "folder"], ["folder", "folder"]],
    ids=["none", "mixed", "a folder", "folders"],
)
def test_other_lists_of_addresses_are_refused(targets: list[str]) -> None:
    with pytest.raises(WrongMode, match="several addresses"):
        confide.connect(targets)
