"""The commands, on a ledger in a database."""

import json
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from cli.command import run, serving
from confide.cli.app import command_line
from confide.errors import ConfideError, LedgerElsewhere
from confide.ledger.address import DatabaseAddress
from confide.ledger.ledger import Ledger
from confide.ledger.place import choose_state, state_of

Answer = Callable[..., dict[str, Any]]


@pytest.fixture
def answer(capsys: pytest.CaptureFixture[str]) -> Answer:
    """What a command says to machines."""

    def ask(*words: object) -> dict[str, Any]:
        arguments = [*map(str, words), "--json"]
        command_line(arguments)(arguments, prog_name="confide", standalone_mode=False)
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    return ask


def test_licences_are_made_and_shown_wherever_the_ledger_is(
    database: DatabaseAddress, answer: Answer, tmp_path: Path
) -> None:
    made = answer("licence", "create", database, "--name", "reader", "--tokens", 100, "--disclosure", 1)
    key = made.pop("key")
    with closing(Ledger(database)) as ledger:
        account = ledger.authenticate(key, bytes(32))
        ledger.charge(account, 0, 5, None)
        with pytest.raises(ConfideError, match="Servers are using"):
            answer("ledger", "restore", database)
        answer("ledger", "backup", database, "--out", tmp_path / "saved")
    assert answer("licence", "list", database) == {"licences": [made | {"tokens_used": 5}]}
    assert [one["tokens"] for one in answer("licence", "usage", database, "reader")["usage"]] == [5]
    assert answer("licence", "revoke", database, "reader")["state"] == "revoked"
    restored = answer("ledger", "restore", database, "--from", tmp_path / "saved")
    assert (restored["licences"], restored["tokens_used"]) == (1, 16)
    assert answer("licence", "show", database, "reader")["state"] == "active"
    answer("ledger", "accept-clock", database)


def test_a_package_remembers_the_database_of_its_ledger(
    database: DatabaseAddress, answer: Answer, tmp_path: Path
) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    assert choose_state(tmp_path, database) == state_of(tmp_path) == choose_state(tmp_path, None) == database
    with pytest.raises(LedgerElsewhere, match="leave --state out, or take it to"):
        choose_state(tmp_path, tmp_path / "another")
    (tmp_path / "state").write_text("postgresql://keeper:secret@127.0.0.1/x\n")
    with pytest.raises(LedgerElsewhere, match="holds no ledger's address") as refused:
        state_of(tmp_path)
    assert "secret" not in str(refused.value)


def test_a_ledger_in_a_folder_is_not_left_behind_for_a_database(database: DatabaseAddress, tmp_path: Path) -> None:
    (tmp_path / "manifest.json").write_text("{}")
    Ledger(tmp_path / "state").close()
    with pytest.raises(LedgerElsewhere, match="`confide ledger backup` and `restore`"):
        choose_state(tmp_path, database)


@pytest.mark.slow
def test_two_servers_share_a_ledger(
    database: DatabaseAddress, answer: Answer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = run("split", "demo", "--out", tmp_path / "split", "--json")
    assert done.returncode == 0, done.stderr
    client, server = tmp_path / "split" / "client", tmp_path / "split" / "server"
    key = answer("licence", "create", database, "--name", "reader", "--tokens", 1000, "--lift-disclosure")["key"]
    monkeypatch.setenv("CONFIDE_LICENCE", key)
    settings = {"CONFIDE_SERVE_LEDGER": str(database)}

    def generate(url: str) -> dict[str, Any]:
        words = ("generate", client, "--server", url, "--prompt-ids", "5,6,7", "--max-new-tokens", 8, "--json")
        found: dict[str, Any] = json.loads(run(*words).stdout)
        return found

    with serving("serve", server, "--port", 0, environment=settings) as one:
        with serving("serve", server, "--port", 0) as other:  # the package remembers
            for turn in range(4):
                assert "generated_tokens" in generate((one, other)[turn % 2]["url"])
            answer("licence", "revoke", server, "reader")
            for served in (one, other):
                assert generate(served["url"])["error"]["code"] == "licence-refused"
    (used,) = answer("licence", "usage", server)["usage"]
    each, rest = divmod(used["tokens"], 4)  # with the padding of its length
    assert rest == 0
    assert 3 + 8 - 1 <= each <= 40
