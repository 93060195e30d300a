"""Options that mean nothing are wrong usage, before anything is opened."""

import os
from dataclasses import replace

import pytest
import typer

from confide.cli.serve import Listening
from confide.cli.serve_model import ModelOptions
from confide.enclave.engines.engine import Dtype

from .command import run

OPTIONS = ModelOptions(
    **dict.fromkeys(
        ("tee", "simulated_tee", "keys", "keys_ca", "tls_name", "release", "certificate", "adapter",
         "adapter_keys", "upstream", "upstream_model", "context", "name", "parallel", "threads", "dtype",
         "max_tokens", "idle_timeout", "engine_timeout", "keys_through", "traces", "state", "ledger")
    ),
    ra_tls=False, insecure_open_egress=False, insecure_skip_self_test=False,
)  # fmt: skip


@pytest.mark.parametrize(
    "options",
    [
        ["--temperature", "-1"],
        ["--temperature", "nan"],
        ["--top-p", "2"],
        ["--top-p", "0"],
        ["--top-k", "0"],
        ["--seed", str(1 << 70)],
    ],
)
def test_odd_sampling_is_wrong_usage_that_names_the_option(options: list[str]) -> None:
    done = run("generate", "nowhere", "--clear-with", "nowhere", "The", *options)
    assert done.returncode == 2
    assert options[0] in done.stderr
    assert "Traceback" not in done.stderr


def test_a_prompt_that_is_no_text_is_wrong_usage() -> None:
    done = run("generate", "nowhere", "--clear-with", "nowhere", os.fsdecode(b"caf\xe9 au lait"))
    assert done.returncode == 2
    assert "UTF-8" in done.stderr


def test_what_is_granted() -> None:
    limits = replace(OPTIONS, max_tokens=9, idle_timeout=2.5, engine_timeout=3.0).limits()
    assert (limits.answer_tokens, limits.idle_seconds, limits.engine_seconds) == (9, 2.5, 3.0)
    assert OPTIONS.limits().answer_tokens == 8192
    settings = replace(OPTIONS, context=5, parallel=2, threads=3, name="a/b:c").engine()
    assert (settings.context, settings.parallel, settings.threads, settings.name) == (5, 2, 3, "a/b:c")
    assert replace(OPTIONS, max_tokens=9).stated("none", _listening())["max-tokens"] == "9"
    assert replace(OPTIONS, dtype=Dtype.INT8).engine().dtype is Dtype.INT8
    assert replace(OPTIONS, dtype=Dtype.INT8).stated("none", _listening())["dtype"] == "int8"


@pytest.mark.parametrize(
    "odd", [{"name": "a b"}, {"name": "\x1b"}, {"name": "x" * 300}, {"upstream": "http://x", "threads": 2}]
)
def test_what_cannot_be_granted_is_wrong_usage(odd: dict[str, object]) -> None:
    with pytest.raises(typer.BadParameter):
        replace(OPTIONS, **odd).engine()  # type: ignore[arg-type]


@pytest.mark.parametrize("seconds", [0, -1, float("nan"), float("inf")])
def test_timeouts_are_times(seconds: float) -> None:
    for name in ("idle_timeout", "engine_timeout"):
        with pytest.raises(typer.BadParameter):
            replace(OPTIONS, **{name: seconds}).limits()  # type: ignore[arg-type]


def _listening() -> Listening:
    return Listening("127.0.0.1", 0, None, None, insecure_no_tls=False)
