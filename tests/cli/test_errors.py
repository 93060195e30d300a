"""Whatever goes wrong is one line with a way out, for people and as JSON; nobody sees a traceback unasked."""

import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from confide.cli.explain import explained
from confide.errors import WrongMode
from confide.version import VERSION

from .command import run


def error_of(*arguments: object) -> dict[str, Any]:
    done = run(*arguments, "--json")
    assert done.returncode != 0
    assert "Traceback" not in done.stdout + done.stderr
    found: dict[str, Any] = json.loads(done.stdout)["error"]
    return found


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), "machine", "/x/y: No space left on device; make"),
        (PermissionError(errno.EACCES, "Permission denied", "/x"), "machine", "is yours"),
        (OSError(errno.EROFS, "Read-only file system", "/x"), "machine", "can be written to"),
        (OSError(errno.EADDRINUSE, "Address already in use"), "machine", "another --port"),
        (OSError("odd"), "machine", "odd; see"),
        (OSError(errno.ENOENT, "No such file", "/x/\x1b[31m"), "machine", "/x/\ufffd[31m: No such file"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"), "machine", "not UTF-8"),
        (MemoryError(), "machine", "not enough memory"),
        (RecursionError(), "unexpected", "nested too deeply"),
        (ValueError("a\x1b]0;title\x07\nb."), "unexpected", "ValueError: a\ufffd]0;title\ufffd\ufffdb. Run"),
        (KeyError("x" * 10_000), "unexpected", "x\N{HORIZONTAL ELLIPSIS}. Run"),
    ],
)
def test_errors_of_others_become_a_sentence(error: Exception, code: str, words: str) -> None:
    problem = explained(error)
    assert problem.code == code
    assert words in str(problem)
    assert len(str(problem)) < 500
    assert str(problem).isprintable()


def test_ones_own_errors_stay_as_they_are() -> None:
    error = WrongMode("Do this.")
    assert explained(error) is error


def test_usage_errors_are_json_too() -> None:
    assert error_of("nosuch")["code"] == "usage"
    assert error_of("plan")["code"] == "usage"
    for option, value in (("--top-p", 2), ("--top-k", 0), ("--temperature", -1)):
        found = error_of("generate", "x", "y", "--server", "ws://127.0.0.1:1", option, value)
        assert found["code"] == "usage"
        assert option in found["message"]


def test_places_that_cannot_be_written_to(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert error_of("split", "demo", "--out", tmp_path / "file" / "out")["code"] == "machine"
    assert error_of("split", "demo", "--out", "/proc/out")["code"] == "machine"


def test_a_prompt_is_text(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_bytes(b"caf\xe9")
    found = error_of("generate", "x", "--prompt-file", path, "--server", "ws://127.0.0.1:1")
    assert "not UTF-8" in found["message"]
    assert error_of("generate", "x", "y", "--prompt-file", path, "--server", "ws://127.0.0.1:1")["code"] == "usage"


def test_debug_shows_where_it_was_raised(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = run("split", "demo", "--out", tmp_path / "file" / "out", "--debug")
    assert "Traceback" in done.stderr
    assert "machine" in done.stderr


def test_the_version() -> None:
    assert run("--version").stdout == f"confide {VERSION}\n"
    assert json.loads(run("--version", "--json").stdout) == {"version": VERSION}


@pytest.mark.slow
def test_lines_are_not_cut_where_programs_read_them() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    command = [sys.executable, "-m", "confide", "generate", "no/such/folder", "x", "--server", "ws://127.0.0.1:1"]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    assert any("no/such/folder" in line and line.rstrip().endswith("made.") for line in done.stderr.splitlines())


@pytest.mark.parametrize("stream", ["console", "messages"])
def test_sentences_in_a_pipe_stay_one_line_and_tables_keep_their_shape(stream: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "COLUMNS"}
    program = f"""
from rich.panel import Panel
from confide.cli import output
output.{stream}.print("word " * 40 + "end")
output.{stream}.print(Panel("word " * 40 + "end"))
"""
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    first, *panel = (done.stdout or done.stderr).splitlines()
    assert first == "word " * 40 + "end"
    assert len(panel) > 3
    assert "end" in panel[-2]


def test_a_reader_that_leaves_is_no_error() -> None:
    command = f"{sys.executable} -m confide --version --json | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr


@pytest.mark.parametrize("seconds", [0.5, 2])
def test_ctrl_c_in_the_first_seconds_ends_quietly(tmp_path: Path, seconds: float) -> None:
    # Before its own code runs a program can do nothing; how long that takes is the machine's affair.
    begun = "from confide.cli import main; print('begun', flush=True); main()"
    command = [sys.executable, "-c", begun, "split", "demo", "--out", str(tmp_path / "out")]

    def heed() -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)

    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, preexec_fn=heed)
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(seconds)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=300)
    assert process.returncode != 0
    assert "Traceback" not in said
    assert not (tmp_path / "out" / "client").exists()
