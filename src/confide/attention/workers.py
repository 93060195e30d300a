"""Forked processes that each do part of a stage and end with it."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait

from confide.errors import ServerFault

Task = Callable[[], list[bytes]]

_PR_SET_PDEATHSIG = 1


def run_forked(tasks: Sequence[Task], workers: int) -> list[list[bytes]]:
    """The tasks' results in order, computed by this many processes at most; with one worker, in this process.

    Workers see all memory as it is now, without copying it. They die with this process, and are ended if it is
    interrupted. Raises ServerFault where one fails.
    """
    if workers == 1:
        return [task() for task in tasks]
    fork = multiprocessing.get_context("fork")
    results: list[list[bytes] | None] = [None] * len(tasks)
    running, readers = [], []
    try:
        for worker in range(min(workers, len(tasks))):
            reader, writer = fork.Pipe(duplex=False)
            process = fork.Process(
                target=_work, args=(tasks, worker, workers, writer, os.getpid()), daemon=True
            )
            process.start()
            writer.close()
            running.append(process)
            readers.append(reader)
        while readers:
            for ready in wait(readers):
                try:
                    index, parts = ready.recv()  # type: ignore[union-attr]
                    results[index] = parts
                except EOFError:
                    readers.remove(ready)  # type: ignore[arg-type]
    finally:
        for process in running:
            process.kill() if None in results else process.join()
        for process in running:
            process.join()
    if None in results:
        raise ServerFault("A process computing on ciphertexts ended early; look for its error above, or free memory.")
    return [parts for parts in results if parts is not None]


def _work(tasks: Sequence[Task], worker: int, workers: int, writer: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before it could take us along
    for index in range(worker, len(tasks), workers):
        writer.send((index, tasks[index]()))
