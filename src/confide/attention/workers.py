"""Forked processes that each do part of a stage and end with it."""

import ctypes
import multiprocessing
import os
import signal
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess

from confide.errors import ServerFault

Task = Callable[[], list[bytes]]

_PR_SET_PDEATHSIG = 1


def run_forked(tasks: Sequence[Task], workers: int) -> list[list[bytes]]:
    """The tasks' results in order, computed by this many processes at most.

    Workers see all memory as it is now, without copying it. They die with this process, and are ended if it is
    interrupted. Raises ServerFault where one fails.
    """
    running: list[BaseProcess] = []
    readers: list[Connection] = []
    try:
        for worker in range(min(workers, len(tasks))):
            _start(tasks, worker, workers, running, readers)
        results = _collect(readers)
    except BaseException:
        for process in running:
            process.kill()
        raise
    finally:
        for process in running:
            process.join()
    if len(results) < len(tasks):
        raise ServerFault("A process computing on ciphertexts ended early; look for its error above, or free memory.")
    return [results[index] for index in range(len(tasks))]


def _start(
    tasks: Sequence[Task], worker: int, workers: int, running: list[BaseProcess], readers: list[Connection]
) -> None:
    fork = multiprocessing.get_context("fork")
    reader, writer = fork.Pipe(duplex=False)
    process = fork.Process(target=_work, args=(tasks, worker, workers, writer, os.getpid()), daemon=True)
    process.start()
    running.append(process)
    # Once no one but the worker can write, the end of the worker ends the pipe.
    writer.close()
    readers.append(reader)


def _collect(readers: list[Connection]) -> dict[int, list[bytes]]:
    results = {}
    while readers:
        for ready in wait(readers):
            assert isinstance(ready, Connection)  # noqa: S101 - nothing else is waited for
            try:
                index, parts = ready.recv()
                results[index] = parts
            except EOFError:
                readers.remove(ready)
    return results


def _work(tasks: Sequence[Task], worker: int, workers: int, writer: Connection, parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent decides
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        return  # it died before it could take us along
    for index in range(worker, len(tasks), workers):
        writer.send((index, tasks[index]()))
