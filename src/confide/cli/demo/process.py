"""A server of a demo: one of our own commands, in a process of its own."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from confide.errors import ServerFault

_SECONDS_TO_STOP = 10


@contextmanager
def serving(*arguments: str, environment: Mapping[str, str] | None = None) -> Iterator[dict[str, Any]]:
    """Run `confide ARGUMENTS --json`; yields what it announces, its address among it, and stops it in the end."""
    process = subprocess.Popen(  # noqa: S603 - our own command
        [sys.executable, "-m", "confide", "--config", os.devnull, *arguments, "--json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL if environment else None,
        text=True,
        env=os.environ | dict(environment or {}),
    )
    try:
        announcement = process.stdout.readline() if process.stdout else ""
        if not announcement.startswith('{"url"'):
            raise ServerFault(f"A server of the demo did not start; run `confide {arguments[0]}` by hand to see why.")
        yield json.loads(announcement)
    finally:
        process.terminate()
        try:
            process.wait(_SECONDS_TO_STOP)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
