"""One file per question; `python -m benchmarks` runs them all and prints the table of the README."""
