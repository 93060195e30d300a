from collections.abc import Iterator
from pathlib import Path

import pytest

from confide.hybrid.server.service import LayerService

from .small import running, small_service, write_packages


@pytest.fixture
def shell(tmp_path: Path) -> Path:
    """The client folder of the small model."""
    return write_packages(tmp_path / "packages")[0]


@pytest.fixture
def service(tmp_path: Path) -> Iterator[LayerService]:
    """The small model's service, with the cleartext twin."""
    made = small_service(tmp_path / "state")
    yield made
    made.ledger.close()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[tuple[str, LayerService]]:
    """The same, on the network: its address and the service."""
    made = small_service(tmp_path / "served-state")
    with running(made) as url:
        yield url, made
