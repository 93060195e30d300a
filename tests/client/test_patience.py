"""A crowd is asked to come back, and comes back one by one."""

from types import SimpleNamespace
from typing import NamedTuple

import httpx
import pytest

from confide.client import attested
from confide.client.attested import ATTEMPTS, verify_workload
from confide.errors import ConfideError, ConnectionLost, GatewayError, ServerBusy, ServerSilent
from confide.net.patience import MAX_PAUSE, asked_for, pause


class Appraised(NamedTuple):
    evidence: bytes
    nonce: str
    statement = SimpleNamespace(configuration=None)


class Crowded:
    """A server that says some things before it gives evidence; the evidence is not looked at here."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *before: httpx.Response | Exception) -> None:
        self.before, self.nonces, self.pauses = list(before), list[str](), list[float]()
        monkeypatch.setattr(attested.Attested, "decode", lambda raw: raw)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.nonces.append(request.url.params["nonce"])
        if not self.before:
            return httpx.Response(200, content=b"evidence")
        said = self.before.pop(0)
        if isinstance(said, Exception):
            raise said
        return said

    def verify(self) -> object:
        http = httpx.Client(transport=httpx.MockTransport(self))
        return verify_workload(http, "https://x.example", self, self.pauses.append)  # type: ignore[arg-type]

    def appraise(self, evidence: bytes, nonce: str, _now: object, _url: str) -> "Appraised":
        return Appraised(evidence, nonce)


def test_who_is_turned_away_comes_back_with_another_nonce(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = httpx.RemoteProtocolError("Server disconnected without sending a response.")
    server = Crowded(monkeypatch, httpx.Response(429, headers={"Retry-After": "7"}), cut, httpx.Response(503))
    assert server.verify() == (b"evidence", server.nonces[-1])
    assert len(set(server.nonces)) == 4
    first, second, third = server.pauses
    assert 7 <= first <= 10.5
    assert 1 <= second <= 1.5
    assert 2 <= third <= 3


@pytest.mark.parametrize(
    ("said", "kind", "asked"),
    [
        (lambda: httpx.Response(429), ServerBusy, ATTEMPTS),
        (lambda: httpx.Response(404), GatewayError, 1),
        (lambda: httpx.ReadTimeout("too long"), ServerSilent, 1),
        (lambda: _caused(httpx.ConnectError("no"), ConnectionRefusedError()), ConnectionLost, 1),
    ],
)
def test_only_what_may_pass_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, said: object, kind: type[ConfideError], asked: int
) -> None:
    server = Crowded(monkeypatch, *(said() for _ in range(ATTEMPTS)))  # type: ignore[operator]
    with pytest.raises(kind):
        server.verify()
    assert len(server.nonces) == asked
    assert len(server.pauses) == asked - 1


def _caused(error: Exception, cause: Exception) -> Exception:
    error.__cause__ = cause
    return error


def test_pauses_grow_and_differ_and_have_an_end() -> None:
    assert pause(1) < pause(3) < pause(6)
    assert len({pause(2) for _ in range(20)}) > 10
    assert pause(1, 1e9) == pause(30) == MAX_PAUSE


@pytest.mark.parametrize(
    ("header", "seconds"),
    [("5", 5), ("0", 0), (None, 0), ("Wed, 21 Oct", 0), ("-3", 0), ("9" * 400, MAX_PAUSE), ("²", 0), ("inf", 0)],
)
def test_what_a_server_may_ask_for(header: str | None, seconds: float) -> None:
    assert asked_for(header) == seconds
