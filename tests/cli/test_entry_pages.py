"""The pages that each kind of user begins with: their commands exist, and run in an order that the kinds depend on."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import typer
from tests.cli.test_serving_page import blocks, run, with_free_ports

from confide.cli.app import command_line

DOCS = Path(__file__).parents[2] / "docs"
STORY = ["own.md", "serve.md", "chat.md", "audit.md", "apps.md"]
"""The owner first, then who serves what the owner gives away, then their users."""
SIMULATED = {
    "confide split ./my-llama": "confide split demo --protect attention",
    "./my-llama": "demo",
    "confide keys serve": "confide keys serve --offline",
    "--policy release.toml": "--policy release.toml --simulated-root tee/root.pem",
    "--keys https://owner.example:8471": "--keys http://127.0.0.1:8471 --tee simulated --simulated-tee tee",
    "https://models.example --policy policy.toml": (
        "http://127.0.0.1:8470 --policy policy.toml --simulated-root tee/root.pem"
    ),
    "confide attest verify bundle.json": "confide attest verify bundle.json --simulated-root ../tee/root.pem",
    "--bundle bundle.json": "--bundle bundle.json --simulated-root ../tee/root.pem",
    "--port 8472": "--port 8472 --insecure-no-licences",
    "8790": "8479",
    "confide proxy http": "confide proxy --port 8479 http",
}
"""What stands on the pages, and what it is on a machine without the hardware and without other machines."""
BEFORE = """
export CONFIDE_HOME=$PWD/home CONFIDE_KEYS_PASSPHRASE="a long phrase"
confide tee simulate init tee
printf 'confide-policy = 1\\nkind = "simulated"\\n[[all]]\\nrequire = "no-egress"\\n' | tee release.toml > policy.toml
"""


def test_each_kind_of_user_has_a_page_that_the_index_leads_to() -> None:
    index = (DOCS / "README.md").read_text(encoding="utf-8")
    assert set(re.findall(r"^\| [^|]+ \| \[([a-z]+\.md)\]", index, re.MULTILINE)) == set(STORY)
    for page in DOCS.glob("*.md"):
        assert page.name == "README.md" or f"({page.name})" in index, page.name
    for page in STORY:
        assert len((DOCS / page).read_text(encoding="utf-8").splitlines()) < 100  # short


@pytest.mark.parametrize("page", [*STORY, "proxy.md"])
def test_the_commands_of_the_page_are_commands(page: str) -> None:
    root = typer.main.get_command(command_line([]))
    text = (DOCS / page).read_text(encoding="utf-8")
    code = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    code += "\n" + "\n".join(re.findall(r"`(confide [^`]+)`", text))
    lines = re.findall(r"(?:^|\| )(confide .*)$", code, re.MULTILINE)
    assert lines
    for line in lines:
        require_command(root, shlex.split(line, comments=True))


def require_command(root: Any, words: list[str]) -> None:
    """That there is such a command, and that it has these options."""
    command, rest = root, words[1:]
    while hasattr(command, "commands"):
        command, rest = command.commands[rest[0]], rest[1:]
    known = {name for parameter in command.params for name in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if word.startswith("--")} <= known, words


@pytest.mark.slow  # each command has tests of its own
def test_the_pages_work_one_after_the_other(tmp_path: Path) -> None:
    text = "\n".join((DOCS / page).read_text(encoding="utf-8") for page in STORY)
    for shown, here in SIMULATED.items():
        assert shown in text, shown
        text = text.replace(shown, here)
    script = BEFORE + "".join(block.script() for block in blocks(with_free_ports(text), nginx=False))
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "every chunk decrypts with this key" in done.stdout
    assert "SIMULATED, nothing is protected" in done.stdout
    assert "verified: all" in done.stdout
    assert '"status":"ready"' in done.stdout
    assert '"id":"demo"' in done.stdout
