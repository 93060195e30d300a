"""What a process can change once it is confined; what one does that is not, tests of lm-eval's tasks show.

Each test is a process of its own, since rules are never taken off.
"""

import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

PRELUDE = """
import ctypes, os, sys, threading, types
from pathlib import Path
from confide.enclave import confinement
from confide.enclave.confinement import confine
from confide.errors import EgressOpen
own = Path(sys.argv[1])
real = ctypes.CDLL(None, use_errno=True)
"""


def said(code: str, own: Path) -> str:
    own.mkdir()
    script = PRELUDE + textwrap.dedent(code)
    done = subprocess.run([sys.executable, "-c", script, str(own)], capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_nothing_changes_but_below_the_folder(tmp_path: Path) -> None:
    """Whatever is started from there too, and by whichever way."""
    done = said(
        """
        (own.parent / "old").write_text("kept")
        confine(own)
        (own / "new").write_text("own")
        (own / "new").rename(own / "other")
        open(os.devnull, "w").close()
        for work in (
            lambda: (own.parent / "new").touch(),
            lambda: (own.parent / "new").mkdir(),
            lambda: (own.parent / "old").unlink(),
            lambda: os.truncate(own.parent / "old", 0),
            lambda: open(own.parent / "old", "a"),
            lambda: os.link(own.parent / "old", own / "linked"),
            lambda: (own / "other").rename(own.parent / "moved"),
            lambda: os.mkfifo(own.parent / "pipe"),
            lambda: open("/proc/1/mem", "rb"),
        ):
            try:
                work()
            except OSError:
                continue
            raise SystemExit("it was not refused")
        print((own.parent / "old").read_text(), os.system(f"touch {own.parent}/new 2>/dev/null") != 0)
        """,
        tmp_path / "own",
    )
    assert done == "kept True\n"
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["old", "other", "own"]


@pytest.mark.parametrize(
    ("code", "says"),
    [
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", "several threads"),
        ("real.syscall = lambda *_: 2", "Landlock"),
        ("real.syscall = lambda number, *_: 99 if number == 444 else -1", "cannot be confined"),
        ("real = types.SimpleNamespace(syscall=lambda number, *_: os.dup(0) + 3 if number == 444 else 0, "
         "prctl=lambda *_: 0)\nos.close = lambda _: None", "do not hold"),
    ],
    ids=["threads", "version", "refused", "without effect"],
)  # fmt: skip
def test_what_does_not_confine_is_said(code: str, says: str, tmp_path: Path) -> None:
    done = said(
        code + "\nconfinement.ctypes.CDLL = lambda *_, **__: real\ntry:\n    confine(own)\n"
        "except EgressOpen as error:\n    print(error)\n",
        tmp_path / "own",
    )
    assert says in done
    assert list(tmp_path.iterdir()) == [tmp_path / "own"]


def test_a_process_that_is_closed_off_changes_nothing_opens_nothing_and_looks_into_nobody(tmp_path: Path) -> None:
    done = said(
        """
        import socket
        from confide.enclave.confinement import close_off
        before = open(f"/proc/{os.getppid()}/maps").read()
        close_off()
        for work in (
            lambda: (own / "new").touch(),
            lambda: open(os.devnull, "w"),
            lambda: socket.create_connection(("127.0.0.1", 9), 1),
            lambda: socket.socket(socket.AF_UNIX).connect("/run/x"),
            lambda: open(f"/proc/{os.getppid()}/mem", "rb"),
            lambda: open(f"/proc/{os.getppid()}/maps"),
            lambda: open(f"/proc/{os.getppid()}/environ"),
        ):
            try:
                work()
            except OSError:
                continue
            raise SystemExit("it was not refused")
        print(bool(before), (own.parent).exists())
        """,
        tmp_path / "own",
    )
    assert done == "True True\n"


def test_a_process_that_can_still_change_files_is_said_not_to_be_closed_off(tmp_path: Path) -> None:
    done = said(
        """
        from confide.enclave.confinement import close_off
        real = types.SimpleNamespace(
            syscall=lambda number, *_: os.dup(0) + 3 if number == 444 else 0, prctl=lambda *_: 0
        )
        confinement.ctypes.CDLL = lambda *_, **__: real
        confinement.os = types.SimpleNamespace(**{**vars(os), "close": lambda number: None})
        try:
            close_off()
        except EgressOpen as error:
            print(error)
        """,
        tmp_path / "own",
    )
    assert "do not hold" in done
