"""Verdicts as data: what is appraised under which policy, and which checks must fail, whoever wrote the verifier."""
