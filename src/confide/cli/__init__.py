"""The `confide` command: each verb parses, calls one function and prints; `--json` prints for machines."""

from confide.cli.app import main

__all__ = ["main"]
