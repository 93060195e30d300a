"""How long verdicts take: within wide bounds here, and exactly in `python -m benchmarks attestation`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from benchmarks.attestation import appraisal, reading
from tests.attest.conformance.evidence import FORGED

from confide.attest.collateral import Collateral
from confide.attest.families import dcap

SLOW_MACHINE = 8
"""How much slower than the aim a shared, busy or old machine may be."""


def test_a_verdict_on_a_quote_and_a_long_policy() -> None:
    for figure in (appraisal(rounds=20), reading(rounds=5)):
        assert figure.value < SLOW_MACHINE * figure.reach, figure


def test_collateral_is_taken_apart_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not once for each quote: that is what takes the time, and it is the same bytes."""
    case = FORGED["tdx"](tmp_path)
    read: list[Any] = []
    parse = dcap.read_crl
    monkeypatch.setattr(dcap, "read_crl", lambda *given: read.append(given) or parse(*given))
    # A space more, and nobody has read these bytes before.
    case = replace(case, collateral=Collateral({dcap.DOCUMENT: case.collateral.documents[dcap.DOCUMENT] + b" "}))
    for _ in range(5):
        case.verify()
    assert len(read) == 2
