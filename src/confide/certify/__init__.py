"""Scores measured inside a trusted execution environment and certified there: see `confide.attest.scores`."""
