"""Real evidence where it is at hand, and a simulated machine."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from confide.attest.claims import Claims
from confide.attest.collateral import Collateral
from confide.attest.evidence import Evidence, Family
from confide.attest.families import sgx, tdx
from confide.attest.roots import ProductionRoots, Roots
from confide.attest.simulated import SimulatedTee

MADE = datetime(2026, 1, 1, tzinfo=UTC)
"""When the simulated machine was made and its collateral published."""


@dataclass(frozen=True)
class Case:
    """Evidence with all that its verification needs."""

    evidence: Evidence
    collateral: Collateral
    roots: Roots
    now: datetime

    def verify(self) -> Claims:
        """By its family's module."""
        module = sgx if self.evidence.family is Family.SGX else tdx
        return module.verify(self.evidence, self.collateral, self.roots, self.now)

    def with_raw(self, raw: bytes) -> "Case":
        """The same with another quote."""
        return replace(self, evidence=replace(self.evidence, raw=raw))


VECTORS = {
    "sgx-v3": ("sgx/quote_v3.bin", "sgx/quote_v3.collateral.json", datetime(2025, 7, 1, tzinfo=UTC)),
    "tdx-v4": ("tdx/quote_v4.bin", "tdx/quote_v4.collateral.json", datetime(2025, 7, 1, tzinfo=UTC)),
    "tdx-v5": ("tdx/quote_v5.bin", "tdx/quote_v5.collateral.json", datetime(2026, 2, 19, tzinfo=UTC)),
    "tdx-v5-outdated": ("tdx/quote_v5_outdated.bin", "tdx/quote_v5.collateral.json", datetime(2026, 2, 19, tzinfo=UTC)),
}


@pytest.fixture(scope="session")
def vectors(test_data: Path) -> Callable[[str], Case]:
    """Real quotes by name; SOURCES.md beside them says where they are from and what they give."""
    folder = test_data / "evidence"
    if not folder.is_dir():
        pytest.skip(f"{folder} is not there")

    def vector(name: str) -> Case:
        quote, collateral, now = VECTORS[name]
        evidence = Evidence(Family(name.partition("-")[0]), (folder / quote).read_bytes())
        return Case(evidence, Collateral({"dcap": (folder / collateral).read_bytes()}), ProductionRoots(), now)

    return vector


@pytest.fixture(scope="session")
def tee(tmp_path_factory: pytest.TempPathFactory) -> SimulatedTee:
    """A simulated machine."""
    return SimulatedTee.create(tmp_path_factory.mktemp("tee"), MADE)


@pytest.fixture(scope="session")
def simulated(tee: SimulatedTee) -> Case:
    """Its quote, with everything in order."""
    from confide.attest.simulated_vendor import Listing

    return Case(tee.quote(bytes(range(64))), tee.collateral(Listing(MADE)), tee.roots(), MADE + timedelta(days=1))
