"""The `confide` command: each verb parses, calls one function and prints; `--json` prints for machines."""

import os

# Threads that have nothing more to do in one process must not spin on the core that the other end of a connection
# needs: on one machine that is where most of a prompt's time would go. torch reads this when it is first imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

from confide.cli.app import main

__all__ = ["main"]
