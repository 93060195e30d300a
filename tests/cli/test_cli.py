"""The commands as a person or a script runs them: each as a process, with its output read."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def confide(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "confide", *map(str, arguments)]
    run = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == check, run.stderr
    assert "Traceback" not in run.stderr
    return run


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    output: dict[str, Any] = json.loads(confide(*arguments, "--json", check=check).stdout)
    return output


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny GPT-2 without a tokenizer."""
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("model")
    config = GPT2Config(vocab_size=97, n_positions=64, n_embd=16, n_layer=1, n_head=2, eos_token_id=0, bos_token_id=0)
    GPT2LMHeadModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def parts(model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return answer("split", model, "--out", tmp_path_factory.mktemp("split"))


@pytest.fixture(scope="module")
def url(parts: dict[str, Any]) -> Iterator[str]:
    command = [sys.executable, "-m", "confide", "serve", parts["server"], "--port", "0", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    ready = json.loads(process.stdout.readline())
    assert ready["groups"] == 4
    yield ready["url"]
    process.send_signal(signal.SIGTERM)
    assert process.wait(20) in (0, -signal.SIGTERM)


def test_split_says_what_it_protected(parts: dict[str, Any]) -> None:
    assert parts["groups"] == 4
    assert 0 < parts["protected_share"] < 1
    assert parts["encryption"] == ["n4096_q96_t30_keep40"]


def test_prepare_says_what_it_costs_and_rounds_up(parts: dict[str, Any], url: str) -> None:
    run = confide("prepare", parts["client"], "--server", url, "--tokens", 1, "--json")
    report = json.loads(run.stdout)
    assert report["tokens_prepared"] == 4096
    assert report["bytes_up"] > 0 < report["bytes_down"]
    assert "round up to 4,096" in run.stderr


def test_private_and_clear_generation_agree(parts: dict[str, Any], url: str) -> None:
    arguments = ("generate", parts["client"], "--prompt-ids", "5,6,7", "--max-new-tokens", 9)
    for sampling in ((), ("--temperature", 0.8, "--top-k", 12, "--top-p", 0.9, "--seed", 3)):
        private = answer(*arguments, *sampling, "--server", url)
        clear = answer(*arguments, *sampling, "--clear-with", parts["server"])
        assert private["token_ids"] == clear["token_ids"]
        assert private["token_ids"][:3] == [5, 6, 7]
        assert private["online_bytes"] > 0 == clear["online_bytes"]
        assert private["ms_per_token"] > 0


def test_generation_prepares_when_nothing_is_left(parts: dict[str, Any], url: str, tmp_path: Path) -> None:
    run = confide(
        "generate", parts["client"], "--prompt-ids", "5", "--max-new-tokens", 2, "--server", url, "--packs", tmp_path
    )
    assert "preparing more first" in run.stderr
    assert run.stdout.strip().startswith("5,")


@pytest.mark.parametrize(("multiple", "visible"), [(4, 8), ("full", 7)])
def test_generation_says_what_padding_costs(parts: dict[str, Any], url: str, multiple: int | str, visible: int) -> None:
    options = ("--max-new-tokens", 7, "--pad-prompt", 5, "--pad-answer", multiple)
    private = answer("generate", parts["client"], "--prompt-ids", "5,6,7", *options, "--server", url)
    count = private["generated_tokens"]
    if multiple == 4 and count <= 4:
        visible = 4
    assert private["lengths"] == {"prompt": 3, "visible_prompt": 5, "answer": count, "visible_answer": visible}
    run = confide("generate", parts["client"], "--prompt-ids", "5,6,7", *options, "--server", url)
    assert f"the server saw 5 tokens for the prompt's 3 and {visible} for the answer's {count}" in " ".join(
        run.stderr.split()
    )


def test_a_licensees_own_checks(parts: dict[str, Any], url: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    report = answer("checks", parts["server"], "--out", mine)
    assert report == {"checks": str(mine), "groups": 4, "bytes": mine.stat().st_size}
    assert answer("checks", parts["server"], "--out", mine, check=1)["error"]["code"] == "error"
    assert "--checks" in confide("checks", parts["server"], "--out", tmp_path / "again").stdout
    arguments = ("generate", parts["client"], "--prompt-ids", "5", "--max-new-tokens", 2, "--server", url)
    assert len(answer(*arguments, "--checks", mine)["token_ids"]) == 3
    missing = answer(*arguments, "--checks", tmp_path / "none", check=1)["error"]
    assert missing["code"] == "invalid-package"


def test_refused_servers_are_listed_and_forgiven(parts: dict[str, Any], url: str, tmp_path: Path) -> None:
    from confide.hybrid.distrust import Breach, RefusalList
    from confide.models.package import read_manifest

    assert "No server is refused" in confide("distrust", tmp_path).stderr
    digest = read_manifest(parts["client"]).model_digest
    RefusalList(tmp_path).add(url, bytes(32), digest, Breach("h.0.mlp", ("h.0.mlp.up",), 3))
    assert [entry["token"] for entry in answer("distrust", tmp_path)["distrusted"]] == [3]
    assert "h.0.mlp.up), token 3" in " ".join(confide("distrust", tmp_path).stdout.split())
    refused = answer("prepare", parts["client"], "--server", url, "--packs", tmp_path, check=1)["error"]
    assert refused["code"] == "server-distrusted"
    assert f"confide distrust {tmp_path} --clear" in refused["message"]
    assert answer("distrust", tmp_path, "--clear") == {"distrusted": []}
    assert answer("distrust", tmp_path) == {"distrusted": []}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("split", "no/such/model", "--out", "x"), "error"),
        (("serve", "no/such/folder"), "invalid-package"),
        (("serve", "{client}"), "invalid-package"),
        (("serve", "{server}", "--host", "0.0.0.0"), "insecure-connection"),  # noqa: S104
        (("prepare", "{server}", "--server", "127.0.0.1:9"), "invalid-package"),
        (("prepare", "{client}", "--server", "127.0.0.1:9"), "connection-lost"),
        (("prepare", "{client}", "--server", "192.0.2.1:9"), "insecure-connection"),
        (("generate", "{client}", "--prompt-ids", "1", "--clear-with", "{client}"), "invalid-package"),
    ],
)
def test_errors_are_one_sentence_with_a_code(parts: dict[str, Any], arguments: tuple[str, ...], code: str) -> None:
    os.environ["HF_HUB_OFFLINE"] = "1"
    filled = [argument.format(**parts) for argument in arguments]
    error = answer(*filled, check=1)["error"]
    assert error["code"] == code
    assert error["message"].endswith(".")
    shown = confide(*filled, check=1)
    assert code in shown.stderr


@pytest.mark.parametrize(
    "arguments",
    [
        ("generate", "{client}", "text"),
        ("generate", "{client}", "--server", "x", "--clear-with", "y", "text"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "1,two"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "97"),
        ("generate", "{client}", "--clear-with", "{server}", "text"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "1", "--pad-answer", "0"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "1", "--pad-answer", "some"),
        ("conjure",),
    ],
)
def test_wrong_usage_exits_with_two(parts: dict[str, Any], arguments: tuple[str, ...]) -> None:
    run = confide(*[argument.format(**parts) for argument in arguments], check=2)
    assert "Usage" in run.stderr or "Error" in run.stderr


def test_the_demo_reports_everything_it_shows() -> None:
    report = answer("demo", "--max-new-tokens", 48)
    assert report["identical_to_clear"] is True
    assert report["tokens"] == 48
    assert report["text"].startswith(report["prompt"])
    assert report["agreement_with_fp32"] > 0.9
    assert report["uniformity_p_value"] > 1e-6
    assert report["protected_parameters"] == 4_718_592
    for name in ("private_ms_per_token", "clear_fp32_ms_per_token", "offline_ms_per_token"):
        assert report[name] > 0
    assert report["online_bytes_per_token"] == 4 * 6 * (3 * 256 + 1024 + 768 + 256 + 1024 + 256)
    left = subprocess.run(["pgrep", "-f", "confide-demo-"], capture_output=True, text=True, check=False)
    assert left.stdout == ""
