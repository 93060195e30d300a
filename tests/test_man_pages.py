"""Manual pages that `make man` writes."""

import shutil
import subprocess

import pytest
import typer
from tools.man_pages import pages

from confide.cli.app import command_line


@pytest.fixture(scope="module")
def made() -> dict[str, str]:
    root = typer.main.get_command(command_line(["keys"]))
    return dict(pages(typer.Context(root, info_name="confide")))


def test_each_command_has_a_page_with_its_options(made: dict[str, str]) -> None:
    assert {"confide.1", "confide-keys.1", "confide-keys-serve.1", "confide-keys-log-verify.1"} <= made.keys()
    serve = made["confide-keys-serve.1"]
    assert r"\fB\-\-tls\-cert\fP" in serve
    assert "[default: 8471" in serve
    assert "confide keys serve" in serve
    assert r"\fBconfide-keys-serve(1)\fP" in made["confide-keys.1"]
    # The same for everybody: no date, and no one's name or folder.
    assert '.TH "CONFIDE KEYS SERVE" "1" "" "confide ' in serve


def test_words_are_no_requests_to_troff() -> None:
    app = typer.Typer()

    @app.command()
    def command() -> None:
        """.so /etc/passwd

        It says \\fBnothing\\fP.
        """

    context = typer.Context(typer.main.get_command(app), info_name="odd")
    page = dict(pages(context))["odd.1"]
    assert r"\&.so /etc/passwd" in page
    assert r"\efBnothing\efP" in page


@pytest.mark.skipif(shutil.which("groff") is None, reason="needs groff")
def test_groff_has_nothing_to_say_against_them(made: dict[str, str]) -> None:
    text = "\n".join(made.values()).encode()
    done = subprocess.run(
        ["groff", "-man", "-Tutf8", "-ww", "-z", "-Kutf8"], input=text, capture_output=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, b"")
