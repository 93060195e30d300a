"""`confide chat` in front of a simulated workload."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.cli.command import run
from tests.client.workload import MODEL, FakeWorkload, serving, simulated
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving as serving_app

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Model
from confide.attest.simulated import SimulatedTee
from confide.cli.chat import Chat, headline
from confide.cli.output import KEPT
from confide.enclave.api.answer import Serving
from confide.enclave.api.public import public_app
from confide.enclave.workload import Workload
from confide.printable import printable

DIGEST = "ab" * 32


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("chat")


@pytest.fixture(scope="module")
def fake(folder: Path) -> Iterator[FakeWorkload]:
    with serving(simulated(folder / "tee", model_digest=DIGEST)) as running:
        yield running


@pytest.fixture
def root(folder: Path) -> Path:
    return folder / "tee" / "root.pem"


def test_once_prints_an_answer_with_what_was_verified(fake: FakeWorkload, root: Path) -> None:
    done = run("chat", fake.url, "--simulated-root", root, "--once", "hello", "--system", "Be brief.")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "olleh\n"
    assert done.stderr.startswith("SIMULATED, nothing is protected   tee tdx   root a simulated root")
    assert DIGEST in done.stderr
    assert [turn["role"] for turn in json.loads(fake.prompts[-1][1])["messages"]] == ["system", "user"]


def test_once_for_machines(fake: FakeWorkload, root: Path) -> None:
    done = run("chat", fake.url, "--simulated-root", root, "--once", "hello", "--json")
    said = json.loads(done.stdout)
    assert said.pop("protection").startswith("none (SIMULATED")
    assert said == {
        "text": "olleh",
        "verified": True,
        "simulated": True,
        "tee": "tdx",
        "root": "a simulated root",
        "model": MODEL,
        "model_digest": DIGEST,
    }


def test_what_is_not_trusted_is_told_nothing(fake: FakeWorkload, root: Path, tmp_path: Path) -> None:
    fake.seen.clear()
    policy = tmp_path / "policy.toml"
    policy.write_text(to_toml(SimulatedPolicy.all_of(Model("00" * 32))))
    for options in ((), ("--simulated-root", root, "--policy", policy)):
        done = run("chat", fake.url, *options, "--once", "a secret", "--json")
        assert done.returncode == 1
        assert json.loads(done.stdout)["error"]["code"] == "attestation-refused"
    assert fake.seen == ["/attestation"] * 2


@pytest.mark.parametrize(
    ("arguments", "code"), [(("--json",), 2), (("--shell", "folder", "--once", "hello"), 1)], ids=["json", "shell"]
)
def test_wrong_usage(fake: FakeWorkload, arguments: tuple[str, ...], code: int) -> None:
    done = run("chat", fake.url, *arguments)
    assert done.returncode == code
    assert "Traceback" not in done.stderr


def test_a_chat_with_commands(fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        fake.seen.clear()
        Chat(session).run(["abc", "", "too long", "def", "/verify", "/clear", "ghi", "/nonsense", "/quit", "never"])
    out = capsys.readouterr()
    assert "cba\n" in out.out
    assert "fed\n" in out.out
    assert "channel-key" in out.out
    assert "NOTHING IS PROTECTED" in out.out
    assert "prompt-too-long" in out.err
    asked = [json.loads(body)["messages"] for path, body in fake.prompts if path.endswith("completions")]
    said = [[turn["content"] for turn in messages] for messages in asked]
    assert said == [["abc"], ["abc", "cba", "too long"], ["abc", "cba", "def"], ["ghi"]]
    assert fake.seen.count("/attestation") == 1


def test_receipts(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tee = SimulatedTee.open(root.parent)
    with serving_app(public_app(Workload(tee, tee.collateral), Serving(FakeEngine()))) as url:  # type: ignore[arg-type]
        with confide.connect(url, simulated_root=root) as session:
            keep = f"/receipt {tmp_path / 'kept'}"
            Chat(session).run(["/receipt", "abc", "/receipt", keep, keep])
    out = capsys.readouterr()
    assert "unknown-receipt" in out.err  # before there is an answer
    assert out.out.count("receipt-signature") == 2
    assert "verified: all" in out.out
    assert "in the clear" in out.err
    assert (tmp_path / "kept" / "receipt.json").exists()
    assert "machine" in out.err  # the second time the files are there


def test_a_changed_key_is_verified_on_request(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        Chat(session).run(["abc"])
        fake.restart()
        Chat(session).run(["a secret", "/verify", "def"])
    out = capsys.readouterr()
    assert "key-changed" in out.err
    assert "Type /verify" in out.err
    assert out.out.startswith("cba\n")
    assert out.out.endswith("fed\n")
    assert "secret" not in str(fake.prompts)


def test_an_interruption_stops_the_answer_and_not_the_chat(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        real = session.chat

        def chat(messages: list[dict[str, str]], **options: bool) -> Iterator[str]:
            for number, piece in enumerate(real(messages, **options)):  # type: ignore[call-overload]
                if number == 2 and messages[-1]["content"] == "abcdef":
                    raise KeyboardInterrupt
                yield piece

        monkeypatch.setattr(session, "chat", chat)
        Chat(session).run(["abcdef", "xyz"])
    out = capsys.readouterr()
    assert out.out == "fe\nzyx\n"
    assert "Stopped." in out.err
    assert [turn["content"] for turn in json.loads(fake.prompts[-1][1])["messages"]] == ["abcdef", "fe", "xyz"]


def test_what_is_simulated_is_red(fake: FakeWorkload, root: Path) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        line = headline(session)
    assert line.plain.startswith("SIMULATED")
    assert line.spans[0].style == "bold red"


def test_a_model_cannot_reach_the_terminal(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        pieces = ["a\x1b[2Jb\r", "\x07\nc\u202e", "\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}"]
        monkeypatch.setattr(session, "chat", lambda *_, **__: (piece for piece in pieces))
        Chat(session).run(["hello"])
    shown = "a\ufffd[2Jb\ufffd\ufffd\nc\ufffd\N{MAN}\N{ZERO WIDTH JOINER}\N{WOMAN}\n"
    assert capsys.readouterr().out == shown


@pytest.mark.parametrize(
    "text",
    [
        "12\u202f000\u00a0€",
        "你好\u3000世界",
        "a\u2009b",
        "می\u200cخواهم",
        "क्\u200dष",
        "👩\u200d💻",
        "ש\u200f!",
        "co\u00adop",
        "a\n\tb",
    ],
)
def test_an_answer_keeps_what_its_language_writes_with(text: str) -> None:
    assert printable(text, keep=KEPT) == text


@pytest.mark.parametrize("control", ["\x1b", "\x07", "\x9b", "\r", "\x00", "\x7f", "\u202e", "\u2066", "\ud800"])
def test_an_answer_has_no_controls(control: str) -> None:
    assert printable(f"a{control}b", keep=KEPT) == "a\ufffdb"
