"""One file per question; `python -m benchmarks` runs them all and prints the table of the README."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "1000")  # as the `confide` command does, and before torch is imported
