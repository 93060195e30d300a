"""All targets by name, with their seeds."""

import importlib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from confide.errors import ConfideError

CORPUS = Path(__file__).parent / "corpus"
_GROUPS = (
    "frames",
    "server",
    "network",
    "client",
    "packages",
    "ledger",
    "settings",
    "statements",
    "policies",
    "machines",
    "platforms",
    "answers",
    "gpus",
    "receipts",
    "questions",
    "deployments",
    "certificates",
    "results",
    "documents",
    "graphs",
)

Target = Callable[[bytes], None]


def targets() -> dict[str, Target]:
    """Every target, as it must behave: it returns, or something is wrong with the code under it."""
    found = {name: target for group in _modules() for name, target in group.TARGETS.items()}
    return {name: _tolerant(target) for name, target in found.items()}


def seeds() -> dict[str, Callable[[], list[bytes]]]:
    """Real inputs of every target, made anew."""
    return {name: make for group in _modules() for name, make in group.SEEDS.items()}


def corpus(name: str) -> list[bytes]:
    """A target's kept inputs."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]


def _modules() -> list[ModuleType]:
    return [importlib.import_module(f"fuzz.{group}") for group in _GROUPS]


def _tolerant(target: Target) -> Target:
    def run(data: bytes) -> None:
        try:
            target(data)
        except ConfideError:
            return

    return run
