"""`confide plan` as a person or a script runs it."""

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from tests.evaluate.rates import CLIENT, SERVER
from transformers import LlamaConfig

from confide.cli import app, plan_fleet
from confide.enclave.engines.engine import Dtype
from confide.evaluate import calibrate, enclave_fleet, plan, skeleton
from confide.evaluate.cost_model import GroupRate, Rates, SkeletonTimes
from confide.evaluate.enclave_fleet import PassTimes
from confide.evaluate.trace import Arrival, write_trace
from confide.rlwe.packed import chosen_kernel

from .command import run

RATES = Rates(
    ahead=GroupRate(1e-5, 6e-8, 1e-8, 0),
    token=GroupRate(3e-4, 0, 0, 1e-10),
    prompt_token=GroupRate(0, 1e-8, 1e-8, 2e-11),
    uncached=5e-11,
    kept_token=2e-10,
    kept_prompt_token=3e-11,
    server=SERVER,
    client=CLIENT,
)


@pytest.fixture
def known_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine that need not be measured, with a terminal of 100 columns."""
    monkeypatch.setattr(calibrate, "calibrate", lambda: RATES)
    for module in (plan, skeleton):
        monkeypatch.setattr(module, "time_skeleton", lambda _, prompt: SkeletonTimes(0.002, 0.02, prompt))
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setattr(app.output.console, "width", 100)
    monkeypatch.setattr(plan_fleet, "REQUESTS", 12)


def confide(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["confide", *map(str, arguments)])
    with pytest.raises(SystemExit) as exit:
        app.main()
    return int(exit.value.code or 0)


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    assert confide(monkeypatch, "plan", *arguments, "--json") == 0
    answer: dict[str, Any] = json.loads(capsys.readouterr().out)
    return answer


@pytest.mark.usefixtures("known_machine")
def test_json_says_what_each_choice_costs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    here = planned(monkeypatch, capsys, "demo")
    there = planned(monkeypatch, capsys, "demo", "--rtt", 20, "--bandwidth", 100)
    whole = here["choices"][-1]
    assert here["int8_by"] == chosen_kernel()
    assert whole["protect"] == "all"
    assert whole["protected_parameters"] == 4_718_592
    assert whole["token"]["bytes"] == 6 * 6 * (3 * 256 + 1024) + 4 * 6 * (768 + 256 + 1024 + 256)
    assert whole["work_ahead"]["bytes"] == 6 * 2048
    assert whole["hint_bytes"] == 141_557_760
    assert whole["server_bytes"] == 4_718_592 + 6 * 2304 * 2048
    assert whole["pool_bytes"] == 256 * (8 * 6 * 1792 + 4 * 6 * 2304 + 6 * 2048)
    far = there["choices"][-1]["token"]["seconds"] - 24 * 0.020 - whole["token"]["bytes"] * 8 / 100e6
    assert far == pytest.approx(whole["token"]["seconds"])
    assert [warning["code"] for warning in here["warnings"]] == ["disclosure"]


@pytest.mark.usefixtures("known_machine")
def test_the_table_fits_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    assert confide(monkeypatch, "plan", tmp_path) == 0
    printed = capsys.readouterr()
    assert "\u2026" not in printed.out
    assert max(map(len, printed.out.splitlines())) <= 100
    assert "a server on this machine" in " ".join(printed.err.split())
    assert r"--protect '^(model\.layers\.0\.self_attn\.q_proj|" in printed.err
    assert "all,lm_head" in printed.out


@pytest.mark.usefixtures("known_machine")
@pytest.mark.parametrize("tokens", [4096, 10_000_000])
def test_units_stay_at_80_columns(
    tokens: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    LlamaConfig(num_hidden_layers=2).save_pretrained(tmp_path)
    monkeypatch.setattr(app.output.console, "width", 80)
    assert confide(monkeypatch, "plan", tmp_path, "--tokens", tokens, "--rtt", 90, "--bandwidth", 1) == 0
    printed = capsys.readouterr().out
    table = printed.split("\n\n")[0]
    assert "\u2026" not in table
    assert max(map(len, table.splitlines())) <= 80
    assert table.count("tokens") >= 5  # how long each licence lasts, with its unit
    for one in ("one layer", "attention", "mlp", "all,lm_head", "bit", "GB"):
        assert one in table


@pytest.mark.usefixtures("known_machine")
def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert confide(monkeypatch, "plan", "demo", "--tokens", 10) == 2
    assert "--prompt" in capsys.readouterr().err
    assert confide(monkeypatch, "plan", "demo", "--prompt", 4000, "--tokens", 5000, "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "prompt-too-long"
    assert confide(monkeypatch, "plan", "no/such/model", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "error"


def fleet(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    return planned(monkeypatch, capsys, "--model-shape", "gpt2-small", "--answer", 8, *arguments)


@pytest.mark.usefixtures("known_machine")
def test_a_fleet_is_planned_for_its_users(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    few = fleet(monkeypatch, capsys, "--users", 20_000, "--price", 2)
    found = few["fleet"]
    assert found["machines"] > 1
    assert found["token"]["p99"] <= 2 * few["alone"]["token"]["p99"]
    assert few["cost_per_hour"] == 2 * found["machines"]
    assert few["cost_per_million_tokens"] == pytest.approx(2e6 * found["machines"] / (3600 * found["tokens"]))
    roomy = fleet(monkeypatch, capsys, "--users", 20_000, "--machines", 10 * found["machines"], "--seed", 3)
    assert roomy["fleet"]["busy"] < found["busy"]
    assert roomy["cost_per_hour"] is None
    assert roomy["seed"] == 3

    (tmp_path / "trace.csv").write_bytes(write_trace([Arrival(float(at), 16, 2) for at in range(9)]))
    traced = planned(
        monkeypatch, capsys, "demo", "--users", 10, "--per-hour", 36, "--machines", 1, "--trace", tmp_path / "trace.csv"
    )
    assert traced["fleet"]["tokens"] == pytest.approx(10 * 36 / 3600 * 2)


@pytest.mark.usefixtures("known_machine")
def test_a_fleet_is_told_in_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(app.output.console, "width", 80)
    arguments = ("--model-shape", "gpt2-small", "--users", 50, "--machines", 2, "--answer", 8, "--price", 1.5)
    assert confide(monkeypatch, "plan", *arguments) == 0
    printed = capsys.readouterr()
    assert re.search(r"machines +2\n", printed.out)
    assert re.search(r"cost an hour +3.00\n", printed.out)
    assert "a licence lasts" in " ".join(printed.err.split())
    assert max(map(len, printed.out.splitlines())) <= 80


@pytest.mark.usefixtures("known_machine")
def test_servers_of_sealed_models_are_planned_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    passes = PassTimes(10**8, 10**7, [(1, 1e-10), (16, 2e-10)], [(1, 0.003), (8, 0.01)], 0.1, Dtype.BF16)
    monkeypatch.setattr(enclave_fleet, "time_passes", lambda *_: passes)
    near = fleet(monkeypatch, capsys, "--users", 5000, "--mode", "enclave")
    far = fleet(monkeypatch, capsys, "--users", 5000, "--mode", "enclave", "--rtt", 500)
    assert near["mode"] == "enclave"
    assert near["fleet"]["machines"] > 1
    assert near["fleet"]["memory"] > 2 * (10**8 + 10**7)
    assert near["passes"]["dtype"] == "bf16"
    assert far["alone"]["first"]["p50"] == pytest.approx(near["alone"]["first"]["p50"] + 0.5, abs=1e-6)
    assert far["alone"]["token"] == near["alone"]["token"]
    monkeypatch.setattr(app.output.console, "width", 80)
    words = ("plan", "--model-shape", "gpt2-small", "--users", 50, "--machines", 2, "--mode", "enclave")
    assert confide(monkeypatch, *words) == 0
    printed = capsys.readouterr()
    assert "16 answers at once" in " ".join(printed.err.split())
    assert max(map(len, printed.out.splitlines())) <= 80


@pytest.mark.usefixtures("known_machine")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("demo", "--mode", "enclave"), "--mode goes with --users"),
        (("demo", "--users", 1, "--mode", "cloud"), "hybrid, enclave"),
        (("demo", "--users", 1, "--mode", "enclave", "--protect", "mlp"), "leave --protect out"),
        ((), "name a MODEL"),
        (("demo", "--model-shape", "1b"), "name a MODEL"),
        (("--model-shape", "9t"), "there are gpt2-small"),
        (("demo", "--p99-first", 1), "--p99-first goes with --users"),
        (("demo", "--users", 1, "--machines", 1, "--p99", 1), "--machines, or what"),
        (("demo", "--users", 1, "--balancing", "fair"), "least-loaded"),
        (("demo", "--users", 1, "--p99", 0.001), "cannot be met"),
    ],
    ids=range(10),
)
def test_a_fleet_that_cannot_be_is_refused(
    arguments: tuple[object, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert confide(monkeypatch, "plan", *arguments) == 2
    assert said in " ".join(capsys.readouterr().err.replace("│", "").split())


@pytest.mark.usefixtures("known_machine")
def test_requests_that_fit_no_context_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "trace.csv").write_bytes(write_trace([Arrival(0.0, 10**6, 2)]))
    assert confide(monkeypatch, "plan", "demo", "--users", 1, "--trace", tmp_path / "trace.csv", "--json") == 1
    assert json.loads(capsys.readouterr().out)["error"]["code"] == "benchmark"


@pytest.mark.slow
def test_a_plan_measures_this_machine() -> None:
    done = run("plan", "demo", "--json")
    assert done.returncode == 0, done.stderr
    assert all(one["token"]["seconds"] > 0 for one in json.loads(done.stdout)["choices"])
