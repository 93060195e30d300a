"""The commands as a person or a script runs them: each as a process, with its output read."""

import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from . import command


def confide(*arguments: object, check: int = 0) -> subprocess.CompletedProcess[str]:
    done = command.run(*arguments)
    assert done.returncode == check, done.stderr
    assert "Traceback" not in done.stderr
    return done


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    output: dict[str, Any] = json.loads(confide(*arguments, "--json", check=check).stdout)
    return output


def kept(folder: Path, key: str) -> tuple[str, Path]:
    """The option that gives a licence key."""
    path = folder / f"key-{len(list(folder.iterdir()))}"
    path.write_text(f"{key}\n")
    return "--licence-file", path


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


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A home of these tests' own, not there at first."""
    folder = tmp_path_factory.mktemp("home") / "confide"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(folder))
        yield folder


@pytest.fixture(scope="module", autouse=True)
def licence(parts: dict[str, Any]) -> Iterator[str]:
    """A key without limits, which every command of these tests has in its environment."""
    key: str = answer("licence", "create", parts["server"], "--name", "tests", "--lift-disclosure")["key"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_LICENCE", key)
        yield key


def fresh(parts: dict[str, Any], tmp_path: Path) -> Path:
    """The server's package as its owner handed it over, without a ledger."""
    return Path(shutil.copytree(parts["server"], tmp_path / "package", ignore=shutil.ignore_patterns("state")))


@contextmanager
def serving(*arguments: object, log: Path | None = None) -> Iterator[str]:
    with command.serving("serve", *arguments, "--port", "0", log=log) as ready:
        assert {model["groups"] for model in ready["models"]} == {4}
        yield ready["url"]


@pytest.fixture(scope="module")
def url(parts: dict[str, Any]) -> Iterator[str]:
    with serving(parts["server"]) as address:
        yield address


def test_split_says_what_it_protected(parts: dict[str, Any]) -> None:
    assert parts["groups"] == 4
    assert 0 < parts["protected_share"] < 1
    assert parts["encryption"] == ["n2048_q48_t30_a32"]


def test_the_first_split_makes_an_owner_key(parts: dict[str, Any], home: Path) -> None:
    own = answer("owner", "show")
    assert own["owner"] == parts["owner"]
    assert own["file"] == str(home / "owner.key")
    assert (home / "owner.key").stat().st_mode & 0o777 == 0o600
    trusted = answer("owner", "list")["owners"]
    expected = {"owner": own["owner"], "fingerprint": own["fingerprint"], "name": "own key", "successor": None}
    assert trusted == [expected]


def test_owner_keys_by_hand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    assert "Nobody is trusted" in confide("owner", "list").stderr
    made = answer("owner", "init")
    assert answer("owner", "init", check=1)["error"]["code"] == "owner-key"
    assert answer("owner", "show") == made
    friend = "ab" * 32
    assert answer("owner", "trust", friend, "--name", "a friend")["name"] == "a friend"
    assert answer("owner", "trust", friend)["name"] == "a friend"
    assert answer("owner", "trust", "ab", check=1)["error"]["code"] == "owner-key"
    shown = confide("owner", "list").stdout
    assert shown.count("\n") == 2
    assert made["owner"] in shown
    assert f"{friend}  a friend" in shown
    assert made["fingerprint"] in confide("owner", "show").stdout


def test_a_passphrase_protects_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, model: Path) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    path = tmp_path / "mine.key"
    assert "CONFIDE_OWNER_PASSPHRASE" in answer("owner", "init", "--passphrase", check=1)["error"]["message"]
    monkeypatch.setenv("CONFIDE_OWNER_PASSPHRASE", "open sesame")
    made = answer("owner", "init", "--out", path, "--passphrase")
    assert b"ENCRYPTED" in path.read_bytes()
    parts = answer("split", model, "--out", tmp_path / "split", "--owner", path)
    assert parts["owner"] == made["owner"]
    assert not (tmp_path / "home" / "owner.key").exists()
    monkeypatch.setenv("CONFIDE_OWNER_PASSPHRASE", "open barley")
    refused = answer("owner", "show", "--owner", path, check=1)["error"]
    assert "passphrase is wrong" in refused["message"]


def test_the_client_pins_the_owner(
    parts: dict[str, Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = ("generate", parts["client"], "--server", url, "--prompt-ids", "5", "--max-new-tokens", 1)
    assert answer(*arguments, "--owner", "ab" * 32, check=1)["error"]["code"] == "untrusted-owner"
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path))
    refused = answer(*arguments, check=1)["error"]
    assert refused["code"] == "untrusted-owner"
    assert f"confide owner trust {parts['owner']}" in refused["message"]
    assert answer(*arguments, "--owner", parts["owner"])["generated_tokens"] == 1
    answer("owner", "trust", parts["owner"])
    assert answer(*arguments)["generated_tokens"] == 1


def test_a_server_with_tls_may_be_public(parts: dict[str, Any], tmp_path: Path) -> None:
    files = answer("tls", "make-local", "--out", tmp_path / "tls", "--name", "layers.example")
    (tmp_path / "state").mkdir()
    key = answer("licence", "create", tmp_path / "state", "--name", "public", "--lift-disclosure")["key"]
    tls = ("--tls-cert", files["certificate"], "--tls-key", files["key"], "--state", tmp_path / "state")
    with serving(fresh(parts, tmp_path), "--host", "0.0.0.0", *tls) as url:  # noqa: S104
        assert url.startswith("wss://0.0.0.0:")
        server = ("--server", url.replace("0.0.0.0", "localhost"), *kept(tmp_path, key))  # noqa: S104
        generate = ("generate", parts["client"], "--prompt-ids", "5", "--max-new-tokens", 2, "--patience", 5)
        assert answer(*generate, *server, check=1)["error"]["code"] == "untrusted-certificate"
        assert answer(*generate, *server, "--ca", files["ca"])["generated_tokens"] <= 2


def test_private_and_clear_generation_agree(parts: dict[str, Any], url: str) -> None:
    arguments = ("generate", parts["client"], "--prompt-ids", "5,6,7", "--max-new-tokens", 9)
    for sampling in ((), ("--temperature", 0.8, "--top-k", 12, "--top-p", 0.9, "--seed", 3)):
        private = answer(*arguments, *sampling, "--server", url)
        clear = answer(*arguments, *sampling, "--clear-with", parts["server"])
        assert private["token_ids"] == clear["token_ids"]
        assert private["token_ids"][:3] == [5, 6, 7]
        assert private["online_bytes"] > 0 == clear["online_bytes"]
        assert private["ms_per_token"] > 0


@pytest.mark.parametrize(("multiple", "visible"), [(4, 8), ("full", 7)])
def test_generation_says_what_padding_costs(
    parts: dict[str, Any], url: str, tmp_path: Path, multiple: int | str, visible: int
) -> None:
    options = ("--max-new-tokens", 7, "--pad-prompt", 5, "--pad-answer", multiple)
    private = answer("generate", parts["client"], "--prompt-ids", "5,6,7", *options, "--server", url)
    count = private["generated_tokens"]
    if multiple == 4 and count <= 4:
        visible = 4
    assert private["lengths"] == {"prompt": 3, "visible_prompt": 5, "answer": count, "visible_answer": visible}
    kept = tmp_path / "kept"
    run = confide("generate", parts["client"], "--prompt-ids", "5,6,7", *options, "--server", url, "--receipt", kept)
    assert f"the server saw 5 tokens for the prompt's 3 and {visible} for the answer's {count}" in " ".join(
        run.stderr.split()
    )
    if multiple != "full":
        return
    bodies = ("--request", kept / "request", "--response", kept / "response")
    words = (
        "receipt",
        "verify",
        kept / "receipt.json",
        *bodies,
        "--shell",
        parts["client"],
        "--owner",
        parts["owner"],
    )
    unknown = answer(*words, check=10)
    assert not unknown["verified"]  # whoever made it
    key = answer("receipt", "key")["public_key"]
    found = answer(*words, "--client-key", key)
    assert (found["verified"], found["made_by"]) == (True, "client")
    outcomes = {one["code"]: one["outcome"] for one in found["checks"]}
    assert {code for code, outcome in outcomes.items() if outcome != "pass"} == {"client-server"}
    (kept / "response").write_bytes(b"other")
    assert not answer(*words, "--client-key", key, check=10)["verified"]
    assert (
        "a workload's receipt" in confide("receipt", "verify", kept / "receipt.json", "--bundle", kept, check=30).stderr
    )


def test_a_licensees_own_checks(parts: dict[str, Any], url: str, tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    report = answer("checks", parts["server"], "--out", mine, "--licence", "me", "--serial", 2)
    size = mine.stat().st_size
    assert report == {"checks": str(mine), "groups": 4, "bytes": size, "licence": "me", "serial": 2}
    assert answer("checks", parts["server"], "--out", mine, check=1)["error"]["code"] == "error"
    assert "--checks" in confide("checks", parts["server"], "--out", tmp_path / "again").stdout
    arguments = ("generate", parts["client"], "--prompt-ids", "5", "--max-new-tokens", 2, "--server", url)
    assert len(answer(*arguments, "--checks", mine)["token_ids"]) == 3
    missing = answer(*arguments, "--checks", tmp_path / "none", check=1)["error"]
    assert missing["code"] == "invalid-package"


def test_refused_servers_are_listed_and_forgiven(
    parts: dict[str, Any], url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from confide.hybrid.client.refusals import Breach, RefusalList
    from confide.packages.manifest import read_manifest

    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    assert "No server is refused" in confide("distrust").stderr
    digest = read_manifest(parts["client"]).model_digest
    RefusalList().add(url, digest, Breach("h.0.mlp", ("h.0.mlp.up",), 3))
    assert [entry["token"] for entry in answer("distrust")["distrusted"]] == [3]
    assert "h.0.mlp.up), token 3" in " ".join(confide("distrust").stdout.split())
    arguments = ("generate", parts["client"], "--owner", parts["owner"], "--server", url, "--prompt-ids", "5")
    refused = answer(*arguments, check=1)["error"]
    assert refused["code"] == "server-distrusted"
    assert "confide distrust --clear" in refused["message"]
    assert answer("distrust", "--clear") == {"distrusted": []}
    assert answer("distrust") == {"distrusted": []}
    assert answer(*arguments, "--max-new-tokens", 1)["generated_tokens"] == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("split", "no/such/model", "--out", "x"), "error"),
        (("split", "demo", "--out", "x", "--owner", "no/such.key"), "owner-key"),
        (("serve", "no/such/folder"), "invalid-package"),
        (("serve", "{client}"), "invalid-package"),
        (("serve", "{server}", "--host", "0.0.0.0"), "insecure-connection"),  # noqa: S104
        (("serve", "{server}", "--tls-cert", "no.pem", "--tls-key", "no.key"), "invalid-certificate"),
        (("tls", "make-local", "--name", "two words"), "invalid-certificate"),
        (
            ("generate", "{client}", "--server", "wss://127.0.0.1:9", "--ca", "no.pem", "--prompt-ids", "1"),
            "invalid-certificate",
        ),
        (("generate", "{server}", "--server", "127.0.0.1:9", "--prompt-ids", "1"), "invalid-package"),
        (("generate", "{client}", "--server", "127.0.0.1:9", "--prompt-ids", "1"), "connection-lost"),
        (("generate", "{client}", "--server", "192.0.2.1:9", "--prompt-ids", "1"), "insecure-connection"),
        (("generate", "{client}", "--prompt-ids", "1", "--clear-with", "{client}"), "invalid-package"),
        (("licence", "list", "no/such/folder"), "error"),
        (("licence", "create", "{client}", "--name", "x"), "error"),
        (("licence", "create", "{server}", "--name", "tests"), "error"),
        (("licence", "revoke", "{server}", "nobody"), "error"),
        (("ledger", "backup", "no/such/folder", "--out", "x"), "error"),
        (("ledger", "restore", "{server}", "--from", "no/such/backup"), "error"),
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
        ("serve", "{server}", "--tls-cert", "server.pem"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "1", "--pad-answer", "0"),
        ("generate", "{client}", "--clear-with", "{server}", "--prompt-ids", "1", "--pad-answer", "some"),
        ("serve", "{server}", "--insecure-no-licences", "--host", "0.0.0.0"),  # noqa: S104
        ("serve", "{server}", "--metrics-port", "0"),
        ("licence", "create", "{server}"),
        ("licence", "create", "{server}", "--name", "x", "--tokens", "0"),
        ("licence", "create", "{server}", "--name", "x", "--disclosure", "inf"),
        ("licence", "change", "{server}", "tests"),
        ("conjure",),
    ],
)
def test_wrong_usage_exits_with_two(parts: dict[str, Any], arguments: tuple[str, ...]) -> None:
    run = confide(*[argument.format(**parts) for argument in arguments], check=2)
    assert "Usage" in run.stderr or "Error" in run.stderr


# -- licences and the ledger -----------------------------------------------------------------------------------


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A state folder of its own."""
    folder = tmp_path / "state"
    folder.mkdir()
    return folder


def fits(run: subprocess.CompletedProcess[str]) -> str:
    """What a person with 80 columns reads."""
    shown = run.stdout + run.stderr
    assert max(map(len, shown.splitlines()), default=0) <= 80
    assert "None" not in shown
    return shown


def test_a_licence_from_its_making_to_its_end(state: Path) -> None:
    assert "No licence yet" in fits(confide("licence", "list", state))
    limits = ("--tokens", 50000, "--days", 365, "--rate", 600, "--disclosure", 0.25)
    made = answer("licence", "create", state, "--name", "Sons [& daughters]", *limits)
    key = made.pop("key")
    assert key.startswith("confide-")
    assert (made["state"], made["tokens_used"], made["tokens"], made["tokens_per_minute"]) == ("active", 0, 50000, 600)
    assert (made["check_sets"], made["disclosure_limit"]) == (1, 0.25)
    assert answer("licence", "list", state) == {"licences": [made]}
    assert answer("licence", "show", state, made["id"]) == made | {"disclosed": []}
    changed = answer("licence", "change", state, made["id"], "--tokens", 7, "--check-sets", 2, "--lift-disclosure")
    assert changed == made | {"tokens": 7, "check_sets": 2, "disclosure_limit": None}
    other = fits(confide("licence", "create", state, "--name", "second", "--tokens", 1))
    assert other.count("confide-") == 1
    listed = fits(confide("licence", "list", state))
    assert "Sons [& daughters]" in listed
    assert made["id"] in listed
    assert "no limit" in fits(confide("licence", "show", state, "Sons [& daughters]"))
    assert "changed" in fits(confide("licence", "change", state, "second", "--rate", 5))
    assert "revoked" in fits(confide("licence", "revoke", state, "second"))
    assert sorted(one["state"] for one in answer("licence", "list", state)["licences"]) == ["active", "revoked"]
    for path in state.iterdir():
        assert key.removeprefix("confide-").encode() not in path.read_bytes()


def test_a_server_wants_a_licence_and_counts_what_it_used(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import socket
    import urllib.request

    monkeypatch.delenv("CONFIDE_LICENCE")
    state, log = tmp_path / "state", tmp_path / "log"
    state.mkdir()
    key = answer("licence", "create", state, "--name", "reader", "--tokens", 40, "--lift-disclosure")["key"]
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        private = listener.getsockname()[1]
    arguments = (fresh(parts, tmp_path), "--state", state, "--metrics-port", private, "--log", "json")
    with serving(*arguments, log=log) as url:
        where = (parts["client"], "--server", url)
        generate = ("generate", *where, "--prompt-ids", "5,6,7", "--max-new-tokens", 4)
        for wrong in ((), kept(tmp_path, "confide-wrong")):
            assert answer(*generate, *wrong, check=1)["error"]["code"] == "licence-refused"
        monkeypatch.setenv("CONFIDE_LICENCE", key)
        generated = answer(*generate)["generated_tokens"]
        refused = answer(*generate, "--max-new-tokens", 40, check=1)["error"]
        assert refused["code"] == "budget-exhausted"
        assert "tokens left" in refused["message"]
        with urllib.request.urlopen(f"http://127.0.0.1:{private}/metrics") as page:
            metrics = page.read().decode()
        assert 'confide_refusals_total{code="licence-refused"} 2.0' in metrics
        assert "budget-exhausted" not in metrics  # the client knew
        answer("licence", "revoke", state, "reader")
        assert answer(*generate, check=1)["error"]["code"] == "licence-refused"
    (used,) = answer("licence", "usage", state)["usage"]
    assert 3 <= generated + 2 <= used["tokens"] <= 40
    header, row = confide("licence", "usage", state, "reader", "--csv").stdout.splitlines()
    assert header == "licence,id,day,unit,tokens"
    assert row == f"reader,{used['id']},{used['day']},layers,{used['tokens']}"
    assert used["day"] in fits(confide("licence", "usage", state))
    shown = answer("licence", "show", state, "reader")
    assert (shown["tokens_used"], shown["state"]) == (used["tokens"], "revoked")
    events = [json.loads(line) for line in log.read_text().splitlines()]
    assert {"client greeted", "client parted with"} <= {event["event"] for event in events}
    assert key not in log.read_text()


def test_what_a_licensee_knows_of_the_weights_is_shown(parts: dict[str, Any], url: str) -> None:
    answer("generate", parts["client"], "--server", url, "--prompt-ids", "5", "--max-new-tokens", 2)
    layers = answer("licence", "show", parts["server"], "tests")["disclosed"]
    assert len(layers) == 4
    for layer in layers:
        assert layer["tokens"] >= 2
        assert layer["share"] > 0
    shown = fits(confide("licence", "show", parts["server"], "tests"))
    assert "of what solves it" in shown
    assert "%" in shown
    limited = fits(confide("licence", "create", parts["server"], "--name", "limited"))
    assert "the bits that solve a layer's weights" in " ".join(limited.split())
    assert "No limit is set" in fits(confide("licence", "change", parts["server"], "limited", "--lift-disclosure"))


@pytest.mark.slow
def test_a_ledger_is_backed_up_while_serving_and_restored_after(parts: dict[str, Any], tmp_path: Path) -> None:
    state, saved = tmp_path / "state", tmp_path / "backup"
    state.mkdir()
    key = answer("licence", "create", state, "--name", "reader", "--lift-disclosure")["key"]
    arguments = (parts["client"], *kept(tmp_path, key), "--prompt-ids", "5", "--max-new-tokens", 2)
    package = fresh(parts, tmp_path)
    with serving(package, "--state", state) as url:
        assert answer("generate", *arguments, "--server", url)["generated_tokens"]
        assert "Backup written" in confide("ledger", "backup", state, "--out", saved).stdout
        assert answer("ledger", "backup", state, "--out", saved, check=1)["error"]["code"] == "error"
        assert answer("ledger", "restore", state, check=1)["error"]["code"] == "ledger-in-use"
    restored = answer("ledger", "restore", state, "--from", saved)
    assert restored["licences"] == 1
    assert restored["tokens_used"] > 0  # at least what was leased at the time
    tokens = restored["tokens_used"]
    assert f"Restored 1 licence with {tokens:,} tokens used." in fits(confide("ledger", "restore", state))
    with serving(package) as url:  # which remembers where its ledger is
        assert answer("generate", *arguments, "--server", url)["generated_tokens"]
    assert "Accepted" in fits(confide("ledger", "accept-clock", state))


def test_a_server_without_licences_stays_on_this_machine(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONFIDE_LICENCE")
    with serving(fresh(parts, tmp_path), "--state", tmp_path / "state", "--insecure-no-licences") as url:
        generate = ("generate", parts["client"], "--server", url, "--prompt-ids", "5", "--max-new-tokens", 1)
        assert answer(*generate)["generated_tokens"] == 1
    files = answer("tls", "make-local", "--out", tmp_path / "tls")
    tls = ("--tls-cert", files["certificate"], "--tls-key", files["key"])
    run = confide("serve", parts["server"], "--host", "0.0.0.0", "--insecure-no-licences", *tls, check=2)  # noqa: S104
    assert "loopback" in run.stderr


def test_several_models_behind_one_server(
    parts: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CONFIDE_LICENCE")
    package = fresh(parts, tmp_path)
    shutil.copytree(package, tmp_path / "other" / "server")
    both, state = (f"chat={package}", tmp_path / "other" / "server"), tmp_path / "state"
    assert "one ledger" in confide("serve", *both, check=2).stderr
    twice = confide("serve", package, f"package={tmp_path / 'other' / 'server'}", check=2)
    assert "two models are called" in twice.stderr
    with serving(*both, "--state", state, "--insecure-no-licences") as url:
        for name in ("chat", "other"):
            generate = ("generate", parts["client"], "--server", f"{url}/{name}", "--prompt-ids", "5")
            assert answer(*generate, "--max-new-tokens", 1)["generated_tokens"] == 1
        refused = answer("generate", parts["client"], "--server", url, "--prompt-ids", "5", check=1)["error"]
        assert "one must be named" in refused["message"]
    # Each package knows where the ledger is that they share.
    assert answer("licence", "create", package, "--name", "reader")["id"] in {
        one["id"] for one in answer("licence", "list", tmp_path / "other" / "server")["licences"]
    }


def test_the_demo_reports_everything_it_shows() -> None:
    report = answer("demo", "--max-new-tokens", 24)
    assert report["identical_to_clear"] is True
    assert report["tokens"] == 24
    assert report["text"].startswith(report["prompt"])
    assert report["agreement_with_fp32"] > 0.8
    assert report["uniformity_p_value"] > 1e-6
    assert report["protected_parameters"] == 4_718_592
    for name in ("private_ms_per_token", "clear_fp32_ms_per_token", "work_ahead_ms_per_token"):
        assert report[name] > 0
    online = 6 * 6 * (3 * 256 + 1024) + 4 * 6 * (768 + 256 + 1024 + 256)
    assert online < report["bytes_per_token"] < 1.5 * online
    left = subprocess.run(["pgrep", "-f", "confide-demo-"], capture_output=True, text=True, check=False)
    assert left.stdout == ""


def test_a_licensee_asks_what_a_licence_allows(parts: dict[str, Any], url: str, tmp_path: Path) -> None:
    made = answer(
        "licence", "create", parts["server"], "--name", "asks", "--tokens", 500, "--days", 30, "--disclosure", 50
    )
    asked = ("licence", "status", parts["client"], "--server", url)
    status = answer(*asked, *kept(tmp_path, made["key"]))
    assert status["tokens_left"] == 500
    assert status["answers_left"] > 0
    assert status["expires"] == made["expires"]
    assert status["disclosure_limit"] == 50
    shown = confide(*asked, *kept(tmp_path, made["key"]))
    assert "500" in shown.stdout
    assert "As the server at ws://" in shown.stderr
    renewed = answer("licence", "rekey", parts["server"], "asks")
    assert renewed["id"] == made["id"]
    refused = answer(*asked, *kept(tmp_path, made["key"]), check=1)
    assert refused["error"]["code"] == "licence-refused"
    again = answer(*asked, *kept(tmp_path, renewed["key"]))
    assert again["tokens_left"] == 500
