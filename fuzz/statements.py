"""What workloads say of themselves, and what a package says that its model answers."""

import msgspec

from confide.attest.configuration import (
    Build,
    Configuration,
    Egress,
    EngineUsed,
    SamplingDefaults,
    SelfTestRun,
    UpstreamUsed,
    WeightsHeld,
)
from confide.attest.statement import Statement
from confide.packages.sealed.known_answers import KnownAnswer, KnownAnswers


def statement(data: bytes) -> None:
    """A statement, which has one canonical form: that reads as the same, and has the same digest."""
    read = Statement.decode(data)
    again = Statement.decode(read.canonical())
    if (again, again.digest()) != (read, read.digest()):
        raise AssertionError("the canonical form is another statement")


def known_answers(data: bytes) -> None:
    """The file of known answers in a package."""
    read = KnownAnswers.decode(data)
    if KnownAnswers.decode(read.encode()) != read:
        raise AssertionError("what was written is read as something else")


def _statements() -> list[bytes]:
    configuration = Configuration(
        Build("0.1.0", "ee" * 32),
        EngineUsed("transformers", "5.23.0", {"threads": "2"}),
        WeightsHeld("11" * 32, "f32", "f32"),
        4096,
        ("adapter",),
        "22" * 32,
        SamplingDefaults(1.0, 0.95, 40, 8192),
        Egress.NONE,
        UpstreamUsed("llama", "http://127.0.0.1:8000/v1"),
        SelfTestRun("passed", "2026-02-19T11:30:00Z", "33" * 32, 40),
        {"ra-tls": "true"},
        {"OMP_NUM_THREADS": "1"},
    )
    bare = Statement("aa" * 32, "bb" * 32, "3", {"hpke": "cc"})
    return [bare.canonical(), msgspec.structs.replace(bare, configuration=configuration).canonical()]


def _known_answers() -> list[bytes]:
    answer = KnownAnswer("Once upon a time there was a", " king", 1, 0.75)
    return [KnownAnswers(1, "llama.cpp", "xllamacpp 1", "11" * 32, (answer, answer)).encode()]


TARGETS = {"statement": statement, "known-answers": known_answers}
SEEDS = {"statement": _statements, "known-answers": _known_answers}
