"""The server on the network, as clients find it."""

import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import httpx
import msgspec
import numpy as np
import pytest
from numpy.typing import NDArray
from websockets.exceptions import ConnectionClosed, InvalidStatus

from confide.errors import (
    BudgetExhausted,
    ConnectionLost,
    LedgerUnavailable,
    LicenceRefused,
    MalformedMessage,
    ModelMismatch,
    ProtocolError,
    ServerBusy,
    ShellOutdated,
    VersionMismatch,
    WrongShape,
)
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.server.ahead import PART_TOKENS
from confide.hybrid.server.batch import Batcher
from confide.hybrid.server.limits import AheadAllowance, Cost, Limits
from confide.hybrid.server.service import Admitted, LayerService
from confide.ledger.ledger import LICENCE_SECONDS, Ledger
from confide.ledger.licences import licence_book
from confide.ledger.sqlite import DATABASE, SqliteStore
from confide.ledger.usage import licensed_tokens
from confide.packages.manifest import Provenance
from confide.packages.signing import Release, SignedManifest
from confide.rlwe.parameters import Profile

from .world import SHAPES, Client, Served, Tokens, break_transactions, hello, model, service, serving

GROUPS = range(len(SHAPES))


@pytest.fixture
def served(tmp_path: Path) -> Iterator[Served]:
    with serving(service(tmp_path)) as made:
        yield made


def wait_until(condition: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def measured(served: Served, name: str, **labels: str) -> float:
    """What an operator reads of a measure."""
    value = served.server.metrics.registry.get_sample_value(name, labels)
    assert value is not None
    return value


def nothing_in_flight(served: Served) -> bool:
    """Whether clients without a licence have all of their credit: a request larger than it must wait for that."""
    service = served.model.service
    credit = served.server.licensee(service.ledger.anonymous(service.model_digest)).credit
    return credit.has(Cost(1 << 62, 1 << 62))


def code_of(answer: wire.FromServer) -> str:
    assert isinstance(answer, wire.Failure), answer
    return answer.code


@pytest.mark.parametrize("profile", list(Profile))
@pytest.mark.parametrize("count", [1, 2, 33])
def test_products_are_exact(tmp_path: Path, profile: Profile, count: int) -> None:
    with serving(service(tmp_path, profile=profile)) as served, Client(served.url, greet=False) as client:
        assert isinstance(client.ask(hello(profile=profile)), wire.Welcome)
        tokens = Tokens(count, profile)
        for group in GROUPS:
            tokens.require_exact(group, client.ask(tokens.request(group)))


def test_work_ahead_gives_the_same(served: Served) -> None:
    with Client(served.url) as client:
        tokens = Tokens(6)
        client.send(tokens.ahead(9))
        wait_until(lambda: measured(served, "confide_ahead_tokens_total") == 6)
        request = tokens.request(0, block=9, with_p0=False)
        tokens.require_exact(0, client.ask(request))
        planes = tokens.planes(1)
        parts = [
            client.ask(wire.Online(1, 9, first, 2, wire.payload(planes[:, first : first + 2]))) for first in (0, 2, 4)
        ]
        values = b"".join(bytes(part.values) for part in parts if isinstance(part, wire.Answer))
        tokens.require_exact(1, wire.Answer(memoryview(values)))


def test_a_block_serves_before_it_is_made(served: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Batcher, "busy", True)
    monkeypatch.setattr("confide.hybrid.server.ahead.MOST_PATIENCE", 60)
    with Client(served.url) as client:
        tokens = Tokens(3)
        client.send(tokens.ahead(1))
        for group in GROUPS:
            tokens.require_exact(group, client.ask(tokens.request(group, block=1, with_p0=False)))
        assert measured(served, "confide_ahead_tokens_total") == 0


def test_an_unknown_block_costs_nothing_and_the_same_bytes_with_p0_are_answered(served: Served) -> None:
    with Client(served.url) as client:
        tokens = Tokens(3)
        request = tokens.request(0, block=5, with_p0=False)
        assert code_of(client.ask(request)) == "unknown-block"
        assert served.model.service.ledger.anonymous(model().signed.release.model_digest).used == 0
        again = wire.Online(request.group, 5, 0, 3, request.planes, memoryview(tokens.p0))
        tokens.require_exact(0, client.ask(again))


@pytest.mark.parametrize(("first", "count"), [(2, 2), (3, 1), (65535, 1)])
def test_tokens_beyond_a_block_are_unknown(served: Served, first: int, count: int) -> None:
    with Client(served.url) as client:
        client.send(Tokens(3).ahead(5))
        planes = memoryview(bytes(6 * count * SHAPES[0][1]))
        assert code_of(client.ask(wire.Online(0, 5, first, count, planes))) == "unknown-block"


def test_another_connection_does_not_have_the_block(served: Served) -> None:
    with Client(served.url) as one, Client(served.url) as other:
        tokens = Tokens(2)
        one.send(tokens.ahead(1))
        request = tokens.request(0, block=1, with_p0=False)
        tokens.require_exact(0, one.ask(request))
        assert code_of(other.ask(request)) == "unknown-block"


def test_answers_come_in_the_order_of_requests(served: Served) -> None:
    """Also where one of them is refused, or a later one could be answered sooner."""
    with Client(served.url) as client, Client(served.url) as other:
        other.ask(Tokens(1).request(0))  # two are active, so requests wait to be put together
        asked = [(Tokens(1 + number % 3), number % 3) for number in range(30)]
        for number, (tokens, group) in enumerate(asked):
            client.send(tokens.request(group, with_p0=number % 4 != 0))
        for number, (tokens, group) in enumerate(asked):
            answer = client.receive()
            if number % 4 == 0:
                assert code_of(answer) == "unknown-block"
            else:
                tokens.require_exact(group, answer)


def test_requests_of_several_clients_are_one_product(served: Served) -> None:
    clients = [Client(served.url) for _ in range(4)]
    try:
        for _ in range(20):
            asked = [Tokens(1 + number) for number in range(len(clients))]
            requests = [tokens.request(1, with_p0=number % 2 == 0) for number, tokens in enumerate(asked)]
            for client, tokens, number in zip(clients, asked, range(4), strict=True):
                if number % 2:
                    client.send(tokens.ahead(0))
            for client, request in zip(clients, requests, strict=True):
                client.send(request)
            for client, tokens in zip(clients, asked, strict=True):
                tokens.require_exact(1, client.receive())
    finally:
        for client in clients:
            client.socket.close()
    products = measured(served, "confide_online_batch_count")
    assert measured(served, "confide_online_batch_bucket", le="1.0") < products


def two_models(tmp_path: Path) -> dict[str, LayerService]:
    """The same layers with secret and with open weights, on one ledger."""
    first, open_weights = service(tmp_path), model(Profile.OPEN_WEIGHTS)
    return {"chat": first, "code.v2": LayerService(open_weights.signed, open_weights.stored, first.ledger)}


def test_models_are_found_by_their_names(tmp_path: Path) -> None:
    with serving(two_models(tmp_path)) as served:
        for name, profile in (("chat", Profile.PRIVATE_WEIGHTS), ("code.v2", Profile.OPEN_WEIGHTS)):
            with Client(f"{served.url}/{name}", greet=False) as client:
                greeted = client.ask(hello(profile=profile))
                assert isinstance(greeted, wire.Welcome)
                tokens = Tokens(2, profile)
                tokens.require_exact(1, client.ask(tokens.request(1)))
            # And none is another one.
            with Client(f"{served.url}/{name}", greet=False) as client:
                other = next(one for one in Profile if one is not profile)
                assert code_of(client.ask(hello(profile=other))) == ModelMismatch.code
        for nowhere in ("", "/nothing", "/chat/code.v2", "/CHAT"):
            with pytest.raises((InvalidStatus, OSError)):
                Client(f"{served.url}{nowhere}")
        with pytest.raises(ConnectionLost, match=r"wss://host:port/name"):
            LayerConnection(Dial(served.url), model().signed.release)
        LayerConnection(Dial(f"{served.url}/chat"), model().signed.release).close()


def test_a_model_alone_is_found_with_and_without_its_name(served: Served) -> None:
    for address in (served.url, f"{served.url}/", f"{served.url}/small"):
        LayerConnection(Dial(address), model().signed.release).close()


def test_models_share_the_limits(tmp_path: Path) -> None:
    with serving(two_models(tmp_path), Limits(connections_per_licence=2)) as served:
        with Client(f"{served.url}/chat"), Client(f"{served.url}/code.v2", greet=False) as second:
            second.ask(hello(profile=Profile.OPEN_WEIGHTS))
            with pytest.raises(ServerBusy):
                Client(f"{served.url}/chat")
    with serving(two_models(tmp_path), Limits(connections=1)) as served, Client(f"{served.url}/chat"):
        with pytest.raises(InvalidStatus):
            Client(f"{served.url}/code.v2")


# -- what is refused -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error"),
    [
        ({"version": 2}, VersionMismatch),
        ({"scheme": "rlwe-1"}, VersionMismatch),
        ({"model_digest": bytes(32)}, ModelMismatch),
        ({"table_digest": bytes(32)}, ModelMismatch),
        ({"licence": "confide-unknown"}, LicenceRefused),
    ],
)
def test_a_greeting_that_does_not_fit(served: Served, change: dict[str, object], error: type[Exception]) -> None:
    greeting = hello()
    for name, value in change.items():
        setattr(greeting, name, value)
    with Client(served.url, greet=False) as client:
        answer = client.ask(greeting)
        assert isinstance(answer, wire.Failure)
        with pytest.raises(error):
            wire.raise_failure(answer)
        with pytest.raises(ConnectionClosed):
            client.receive()


def test_an_earlier_releases_shell_is_told_which_one_to_get(tmp_path: Path) -> None:
    made = model()
    earlier = Release(made.signed.release.owner, bytes(32), bytes(32), Profile.PRIVATE_WEIGHTS)
    for version, named in (("2.1", "release 2.1 "), ("", f"release {made.signed.release.digest[:16]} ")):
        manifest = msgspec.structs.replace(made.signed.manifest, provenance=Provenance(version, (earlier.digest,)))
        signed = SignedManifest(manifest, made.signed.signature)
        newer = LayerService(signed, made.stored, Ledger(tmp_path / named), insecure_no_licences=True)
        with serving(newer) as served, Client(served.url, greet=False) as client:
            greeting = msgspec.structs.replace(hello(), model_digest=bytes(32), table_digest=bytes(32))
            answer = client.ask(greeting)
            assert isinstance(answer, wire.Failure)
            with pytest.raises(ShellOutdated, match=rf"server says: .*{named}.*get the client folder"):
                wire.raise_failure(answer)


def test_a_server_answers_licensed_clients_only(tmp_path: Path) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        with pytest.raises(LicenceRefused, match="CONFIDE_LICENCE"):
            Client(served.url)
        _, key = served.model.service.ledger.licences.create("Example Ltd", tokens=3, disclosure=None)
        with Client(served.url, key) as client:
            assert client.welcome is not None
            assert client.welcome.allowance.tokens_left == 3
            tokens = Tokens(2)
            tokens.require_exact(0, client.ask(tokens.request(0)))
            assert code_of(client.ask(Tokens(2).request(0))) == BudgetExhausted.code
        with Client(served.url, key) as client:
            assert client.welcome is not None
            assert client.welcome.allowance.tokens_left == 1


def test_another_key_ends_the_old_one_on_open_connections_too(tmp_path: Path) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        book = served.model.service.ledger.licences
        licence, old = book.create("Example Ltd", tokens=9, disclosure=None)
        tokens = Tokens(2)
        with Client(served.url, old) as client, Client(served.url, old) as idle:
            tokens.require_exact(0, client.ask(tokens.request(0)))
            _, new = book.rekey(licence)
            with pytest.raises(LicenceRefused):
                Client(served.url, old)
            with Client(served.url, new) as renewed:
                assert renewed.welcome is not None
                assert renewed.welcome.allowance.tokens_left == 7
                # The server knows by now, for the licence is its account's.
                assert code_of(client.ask(Tokens(2).request(0))) == LicenceRefused.code
                assert code_of(idle.ask(tokens.ahead(0))) == LicenceRefused.code
                tokens.require_exact(1, renewed.ask(tokens.request(1)))


def test_a_key_that_was_replaced_elsewhere_ends_within_a_second(tmp_path: Path) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        licence, old = served.model.service.ledger.licences.create("Example Ltd", disclosure=None)
        with Client(served.url, old) as client:
            assert isinstance(client.ask(Tokens(1).request(0)), wire.Answer)
            with licence_book(tmp_path) as book:
                book.rekey(licence)
            time.sleep(LICENCE_SECONDS + 0.1)
            assert code_of(client.ask(Tokens(1).request(0))) == LicenceRefused.code


def test_nobody_with_a_lease_waits_for_a_slow_ledger(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not for the first request of another licence, nor for a greeting; these are answered once it has spoken."""
    monkeypatch.setattr("confide.ledger.ledger.LICENCE_SECONDS", math.inf)
    with serving(service(tmp_path, insecure_no_licences=False)) as served, ExitStack() as stack:
        book = served.model.service.ledger.licences
        keys = [book.create(name, disclosure=None)[1] for name in ("one", "two", "three")]
        quick, slow = (stack.enter_context(Client(served.url, key)) for key in keys[:2])
        tokens = [Tokens(1, seed=number) for number in range(7)]
        tokens[0].require_exact(0, quick.ask(tokens[0].request(0)))
        speak = threading.Event()
        transaction, query = SqliteStore.transaction, SqliteStore.query

        def slowly(work: Callable[..., Any]) -> Callable[..., Any]:
            def wait(*arguments: Any) -> Any:
                assert speak.wait(60)
                return work(*arguments)

            return wait

        monkeypatch.setattr(SqliteStore, "transaction", slowly(transaction))
        monkeypatch.setattr(SqliteStore, "query", slowly(query))
        late = stack.enter_context(Client(served.url, keys[2], greet=False))
        late.send(hello(keys[2]))
        for group in (1, 2):
            slow.send(tokens[1].request(group))
        try:
            for more in tokens[2:]:
                more.require_exact(1, quick.ask(more.request(1)))
        finally:
            speak.set()
        for group in (1, 2):
            tokens[1].require_exact(group, slow.receive())
        assert isinstance(late.receive(), wire.Welcome)


def test_where_the_ledger_cannot_be_asked_the_client_hears_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        key = served.model.service.ledger.licences.create("Example Ltd", disclosure=None)[1]
        with Client(served.url, key) as client:
            with monkeypatch.context() as patch:
                break_transactions(patch, "before")
                assert code_of(client.ask(Tokens(1).request(0))) == LedgerUnavailable.code
            tokens = Tokens(1)
            tokens.require_exact(0, client.ask(tokens.request(0)))  # on the same connection
        account = served.model.service.ledger.authenticate(key, served.model.service.model_digest)
        assert account.used == 1


def test_a_request_that_is_none_leases_nothing(tmp_path: Path) -> None:
    with serving(service(tmp_path)) as served, Client(served.url) as client:
        request = Tokens(1).request(0)
        false = wire.Online(0, 0, 0, 1 << 20, request.planes, request.p0)
        assert code_of(client.ask(false)) in (WrongShape.code, MalformedMessage.code)
        served.model.service.ledger.checkpoint()
        with closing(SqliteStore(tmp_path / DATABASE)) as store:
            assert store.rows("leases") == []


def test_a_welcome_says_what_the_licence_allows(tmp_path: Path) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        limits = {"tokens": 1000, "expires": 1 << 32, "tokens_per_minute": 700, "disclosure": 9.0, "check_sets": 0}
        key = served.model.service.ledger.licences.create("Example Ltd", **limits)[1]
        with Client(served.url, key) as client:
            client.ask(Tokens(2).request(1))
        with Client(served.url, key) as client:
            assert client.welcome is not None
            allowance = client.welcome.allowance
    groups = model().signed.manifest.groups
    left = [licensed_tokens(9.0, group, 0) - 2 * (index == 1) for index, group in enumerate(groups)]
    assert allowance == wire.Allowance(
        998, min(left), 64 / groups[1].entropy_bits, 9.0, 64 * groups[1].rows, 1 << 32, 700
    )
    assert allowance.tokens == min(998, *left)


def test_a_welcome_says_what_was_disclosed(tmp_path: Path) -> None:
    with serving(service(tmp_path)) as served:
        shares = []
        for _ in range(2):
            with Client(served.url) as client:
                assert client.welcome is not None
                shares.append(client.welcome.allowance.disclosed)
                client.ask(Tokens(4).request(0))
        entropy = model().signed.manifest.groups[0].entropy_bits
        assert shares[1] >= 4 * 32 / entropy


@pytest.mark.parametrize(
    "request_of",
    [
        lambda: wire.Online(9, 0, 0, 1, memoryview(bytes(48)), memoryview(bytes(12288))),
        lambda: wire.Online(0, 0, 0, 1, memoryview(bytes(47)), memoryview(bytes(12288))),
        lambda: wire.Online(0, 0, 0, 2, memoryview(bytes(48)), memoryview(bytes(12288))),
        lambda: wire.Online(0, 0, 0, 1, memoryview(bytes(48)), memoryview(bytes(12287))),
        lambda: wire.Online(0, 0, 0, 1, memoryview(bytes(48)), memoryview(bytes(24576))),
    ],
)
def test_a_wrong_shape_is_refused_and_costs_nothing(served: Served, request_of: Callable[[], wire.Online]) -> None:
    with Client(served.url) as client:
        assert code_of(client.ask(request_of())) in ("unknown-group", "wrong-shape")
        assert served.model.service.ledger.anonymous(model().signed.release.model_digest).used == 0
        tokens = Tokens(1)
        tokens.require_exact(0, client.ask(tokens.request(0)))


@pytest.mark.parametrize("size", [0, 1, 12287, 257 * 12288])
def test_a_block_that_is_no_whole_tokens_ends_the_connection(served: Served, size: int) -> None:
    with Client(served.url) as client:
        assert code_of(client.ask(wire.Ahead(0, memoryview(bytes(size))))) == "wrong-shape"
        with pytest.raises(ConnectionClosed):
            client.receive()


@pytest.mark.parametrize("frame", [b"", b"\xff" * 20, wire.encode(wire.Answer(memoryview(b""))), "text"])
def test_rubbish_ends_the_connection(served: Served, frame: bytes | str) -> None:
    with Client(served.url) as client:
        client.socket.send(frame)
        assert code_of(client.receive()) == "malformed-message"
        with pytest.raises(ConnectionClosed):
            client.receive()


def test_nothing_is_answered_before_the_greeting(served: Served) -> None:
    for message in (wire.Ahead(0, memoryview(b"x")), wire.Online(0, 0, 0, 1, memoryview(b"x"))):
        with Client(served.url, greet=False) as client:
            assert code_of(client.ask(message)) == ProtocolError.code


def test_a_second_greeting_is_refused(served: Served) -> None:
    with Client(served.url) as client:
        assert code_of(client.ask(hello())) == ProtocolError.code


# -- limits --------------------------------------------------------------------------------------------------


def test_frames_before_the_greeting_are_small(served: Served) -> None:
    with Client(served.url, greet=False) as client:
        with suppress(ConnectionClosed):
            client.socket.send(bytes(wire.MAX_FRAME // 2))
        with pytest.raises(ConnectionClosed):
            client.receive()
    with Client(served.url) as client:  # and large ones are welcome after it
        assert code_of(client.ask(wire.Online(0, 0, 0, 1, memoryview(bytes(wire.MAX_FRAME))))) == "wrong-shape"


def test_a_greeting_that_does_not_end_takes_no_memory(served: Served) -> None:
    """The server hangs up after the first bytes too many, of however large a frame."""
    with Client(served.url, greet=False) as client:
        raw: socket.socket = client.socket.socket
        header = bytes([0x82, 0xFF]) + (4 << 20).to_bytes(8, "big") + bytes(4)
        raw.sendall(header + bytes(wire.MAX_GREETING))
        with pytest.raises(ConnectionClosed):
            client.receive()


def test_connections_are_limited_before_the_upgrade(tmp_path: Path) -> None:
    with serving(service(tmp_path), Limits(connections=2)) as served:
        with Client(served.url), Client(served.url):
            with pytest.raises(InvalidStatus) as refused:
                Client(served.url)
            assert refused.value.response.status_code == 503
        wait_until(lambda: not served.server.peers)
        Client(served.url).socket.close()


def test_connections_of_a_licence_are_limited(tmp_path: Path) -> None:
    with serving(service(tmp_path), Limits(connections_per_licence=2)) as served:
        with Client(served.url), Client(served.url), pytest.raises(ServerBusy):
            Client(served.url)
        wait_until(lambda: not served.server.peers)
        Client(served.url).socket.close()


@pytest.mark.parametrize("limits", [Limits(bytes_in_flight=1), Limits(work_in_flight=1)])
def test_a_client_without_credit_waits_and_is_answered(tmp_path: Path, limits: Limits) -> None:
    with serving(service(tmp_path), limits) as served, Client(served.url) as client, Client(served.url) as other:
        other.ask(Tokens(1).request(0))
        asked = [(Tokens(2), number % 3) for number in range(20)]
        for tokens, group in asked:
            client.send(tokens.request(group))
        for tokens, group in asked:
            tokens.require_exact(group, client.receive())


def test_what_waited_for_credit_is_answered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where each answer is given at once, and gives back the credit that the next one waits for."""
    made = service(tmp_path)
    rows, columns = SHAPES[0]
    monkeypatch.setattr("confide.hybrid.server.batch.inline_work", lambda _: 2 * rows * (columns + 2048))
    with serving(made, Limits(bytes_in_flight=1)) as served, Client(served.url) as client:
        asked = [Tokens(33), *(Tokens(1) for _ in range(8))]
        frames = [wire.encode(tokens.request(0)) for tokens in asked]
        for frame in frames:
            client.socket.send(frame)
        for tokens in asked:
            tokens.require_exact(0, client.receive())
        last = Tokens(1)
        last.require_exact(1, client.ask(last.request(1)))
    assert made.ledger.anonymous(made.model_digest).answered == {0: 33 + 8, 1: 1}


def test_no_more_than_the_credit_is_in_flight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = service(tmp_path)
    cost = made.cost(Tokens(1).request(0))
    limits = Limits(bytes_in_flight=3 * cost.bytes, licence_credit=2)
    waiting: list[int] = []
    with serving(made, limits) as served:
        batcher = served.model.batcher
        add = batcher.add

        def counted(client: object, group: int, request: object, on_answer: object) -> None:
            add(client, group, request, on_answer)  # type: ignore[arg-type]
            waiting.append(batcher.waiting)

        monkeypatch.setattr(batcher, "add", counted)
        clients = [Client(served.url) for _ in range(4)]
        for client in clients:
            client.ask(Tokens(1).request(0))
        asked = [[Tokens(1) for _ in range(10)] for _ in clients]
        frames = [[wire.encode(tokens.request(0)) for tokens in row] for row in asked]
        for client, row in zip(clients, frames, strict=True):
            for frame in row:
                client.socket.send(frame)
        for client, tokens_of in zip(clients, asked, strict=True):
            for tokens in tokens_of:
                tokens.require_exact(0, client.receive())
            client.socket.close()
    assert max(waiting) <= 6


def test_what_a_dead_client_asked_for_is_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("ACTIVE_SECONDS", "MAX_WINDOW"):
        monkeypatch.setattr(f"confide.hybrid.server.batch.{name}", 60.0)
    with serving(service(tmp_path)) as served:
        batcher = served.model.batcher
        one, other, third = (Client(served.url) for _ in range(3))
        third.ask(Tokens(1).request(0))
        # The third is active and has asked for nothing, so that both requests wait for one of its.
        one.send(Tokens(1).request(1))
        wait_until(lambda: batcher.waiting == 1)
        other.send(Tokens(1).request(1))
        wait_until(lambda: batcher.waiting == 2)
        assert not nothing_in_flight(served)
        one.socket.close()
        wait_until(lambda: len(served.server.peers) == 2)
        assert batcher.waiting == 1
        other.socket.close()
        wait_until(lambda: len(served.server.peers) == 1)
        assert not batcher.busy
        assert nothing_in_flight(served)
        tokens = Tokens(2)
        tokens.require_exact(1, third.ask(tokens.request(1)))
        third.socket.close()


def test_an_answer_for_a_client_that_has_gone_gives_its_credit_back_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = service(tmp_path)
    begun, go = threading.Event(), threading.Event()
    answers = made.answers

    def slow(group: int, admitted: list[Admitted]) -> list[wire.Answer]:
        begun.set()
        go.wait(60)
        return answers(group, admitted)

    monkeypatch.setattr(made, "answers", slow)
    monkeypatch.setattr("confide.hybrid.server.batch.inline_work", lambda _: 0)
    with serving(made) as served, Client(served.url) as other:
        one = Client(served.url)
        one.send(Tokens(1).request(0))
        assert begun.wait(60)
        one.socket.close()
        wait_until(lambda: len(served.server.peers) == 1)
        go.set()
        tokens = Tokens(2)
        tokens.require_exact(1, other.ask(tokens.request(1)))
        assert nothing_in_flight(served)


def test_p0_is_bounded_for_each_connection_and_for_all(tmp_path: Path) -> None:
    made = service(tmp_path)
    p0 = len(Tokens(1).p0)
    limits = Limits(p0_bytes=8 * p0, all_ahead_bytes=12 * p0, ahead_bytes=0)
    with serving(made, limits) as served:
        with Client(served.url) as one, Client(served.url) as other:
            assert one.welcome is not None
            assert one.welcome.ahead_tokens == 8
            tokens = [Tokens(4) for _ in range(3)]
            for number in range(3):
                one.send(tokens[number].ahead(number))
            assert code_of(one.ask(tokens[0].request(0, block=0, with_p0=False))) == "unknown-block"
            for number in (1, 2):
                tokens[number].require_exact(0, one.ask(tokens[number].request(0, block=number, with_p0=False)))
            assert served.server.room.used == 8 * p0
            second = Tokens(4)
            other.send(second.ahead(0))
            third = Tokens(4)
            other.send(third.ahead(1))
            second.require_exact(0, other.ask(second.request(0, block=0, with_p0=False)))
            assert code_of(other.ask(third.request(0, block=1, with_p0=False))) == "unknown-block"
            one.send(Tokens(9).ahead(7))  # larger than what a connection may have
            assert code_of(one.ask(Tokens(9).request(0, block=7, with_p0=False))) == "unknown-block"
        wait_until(lambda: served.server.room.used == 0)


def test_work_ahead_is_bounded_and_goes_on_where_a_group_is_done(tmp_path: Path) -> None:
    made = service(tmp_path)
    most = 40 * sum(made.ahead_bytes.values())
    with serving(made, Limits(ahead_bytes=most)) as served, Client(served.url) as client:
        tokens = Tokens(96)
        client.send(tokens.ahead(0))
        wait_until(lambda: measured(served, "confide_ahead_tokens_total") == PART_TOKENS)
        work = served.server.room.used - len(tokens.p0)
        assert PART_TOKENS * sum(made.ahead_bytes.values()) <= work <= most
        for group in GROUPS:  # some of it was made, the rest is made now, and what was asked for is free again
            tokens.require_exact(group, client.ask(tokens.request(group, with_p0=False)))
        wait_until(lambda: served.server.room.used == 0)
        planes = memoryview(bytes(6 * SHAPES[0][1]))
        assert code_of(client.ask(wire.Online(0, 0, 0, 1, planes))) == "unknown-block"


def asked(client: Client, tokens: Tokens, group: int, planes: NDArray[np.int8], first: int) -> bytes:
    """What a group answers for a part of block 0."""
    part = planes[:, first : first + PART_TOKENS]
    answer = client.ask(wire.Online(group, 0, first, PART_TOKENS, memoryview(part.tobytes())))
    assert isinstance(answer, wire.Answer), answer
    return bytes(answer.values)


def test_what_was_asked_for_makes_room_for_what_comes(tmp_path: Path) -> None:
    """Group by group: a prompt that is longer than what is kept goes on with work that was made ahead."""
    made = service(tmp_path)
    limits = Limits(ahead_bytes=PART_TOKENS * sum(made.ahead_bytes.values()))
    with serving(made, limits) as served, Client(served.url) as client:
        tokens = Tokens(2 * PART_TOKENS)
        client.send(tokens.ahead(0))
        wait_until(lambda: measured(served, "confide_ahead_tokens_total") == PART_TOKENS)
        planes = [tokens.planes(group) for group in GROUPS]
        values = [[asked(client, tokens, group, planes[group], 0)] for group in GROUPS]
        wait_until(lambda: measured(served, "confide_ahead_tokens_total") == 2 * PART_TOKENS)
        for group in GROUPS:
            values[group].append(asked(client, tokens, group, planes[group], PART_TOKENS))
            tokens.require_exact(group, wire.Answer(memoryview(b"".join(values[group]))))


def test_work_ahead_is_only_for_tokens_that_the_licence_has(tmp_path: Path) -> None:
    with serving(service(tmp_path, insecure_no_licences=False)) as served:
        _, key = served.model.service.ledger.licences.create("Example Ltd", tokens=3, disclosure=None)
        with Client(served.url, key) as client:
            tokens = Tokens(4)
            client.send(tokens.ahead(0))
            tokens = Tokens(3)
            client.send(tokens.ahead(1))
            wait_until(lambda: measured(served, "confide_ahead_tokens_total") == 3)
            tokens.require_exact(0, client.ask(tokens.request(0, block=1, with_p0=False)))


def test_work_ahead_that_is_thrown_away_runs_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    granted: list[bool] = []
    take = AheadAllowance.take

    def noted(allowance: AheadAllowance, tokens: int) -> bool:
        granted.append(take(allowance, tokens))
        return granted[-1]

    monkeypatch.setattr(AheadAllowance, "take", noted)
    made = service(tmp_path)
    p0 = len(Tokens(1).p0)
    limits = Limits(ahead_bytes=PART_TOKENS * sum(made.ahead_bytes.values()), p0_bytes=PART_TOKENS * p0)
    with serving(made, limits) as served, Client(served.url) as client:
        planes = memoryview(bytes(6 * SHAPES[0][1]))
        for number in range(6):
            client.send(Tokens(PART_TOKENS).ahead(number))
            # Without work ahead, too, the server has p0 and answers.
            assert isinstance(client.ask(wire.Online(0, number, 0, 1, planes)), wire.Answer)
            wait_until(lambda before=number: len(granted) == before + 1)
            assert isinstance(client.ask(wire.Online(0, number, 1, 1, planes)), wire.Answer)
            work = served.server.room.used - PART_TOKENS * p0
            assert (work > 0) == granted[-1]
            client.send(Tokens(1).ahead(number))  # in its place, so that there is room
            wait_until(lambda before=number: len(granted) == before + 2)
            granted.pop()
    # What is granted at once, and the few tokens that were used.
    assert granted.count(True) in (2, 3)
    assert not granted[-1]


def test_a_silent_client_is_let_go(tmp_path: Path) -> None:
    limits = Limits(greeting_seconds=0.2, idle_seconds=0.2)
    with serving(service(tmp_path), limits) as served:
        for greet in (True, False):
            with Client(served.url, greet=greet) as client:
                assert code_of(client.receive()) == ProtocolError.code


def test_a_stop_answers_what_was_asked_for(served: Served) -> None:
    with Client(served.url) as client:
        tokens = Tokens(2)
        tokens.require_exact(0, client.ask(tokens.request(0)))
        served.stop()
        with pytest.raises(ConnectionClosed) as closed:
            client.receive()
        assert closed.value.rcvd is not None
        assert closed.value.rcvd.code == 1012


def test_another_server_with_the_same_package_goes_on(tmp_path: Path) -> None:
    tokens = Tokens(2)
    with serving(service(tmp_path / "one")) as served, Client(served.url) as client:
        client.send(tokens.ahead(0))
        tokens.require_exact(0, client.ask(tokens.request(0, with_p0=False)))
    with serving(service(tmp_path / "two")) as served, Client(served.url) as client:
        request = tokens.request(1, with_p0=False)
        assert code_of(client.ask(request)) == "unknown-block"
        again = wire.Online(1, 0, 0, 2, request.planes, memoryview(tokens.p0))
        tokens.require_exact(1, client.ask(again))


def test_the_same_request_gives_the_same_answer_whatever_it_is_put_together_with(tmp_path: Path) -> None:
    """The server draws nothing: what a retry learns is what the first answer said."""
    made = service(tmp_path)
    account = made.ledger.anonymous(made.model_digest)
    tokens, others = Tokens(3), Tokens(2)
    request = made.admit(account, tokens.request(2))
    alone = made.answers(2, [request])[0]
    together = made.answers(2, [made.admit(account, others.request(2)), request])[1]
    assert np.array_equal(np.frombuffer(alone.values, np.int32), np.frombuffer(together.values, np.int32))
    made.ledger.close()


def test_the_client_hears_of_a_full_server_as_of_a_busy_one(tmp_path: Path) -> None:
    with serving(service(tmp_path), Limits(connections=1)) as served, Client(served.url):
        dial = Dial(served.url, insecure_no_tls=True)
        for _ in range(3):  # the second answer is as good as the first
            with pytest.raises(ServerBusy):
                LayerConnection(dial, model().signed.release)


def test_health_says_whether_answers_can_be_had_and_life_whether_to_restart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def said(url: str, path: str) -> tuple[int, str]:
        answer = httpx.get(url.replace("ws://", "http://") + path, trust_env=False)
        return answer.status_code, answer.text.strip()

    with serving(service(tmp_path)) as served:
        assert (said(served.url, "/health"), said(served.url, "/health/live")) == ((200, "ok"), (200, "ok"))
        with monkeypatch.context() as patch:
            patch.setattr(Ledger, "in_touch", property(lambda _: False))
            assert said(served.url, "/health") == (503, "ledger-unavailable")
            assert said(served.url, "/health/live") == (200, "ok")
        served.server.draining = True
        assert (said(served.url, "/health"), said(served.url, "/health/live")) == ((503, "draining"), (200, "ok"))
