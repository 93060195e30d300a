"""The commands of docs/deploy.md are ones that the command line takes, and its policies are policies."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from confide.attest.policy_toml import policy_from_toml
from confide.cli.app import command_line
from confide.deploy.deployment import azure_code_missing, code_missing

PAGE = (Path(__file__).parents[2] / "docs" / "deploy.md").read_text()


def blocks(kind: str) -> list[str]:
    return re.findall(rf"^```{kind}\n(.*?)^```", PAGE, re.M | re.S)


COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("confide ")
]


def test_every_target_is_on_the_page() -> None:
    app = typer.main.get_command(command_line(["deploy"]))
    others = {"lint", "compare", "rollout"}
    targets = set(app.commands["deploy"].commands) - others  # type: ignore[attr-defined]
    assert {words[1] for words in COMMANDS if words[0] == "deploy"} - others == targets
    assert targets == set(re.findall(r"^\| `(\w+)` \|", PAGE, re.M))


def parse(words: list[str]) -> None:
    """Without running it: an option that is not there, or one that is asked for and not given, is wrong usage."""
    command = typer.main.get_command(command_line(words))
    while hasattr(command, "commands"):
        name, *words = words
        command = command.commands[name]
    command.make_context(command.name, words)


@pytest.mark.parametrize("index", range(len(COMMANDS)))
def test_a_command(index: int) -> None:
    parse(COMMANDS[index])


def test_what_is_no_command_is_found() -> None:
    with pytest.raises(typer.BadParameter, match="keys"):
        parse(["deploy", "dstack", "package", "--out", "out"])


def test_policies() -> None:
    zeros, azure = (policy_from_toml(text) for text in blocks("toml"))
    assert "none of them zeros" in code_missing(zeros.requirements)
    assert azure_code_missing(azure.requirements) == ""
