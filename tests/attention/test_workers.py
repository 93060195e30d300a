"""Forked workers: order, failure, and that none outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from confide.attention.workers import run_forked
from confide.errors import ServerFault


def test_results_come_in_order_from_other_processes():
    tasks = [lambda n=n: [bytes([n]), str(os.getpid()).encode()] for n in range(5)]
    results = run_forked(tasks, workers=2)
    assert [result[0] for result in results] == [bytes([n]) for n in range(5)]
    pids = {result[1] for result in results}
    assert len(pids) == 2
    assert str(os.getpid()).encode() not in pids


def test_a_worker_that_ends_early_is_a_fault():
    with pytest.raises(ServerFault, match="ended early"):
        run_forked([lambda: [b"done"], lambda: os._exit(3)], workers=2)


def test_an_interrupt_ends_the_workers():
    def interrupt():
        os.kill(os.getppid(), signal.SIGINT)
        time.sleep(60)
        return []

    started = time.monotonic()
    # Tests that run in the background ignore SIGINT from the start.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_forked([interrupt], workers=2)
    finally:
        signal.signal(signal.SIGINT, before)
    assert time.monotonic() - started < 30


def test_workers_die_with_their_parent():
    program = (
        "import os, time\n"
        "from confide.attention.workers import run_forked\n"
        "def task():\n"
        "    print(os.getpid(), flush=True)\n"
        "    time.sleep(60)\n"
        "run_forked([task], 1)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    # The pipe ends when the last process that holds it has.
    assert parent.stdout.read() == ""
    parent.wait()
    deadline = time.monotonic() + 10
    while Path(f"/proc/{worker}").exists():
        assert time.monotonic() < deadline
        time.sleep(0.1)
