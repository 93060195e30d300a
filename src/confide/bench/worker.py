"""The process that measures one cell, on the cores that it is given, and leaves nothing behind for the next one.

It takes its cores before torch or llama.cpp start any thread, so that every one of them is on these cores.
"""

import os
import signal
from collections.abc import Generator
from dataclasses import dataclass
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Final

from confide.bench.results import Cell, Timing, Workload
from confide.errors import BenchmarkError, ConfideError
from confide.printable import printable

_FAILED: Final = "failed"
_TO_LEAVE: Final = 60.0
"""Seconds for letting go of a model."""


@dataclass(frozen=True)
class Job:
    """What a process is to do. gguf: the model's file for llama.cpp. runs: that are still to be measured."""

    cell: Cell
    workload: Workload
    model: str
    gguf: Path | None
    runs: int


def measure_apart(job: Job) -> Generator[Timing, None, None]:
    """The runs of a job, each as soon as it is measured. Closing the iterator ends the process.

    Raises BenchmarkError where the cell cannot be measured, with the reason.
    """
    context = get_context("spawn")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=work, args=(theirs, job), daemon=True)
    process.start()
    theirs.close()
    try:
        for _ in range(job.runs):
            try:
                said = ours.recv()
            except EOFError:
                process.join()
                said = (_FAILED, f"its process ended with {process.exitcode}; there may be too little memory")
            if isinstance(said, tuple):
                raise BenchmarkError(f"{job.cell.name} cannot be measured: {said[1].rstrip('.')}.")
            yield said
        process.join(_TO_LEAVE)
    finally:
        process.terminate()
        process.join()
        ours.close()


def work(out: Connection, job: Job) -> None:
    """In that process: send each run, or what went wrong."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # whoever started this decides
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: job.cell.cores])
    try:
        from confide.bench.cells import run_cell

        for timing in run_cell(job):
            out.send(timing)
    except ConfideError as error:
        out.send((_FAILED, str(error)))
    except Exception as error:  # noqa: BLE001 - it is told in the process that asked
        out.send((_FAILED, f"{type(error).__name__}: {printable(str(error))[:300]}"))
