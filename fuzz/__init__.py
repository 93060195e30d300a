"""Fuzzing of everything that decodes bytes from outside: `python -m fuzz --help`.

A target is a function of bytes that may return or raise a ConfideError. Anything else is a finding: another exception,
a hang, or memory out of proportion to the input. `make test` runs every target on its corpus and on mutations of it,
`make test-all` also under atheris, guided by coverage.
"""
