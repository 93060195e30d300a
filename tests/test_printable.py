"""One way for a peer's words to the terminal."""

import io
import logging
import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table
from rich.text import Text
from tests import hostile

import confide.errors as errors
from confide.attest.check import check, skipped
from confide.broker import app as broker
from confide.cli import app, output
from confide.enclave.api import problems
from confide.logs import TextLines
from confide.printable import REPLACEMENT, printable, quoted
from confide.trust.statement import Exposure, TrustStatement


@pytest.mark.parametrize(
    "character",
    [
        "\x1b",
        "\x9b",
        "\r",
        "\n",
        "\t",
        "\0",
        "\x7f",
        "\u202e",
        "\u2066",
        "\u200f",
        "\u200b",
        "\ufeff",
        "\u2028",
        "\u2029",
        "\ud800",
        "\ue000",
        "\U000e0001",
    ],
)
def test_what_acts_on_a_terminal_or_misleads_is_replaced_visibly(character: str) -> None:
    assert printable(f"a{character}b") == f"a{REPLACEMENT}b"


def test_words_of_any_language_stay() -> None:
    for text in ("plain text, 1 < 2", "Grüße", "日本語", "עברית", "a\N{COMBINING ACUTE ACCENT}", "🙂", ""):
        assert printable(text) == text


def test_spaces_of_any_width_are_spaces() -> None:
    assert printable("a\N{NO-BREAK SPACE}b\N{IDEOGRAPHIC SPACE}c\N{NARROW NO-BREAK SPACE}d e") == "a b c d e"


def test_what_is_kept() -> None:
    assert printable("a\n\tb\r\x1b[31m", keep="\n\t") == f"a\n\tb{REPLACEMENT}{REPLACEMENT}[31m"


@given(st.text(), st.sampled_from(["", "\n", "\n\t"]))
def test_any_text(text: str, keep: str) -> None:
    shown = printable(text, keep=keep)
    assert len(shown) == len(text)
    assert printable(shown, keep=keep) == shown
    assert "\N{NO-BREAK SPACE}" not in shown
    assert all(unicodedata.category(one)[0] not in "CZ" for one in shown if one not in (*keep, " "))


@given(st.text())
def test_a_quotation_has_two_marks_whatever_is_in_it(text: str) -> None:
    words = quoted(text, 50)
    assert words.isprintable()
    assert words.count('"') == 2
    assert words[0] == words[-1] == '"'
    assert len(words) <= 53


# -- where words are shown ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("words", hostile.WORDS)
def test_every_error_is_one_printable_line(words: str) -> None:
    """Also in a traceback, a notebook, a log, and in programs that print what they caught."""
    for kind in hostile.kinds():
        assert str(kind(words)).isprintable(), kind
        assert len(str(kind(words))) == len(words), kind


def test_a_check_is_printable_from_the_start() -> None:
    for made in (check("model", hostile.ALL, hostile.ALL, ok=False), skipped("model", hostile.ALL, hostile.ALL)):
        assert made.expected.isprintable()
        assert made.seen.isprintable()


def test_a_trust_statement_has_its_own_lines_only() -> None:
    exposure = Exposure((hostile.ALL,), (hostile.ALL,), hostile.ALL)
    shown = str(TrustStatement(hostile.ALL, exposure, exposure, exposure, (hostile.ALL,)))
    assert shown.count("\n") == 4
    assert hostile.is_clean(shown)


def shown_by(terminal: Console) -> str:
    assert isinstance(terminal.file, io.StringIO)
    return terminal.file.getvalue()


@pytest.fixture
def terminal() -> Console:
    """Where commands show things, with colours: the escapes that are in it then are the console's own."""
    return type(output.console)(file=io.StringIO(), highlight=False, force_terminal=False, width=200)


@pytest.mark.parametrize("words", hostile.WORDS)
def test_no_way_to_the_terminal_leads_past_it(terminal: Console, words: str) -> None:
    table = Table(words)
    table.add_row(Text(words))
    for one in (words, Text(words), table, Text.assemble(("styled", "bold"), words)):
        terminal.print(one, markup=False)
        terminal.print(one, markup=False, soft_wrap=True, style="red")
        terminal.print(one, one, markup=False, end="")
    terminal.rule(Text(words))
    assert hostile.is_clean(shown_by(terminal), output.KEPT)


def test_both_consoles_are_such_terminals() -> None:
    assert type(output.console) is type(output.messages) is not Console


@pytest.mark.parametrize("words", hostile.WORDS)
def test_errors_and_remarks_of_commands(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.error(errors.ServerBusy(words), as_json=False)
    output.note(words)
    output.error(errors.ServerBusy(words), as_json=True)
    said = capsys.readouterr()
    assert hostile.is_clean(said.out)
    assert said.out.isascii()
    assert hostile.is_clean(said.err)
    assert "error  verified" not in said.err.splitlines()


def test_log_lines_for_people() -> None:
    record = logging.LogRecord("any", logging.ERROR, "", 0, "A peer said: %s", (hostile.ALL,), None)
    line = TextLines("%(message)s").format(record)
    assert line.startswith("A peer said: ")
    assert hostile.is_clean(line)


def test_faults_that_nobody_foresaw(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(**_: object) -> None:
        raise RuntimeError(hostile.ALL)

    monkeypatch.setattr(app, "command_line", lambda arguments: fail)
    monkeypatch.setattr(sys, "argv", ["confide"])
    with pytest.raises(SystemExit) as ended:
        app.main()
    said = capsys.readouterr().err
    assert ended.value.code == 1
    assert "RuntimeError" in said
    assert hostile.is_clean(said)


# -- whose word is taken for what --------------------------------------------------------------------------------------


@pytest.mark.parametrize("reportable", [errors.WIRE_CODES, errors.WORKLOAD_CODES, errors.BROKER_CODES])
def test_a_peer_chooses_no_error_but_its_own(reportable: frozenset[str]) -> None:
    for kind in hostile.kinds():
        found = errors.error_class(kind.code, reportable)
        assert (found is kind) == (kind.code in reportable), kind
        assert found in (kind, None)


def test_no_peer_reports_what_the_user_finds_out() -> None:
    """Who is trusted, what evidence shows, which key was verified: those verdicts are ours."""
    ours = (errors.AttestationError, errors.UntrustedOwner, errors.OwnerKeyError, errors.InvalidPolicy)
    ours += (errors.IntegrityError, errors.ServerDistrusted, errors.InsecureConnection, errors.ChannelError)
    codes = errors.WIRE_CODES | errors.WORKLOAD_CODES | errors.BROKER_CODES
    assert not [kind for kind in hostile.kinds() if issubclass(kind, ours) and kind.code in codes]


def test_servers_report_what_clients_take() -> None:
    """An API's code that clients do not know would arrive as a fault of the protocol."""
    asked_outside_the_channel = {errors.InsecureConnection, errors.EvidenceUnavailable}
    assert {kind.code for kind in set(problems.KINDS) - asked_outside_the_channel} <= errors.WORKLOAD_CODES
    assert {kind.code for kind in broker.STATUS} | {errors.ServerFault.code} == errors.BROKER_CODES


@pytest.mark.parametrize("codes", [errors.WIRE_CODES, errors.WORKLOAD_CODES, errors.BROKER_CODES])
def test_every_code_that_travels_is_an_errors(codes: frozenset[str]) -> None:
    assert codes <= {kind.code for kind in hostile.kinds()}
