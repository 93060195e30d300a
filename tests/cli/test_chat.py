"""`confide chat` in front of a simulated workload."""

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from tests.cli.command import run
from tests.client.workload import MODEL, Balanced, FakeWorkload, another, serving, simulated
from tests.enclave.fake_engine import FakeEngine
from tests.enclave.serving import serving as serving_app

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Model
from confide.attest.simulated import SimulatedTee
from confide.cli import chat
from confide.cli.chat import Chat, headline
from confide.cli.history import FILE_NAME, History
from confide.cli.output import KEPT
from confide.client.enclave import EnclaveSession
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
        "replicas": {"verified": 1, "at_most": 1},
    }


def test_replicas_are_in_view_and_each_is_verified_again(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    balanced = Balanced(fake.workload, replicas=[fake, another(root.parent, DIGEST)])
    with serving(balanced), confide.connect(balanced.url, simulated_root=root, replicas=2) as session:
        Chat(session).run(["abc", "/verify"])
    out = capsys.readouterr().out
    assert "cba\n" in out
    assert out.count("channel-key") == 2  # a table of checks for each
    assert "2 verified of at most 2" in out
    assert "which of up to 2 replicas answers" in out


def test_several_addresses_and_the_options_of_replicas(fake: FakeWorkload, root: Path) -> None:
    options = ("--simulated-root", root, "--replicas", 2, "--once", "hello", "--json")
    done = run("chat", fake.url, fake.url.replace("127.0.0.1", "localhost"), *options)
    assert json.loads(done.stdout)["replicas"] == {"verified": 1, "at_most": 4}
    refused = run("chat", fake.url.replace("http", "https"), "--ra-tls", "--replicas", 2, "--once", "hello", "--json")
    error = json.loads(refused.stdout)["error"]
    assert (error["code"], "RA-TLS ends at one workload" in error["message"]) == ("wrong-mode", True)


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


def test_several_lines_are_one(fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        fake.seen.clear()
        lines = ['"""ab', "  cd", "", 'ef"""', '  """/quit"""', '"""', "gone", None, "gh", '"""never', "ended"]
        Chat(session).run(lines)
    said = [json.loads(body)["messages"][-1]["content"] for path, body in fake.prompts if path.endswith("completions")]
    assert said == ["ab\n  cd\n\nef", "/quit", "gh"]
    assert "were not sent" in capsys.readouterr().err


def test_models_are_shown_and_chosen(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(EnclaveSession, "models", [MODEL, "other\x1b[2J"])
    with confide.connect(fake.url, simulated_root=root) as session:
        fake.seen.clear()
        Chat(session).run(["/model", "/model nothing", "abc", "/model other\x1b[2J", "/model", "def"])
    out = capsys.readouterr()
    assert f"* {MODEL}\n  other\ufffd[2J\n" in out.out
    assert f"  {MODEL}\n* other\ufffd[2J\n" in out.out
    assert "There is no model of this name" in out.err
    asked = [json.loads(body)["model"] for path, body in fake.prompts if path.endswith("completions")]
    assert asked == [MODEL, "other\x1b[2J"]


def test_a_conversation_is_saved_for_its_user_alone(
    fake: FakeWorkload, root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    page, data = tmp_path / "said.md", tmp_path / "said.json"
    with confide.connect(fake.url, simulated_root=root) as session:
        monkeypatch.setattr(session, "chat", lambda *_, **__: (piece for piece in ["cb", "a\x1b[2J\n"]))
        Chat(session, "Be brief.").run([f"/save {page}", "abc", f"/save {page}", f"/save {page}", f"/save {data}"])
    out = capsys.readouterr()
    assert "Nothing was said yet." in out.err
    assert "machine" in out.err  # the second time it is there
    assert page.read_text().startswith("SIMULATED, nothing is protected")
    assert "## user\n\nabc\n\n## assistant\n\ncba\ufffd[2J\n" in page.read_text()
    kept = json.loads(data.read_text())
    assert [turn["role"] for turn in kept["messages"]] == ["system", "user", "assistant"]
    assert (kept["simulated"], kept["messages"][-1]["content"]) == (True, "cba\x1b[2J\n")
    for path in (page, data):
        assert not path.stat().st_mode & 0o077


# -- what is typed ------------------------------------------------------------------------------------------------


def typed(monkeypatch: pytest.MonkeyPatch, *lines: str) -> None:
    waiting = iter(lines)

    def read(_: str) -> str:
        line = next(waiting, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    monkeypatch.setattr("builtins.input", read)


def test_lines_are_kept_for_their_user_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    typed(monkeypatch, "abc", "^C", " hushed", "", "de\udcfff")
    assert list(chat.typed_lines(History(tmp_path))) == ["abc", None, " hushed", "", "de\ufffdf"]
    kept = History(tmp_path)
    assert kept.lines == ["abc", "de\ufffdf"]
    assert not kept.path.stat().st_mode & 0o077
    assert "abc" not in repr(kept)


def test_few_lines_are_kept(tmp_path: Path) -> None:
    History(tmp_path).path.write_bytes(b"".join(b"%d\n" % number for number in range(5000)))
    assert History(tmp_path).lines[::999] == ["4000", "4999"]
    assert History(tmp_path).path.stat().st_size < 6000
    History(tmp_path).path.write_bytes(b"\xff" * (3 << 20) + b"\nlast\n")
    assert History(tmp_path).lines[-1] == "last"


def make_a_link(path: Path) -> None:
    path.symlink_to(path.with_name("elsewhere"))


def open_to_others(path: Path) -> None:
    path.touch(0o644)


def open_the_folder(path: Path) -> None:
    path.parent.chmod(0o777)


@pytest.mark.parametrize("spoil", [make_a_link, open_to_others, open_the_folder, os.mkfifo, os.mkdir])
def test_nothing_is_kept_where_others_could_read_or_write(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None]
) -> None:
    home = tmp_path / "home"
    home.mkdir(0o700)
    spoil(home / FILE_NAME)
    with pytest.raises(OSError, match=r"yours|link|directory"):
        History(home)
    monkeypatch.setenv("CONFIDE_HOME", str(home))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True))
    assert chat.open_history() is None
    assert "is not kept" in capsys.readouterr().err
    assert not (home / "elsewhere").exists()


def test_what_comes_from_a_program_is_not_kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: False))
    assert chat.open_history() is None
    assert not (tmp_path / "home").exists()


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


def test_a_changed_key_is_verified_before_the_next_answer(
    fake: FakeWorkload, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with confide.connect(fake.url, simulated_root=root) as session:
        Chat(session).run(["abc"])
        fake.restart()
        Chat(session).run(["def"])
        honest, fake.tell = fake.tell, lambda attested: fake.workload.attest("00" * 32)
        fake.restart()
        Chat(session).run(["a secret", "another secret"])
        fake.tell = honest
        Chat(session).run(["/verify", "ghi"])
    out = capsys.readouterr()
    assert "attestation-refused" in out.err
    assert "key-changed" in out.err
    assert "Type /verify" in out.err
    assert out.out.startswith("cba\nfed\n")
    assert out.out.endswith("ihg\n")
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
