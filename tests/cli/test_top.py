"""What an operator sees: by the second, from two readings, and nothing that a server does not have."""

import json
import random
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving
from typer.testing import CliRunner

from confide.cli import top
from confide.cli.app import command_line
from confide.enclave.api.answer import Serving
from confide.enclave.api.metrics import Metrics as EnclaveMetrics
from confide.enclave.api.public import private_app
from confide.errors import ConfideError, ConnectionLost, EngineUnavailable, ProtocolError
from confide.hybrid.server.metrics import Metrics as LayerMetrics
from confide.net import metrics as metrics_page

BOARD = Path(__file__).resolve().parents[2] / "packaging" / "grafana" / "confide.json"


def reading(metrics: EnclaveMetrics | LayerMetrics, at: float, health: str = "ok") -> metrics_page.Reading:
    return metrics_page.Reading(at, health, metrics_page.parse(metrics.text().decode()))


def test_an_enclave_server_by_the_second() -> None:
    metrics = EnclaveMetrics()
    before = reading(metrics, 100)
    metrics.running.set(3)
    metrics.waiting.set(2)
    for status, count in (("200", 6), ("429", 2), ("503", 4)):
        metrics.requests.labels("/v1/chat/completions", status).inc(count)
    metrics.prompt_tokens.add(3999)
    metrics.answer_tokens.add(1000)
    for _ in range(10):
        metrics.first_piece.observe(0.15)
    shown = top.line("http://x", before, reading(metrics, 102, "engine-unavailable"))
    assert (shown.kind, shown.health) == ("enclave", "engine-unavailable")
    assert (shown.running, shown.waiting, shown.connections) == (3, 2, None)
    assert (shown.requests_per_second, shown.errors_per_second) == (6, 2)
    assert shown.tokens_per_second == 2000  # in whole thousands, as they are counted
    assert shown.half_within_seconds == pytest.approx(0.15)
    assert shown.most_within_seconds == pytest.approx(0.195)


def test_a_layer_server_by_the_second() -> None:
    metrics = LayerMetrics()
    before = reading(metrics, 100)
    metrics.connections.set(7)
    metrics.answers.inc(50)
    metrics.tokens.inc(200)
    metrics.refusals.labels("server-busy").inc(5)
    metrics.seconds.observe(100)
    shown = top.line("http://x", before, reading(metrics, 105))
    assert (shown.kind, shown.connections, shown.running) == ("layers", 7, None)
    assert (shown.requests_per_second, shown.tokens_per_second, shown.errors_per_second) == (10, 40, 1)
    assert shown.half_within_seconds == 5  # or more: the last bound there is


def test_counters_begin_anew_with_their_server() -> None:
    metrics = LayerMetrics()
    metrics.answers.inc(500)
    before = reading(metrics, 100)
    again = LayerMetrics()
    again.answers.inc(20)
    assert top.line("http://x", before, reading(again, 110)).requests_per_second == 2


def test_nothing_yet_and_nothing_there() -> None:
    metrics = EnclaveMetrics()
    quiet = top.line("http://x", reading(metrics, 0), reading(metrics, 1))
    assert (quiet.kind, quiet.requests_per_second, quiet.half_within_seconds) == ("enclave", 0, None)
    gone: ConfideError = ConnectionLost("gone")
    assert top.line("http://x", quiet_reading(), gone) == top.Line("http://x", "unknown", "connection-lost")
    back = top.line("http://x", gone, reading(metrics, 1))
    assert (back.kind, back.requests_per_second) == ("enclave", None)


def quiet_reading() -> metrics_page.Reading:
    return reading(EnclaveMetrics(), 0)


def test_whatever_answers_is_metrics_or_a_sentence() -> None:
    dice = random.Random(5)
    parts = ["confide_connections", "nan", 'le="', "# TYPE ", "# HELP ", *'{}",= \n1\\é']
    for _ in range(300):
        text = "".join(dice.choices(parts, k=dice.randrange(30)))
        with suppress(ProtocolError):
            top.line("http://x", quiet_reading(), metrics_page.Reading(1, "ok", metrics_page.parse(text)))


@pytest.mark.parametrize(
    "text",
    [
        "confide_answers_running NaN",
        "confide_connections +Inf",
        'confide_online_seconds_bucket{le="x"} 1',
        'confide_online_seconds_bucket{le="nan"} 1',
        "confide_connections{a=",
        "<html>",
        "a 1\n" * 20_001,
    ],
    ids=["nan", "inf", "bound", "nan-bound", "cut", "page", "many"],
)
def test_what_is_no_count_is_refused(text: str) -> None:
    with pytest.raises(ProtocolError):
        metrics_page.parse(text)


@contextmanager
def served() -> Iterator[tuple[str, Serving]]:
    shown = Serving(FakeEngine())
    with serving(private_app(shown)) as url:
        yield url, shown


def run(*arguments: str, exit_code: int = 0) -> Any:
    done = CliRunner().invoke(command_line(["top"]), ["top", *arguments])
    assert done.exit_code == exit_code, done.output
    return done.output


def test_the_command_shows_each_server_whatever_becomes_of_the_others() -> None:
    with served() as (url, shown):
        port = url.rsplit(":", 1)[1]
        found = json.loads(run(port, "http://127.0.0.1:9", "--interval", "0.1", "--json"))["servers"]
        assert [(one["kind"], one["health"]) for one in found] == [("enclave", "ok"), ("unknown", "connection-lost")]
        assert found[0]["up_seconds"] >= 0
        shown.pulse.failure = EngineUnavailable("away")
        text = run(f"{url}/metrics", "--interval", "0.1")
        assert "engine-un" in text  # which is broken in two where there are eighty columns
        assert "tokens/s" in text
    assert "no port" in run("nowhere", exit_code=2)


def test_every_metric_of_the_board_exists_and_all_are_on_it() -> None:
    board = json.loads(BOARD.read_text())
    named = {
        name
        for panel in board["panels"]
        for target in panel.get("targets", ())
        for name in re.findall(r"confide_[a-z_]+", target["expr"])
    }
    there = {
        sample
        for metrics in (EnclaveMetrics(), LayerMetrics())
        for family in metrics.registry.collect()
        for sample in (
            [f"{family.name}_{part}" for part in ("bucket", "sum", "count")]
            if family.type == "histogram"
            else [f"{family.name}_total" if family.type == "counter" else family.name]
        )
    }
    assert named <= there
    families = {name.removesuffix("_sum") for name in there if not name.endswith(("_bucket", "_count"))}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) for name in named}
    assert families <= shown
    assert {kind.requests for kind in top.KINDS} <= there
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
