"""What an operator can read, and whoever reads the operator's files: what happened, and nothing that is secret."""

import base64
import io
import json
import logging
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.pretty import pretty_repr
from torch import Tensor

from confide import errors
from confide.hybrid import wire
from confide.hybrid.client.connection import LayerConnection
from confide.hybrid.client.dial import Dial
from confide.hybrid.server.ahead import Block
from confide.hybrid.server.service import Admitted
from confide.ledger.sqlite import DATABASE, SqliteStore
from confide.logs import JsonLines, TextLines

from .server.world import Tokens, hello, model, serving
from .server.world import service as small_service


def spellings(secret: bytes) -> set[str]:
    """How bytes may look in a text."""
    plain, urlsafe = (encode(secret).decode().rstrip("=") for encode in (base64.b64encode, base64.urlsafe_b64encode))
    numbers = list(secret[:16])
    lists = {", ".join(map(str, numbers)), " ".join(map(str, numbers)), ",".join(map(str, numbers))}
    return {
        secret.hex(),
        secret.hex(" "),
        secret.hex().upper(),
        plain,
        urlsafe,
        repr(secret)[2:-1],
        str(int.from_bytes(secret)),
    } | lists


def spellings_of_integers(values: Tensor | np.ndarray) -> set[str]:
    """How integers may look; four in a row are no coincidence."""
    row = np.asarray(values).reshape(-1)[:4]
    separated = {separator.join(map(str, row.tolist())) for separator in (", ", ",", " ", "  ")}
    return separated | spellings(row.astype("<i4").tobytes())


@dataclass
class Secrets:
    """Everything that must not be seen, by name."""

    texts: dict[str, set[str]] = field(default_factory=dict)

    def add(self, name: str, *secrets: bytes | str | Tensor | np.ndarray) -> None:
        found = self.texts.setdefault(name, set())
        for secret in secrets:
            if isinstance(secret, str):
                found |= {secret} | spellings(secret.encode())
            elif isinstance(secret, bytes):
                found |= spellings(secret)
            else:
                found |= spellings_of_integers(secret)

    def seen_in(self, text: str) -> list[str]:
        return [name for name, texts in self.texts.items() if any(one in text for one in texts)]


@pytest.fixture(params=[JsonLines, TextLines])
def log(request: pytest.FixtureRequest) -> Iterator[io.StringIO]:
    """All that is logged, from DEBUG on."""
    written = io.StringIO()
    handler = logging.StreamHandler(written)
    handler.setFormatter(request.param())
    loggers = [logging.getLogger(name) for name in (None, "confide")]
    before = [logger.level for logger in loggers]
    loggers[0].addHandler(handler)
    for logger in loggers:
        logger.setLevel(logging.DEBUG)
    yield written
    loggers[0].removeHandler(handler)
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


class Trouble:
    """Errors as the client saw them."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def expect(self, kind: type[errors.ConfideError]) -> "pytest.RaisesExc[errors.ConfideError]":
        def keep(error: errors.ConfideError) -> bool:
            self.texts += [str(error), repr(error), "".join(traceback.format_exception(error))]
            return True

        return pytest.raises(kind, check=keep)


def test_nothing_secret_is_logged_or_said(tmp_path: Path, log: io.StringIO, monkeypatch: pytest.MonkeyPatch) -> None:
    secrets, trouble = Secrets(), Trouble()
    service = small_service(tmp_path / "state", insecure_no_licences=False)
    book = service.ledger.licences
    licence, key = book.create("reader", tokens=10, disclosure=None)
    revoked, revoked_key = book.create("gone")
    book.change(revoked, revoked=1)
    unknown = "confide-" + "Q" * 43
    secrets.add("licence key", key, revoked_key, unknown, key.removeprefix("confide-"), key[-8:])
    for index, stored in enumerate(model().stored):
        assert stored.u is not None
        secrets.add("weights", stored.weights, stored.u, *model().hints[index][0])

    def ask(connection: LayerConnection, tokens: Tokens, group: int) -> None:
        request = tokens.request(group)
        planes = np.frombuffer(request.planes, np.int8)
        secrets.add("activations", tokens.x[group])
        secrets.add("planes", planes, planes[: len(planes) // 6])
        tokens.require_exact(group, connection.request(request, wire.Answer))

    with serving(service) as served:

        def connect(licence: str = key) -> LayerConnection:
            return LayerConnection(Dial(served.url, licence=licence), model().signed.release)

        for wrong in (unknown, revoked_key, ""):
            with trouble.expect(errors.LicenceRefused):
                connect(wrong)
        with connect() as connection:
            tokens = Tokens(3)
            connection.send(tokens.ahead(0))
            for group in range(3):
                ask(connection, tokens, group)
            with trouble.expect(errors.BudgetExhausted):
                ask(connection, Tokens(64), 0)
            with trouble.expect(errors.UnknownBlock):
                connection.request(Tokens(2).request(0, block=3, with_p0=False), wire.Answer)
            with trouble.expect(errors.WrongShape):
                connection.request(wire.Online(0, 0, 0, 1, memoryview(bytes(31))), wire.Answer)
            with monkeypatch.context() as patch:
                patch.setattr(
                    service, "answers", lambda group, all: (_ for _ in ()).throw(ValueError(all[0].planes.tolist()))
                )
                with trouble.expect(errors.ServerFault):
                    ask(connection, Tokens(1, seed=1), 0)
        with connect() as connection:
            greeting = hello(key)
            greeting.version = key  # type: ignore[assignment]
            connection.send(greeting)
            with trouble.expect(errors.MalformedMessage):
                connection.receive(wire.Answer)
        with monkeypatch.context() as patch:
            patch.setattr(service, "admit", lambda account, message, block: [][len(message.planes)])
            with connect() as connection, trouble.expect(errors.ServerFault):
                ask(connection, Tokens(1, seed=2), 0)
        with monkeypatch.context() as patch:
            patch.setattr(service.matrices[2], "ahead", lambda p0: [][len(p0)])
            with connect() as connection:
                connection.send(Tokens(1).ahead(0))
                ask(connection, Tokens(1, seed=3), 0)
    lines = log.getvalue()
    assert "A product failed inside the server" in lines
    assert "A connection failed inside the server" in lines
    assert licence.id.hex() in lines or not lines.startswith("{")
    assert "ValueError" in lines
    assert {"licence key", "weights", "activations", "planes"} == set(secrets.texts)
    assert secrets.seen_in(lines) == []
    assert secrets.seen_in("\n".join(trouble.texts)) == []
    assert secrets.seen_in(json.dumps(lines)) == []
    if lines.startswith("{"):
        for line in lines.splitlines():
            assert {"time", "level", "logger", "event"} <= json.loads(line).keys()


def test_the_search_finds_what_it_looks_for() -> None:
    secrets = Secrets()
    secrets.add("bytes", bytes(range(100, 132)))
    secrets.add("integers", torch.tensor([5, 66, 777, 8888, 9]))
    secrets.add("text", "confide-abc")
    for text in (bytes(range(100, 132)).hex(), str(list(range(100, 132))), f"{bytes(range(100, 132))!r}"):
        assert secrets.seen_in(f"key={text}.") == ["bytes"]
    assert secrets.seen_in("tensor([5, 66, 777, 8888, 9])") == ["integers"]
    assert secrets.seen_in("the key confide-abc") == ["text"]
    assert secrets.seen_in("nothing") == []


def test_no_object_shows_its_secrets(tmp_path: Path) -> None:
    secrets = Secrets()
    service = small_service(tmp_path / "state")
    licence, key = service.ledger.licences.create("reader")
    account = service.ledger.authenticate(key, service.model_digest)
    planes = np.arange(40, 88, dtype=np.int8).reshape(6, 1, 8)
    p0 = np.arange(24576, dtype=np.int32).astype(np.int8).reshape(2, 6, 2048)[:1]
    secrets.add("licence key", key, licence.key_hash)
    secrets.add("planes", planes)
    secrets.add("p0", p0)
    store = SqliteStore(tmp_path / "state" / DATABASE)
    shown = [
        licence,
        account,
        service.ledger.licences,
        service.ledger,
        store,
        service,
        hello(key),
        Admitted(0, planes, None, p0),
        Block(p0, range(3)),
        wire.Ahead(0, wire.payload(p0)),
        wire.Online(0, 0, 0, 1, wire.payload(planes), wire.payload(p0)),
        wire.Answer(wire.payload(planes)),
    ]
    for one in shown:
        for text in (repr(one), str(one), f"{[one]}", pretty_repr(one), repr({"x": one})):
            assert secrets.seen_in(text) == []
    assert "reader" in repr(licence)
    store.close()
    service.ledger.close()


def record(**changes: object) -> logging.LogRecord:
    made = logging.LogRecord("confide.x", logging.WARNING, "x.py", 1, "%d of %s\n", (5, "é"), None)
    made.__dict__.update(changes)
    return made


def test_a_line_is_one_json_object_with_its_fields() -> None:
    line = JsonLines().format(record(created=0.25, msecs=250.0, fields={"licence": "ab", "code": None}))
    assert "\n" not in line
    assert json.loads(line) == {
        "time": "1970-01-01T00:00:00.250Z",
        "level": "warning",
        "logger": "confide.x",
        "event": "5 of é\n",
        "licence": "ab",
        "code": None,
    }


def test_an_exception_is_told_without_its_message() -> None:
    try:
        raise KeyError("a secret")
    except KeyError as error:
        failed = record(exc_info=(KeyError, error, error.__traceback__))
    logging.Formatter().format(failed)  # keeps its own text in the record
    line = json.loads(JsonLines().format(failed))
    assert line["exception"] == "KeyError"
    for text in (TextLines("%(message)s").format(failed), line["trace"] + line["exception"]):
        assert "test_logs.py" in text
        assert "KeyError" in text
        assert "a secret" not in text.replace('KeyError("a secret")', "")  # the line of code
