"""Results as files: JSON that names itself by its content, so that a changed one is told from what was measured.

The digest is the SHA-256 of all but itself and the evidence, as RFC 8785 writes it; evidence signs that digest. What
is read from a file is another machine's word, as far as no evidence is over it.
"""

import hashlib
import platform
from datetime import datetime
from importlib import metadata
from pathlib import Path
from typing import Annotated, Final, Generic, Literal, TypeVar

import msgspec
import rfc8785

from confide.attest.roots import ProductionRoots
from confide.attest.wire import Attested
from confide.bench.machine import Arm, Count, Machine, Text, shown_arm
from confide.disk.files import FileTooLarge, read_bounded, replace_file
from confide.errors import BenchmarkError, InvalidResult
from confide.evaluate.statistics import Estimate
from confide.printable import printable
from confide.version import VERSION

MAX_BYTES: Final = 8 << 20
MAX_RUNS: Final = 1_000
"""Of a cell. Intervals take a time and memory in proportion to it."""
MAX_CELLS: Final = 4_096
LIBRARIES: Final = ("torch", "transformers", "xllamacpp")
"""That compute."""

Digest = Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
Amount = Annotated[float, msgspec.Meta(ge=0, le=1e18)]
Measured = Annotated[float, msgspec.Meta(gt=0, le=1e9)]
Version = Annotated[str, msgspec.Meta(max_length=256)]
_Short = Annotated[str, msgspec.Meta(max_length=256)]


class Part(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What results are made of: nothing in them is unknown, nothing changes."""


class Software(Part, frozen=True):
    """What computed. commit: of the checkout that it ran from, empty for an installed program."""

    confide: Version
    commit: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{0,64}\Z")]
    python: Version
    libraries: Annotated[dict[Version, Version], msgspec.Meta(max_length=32)]


class ModelFacts(Part, frozen=True):
    """digest: of configuration, weights and tokenizer, or the commit of a hub model. weights: how many it has."""

    name: Text
    digest: Text
    weights: Count


class Timing(Part, frozen=True):
    """One run, in seconds: until the first token, and until the last. tokens: of all its answers together.

    Of a training, until the first of its steps is done and the last, and tokens learnt from; of a retrieval, until the
    first answer and the last, and how many questions there were.

    ValueError for a first token that is not before the last one.
    """

    first: Measured
    seconds: Measured
    tokens: Annotated[int, msgspec.Meta(ge=2, le=1 << 30)]

    def __post_init__(self) -> None:
        if self.first >= self.seconds:
            raise ValueError("the first token did not come before the last one")

    @property
    def tokens_per_second(self) -> float:
        """Of the answers, the time for reading prompts included."""
        return self.tokens / self.seconds

    @property
    def seconds_per_token(self) -> float:
        """Between the tokens of one answer alone, the first one's time left out."""
        return (self.seconds - self.first) / (self.tokens - 1)


WorkloadName = Literal["throughput", "latency", "training", "retrieval"]
Timings = Annotated[tuple[Timing, ...], msgspec.Meta(min_length=1, max_length=MAX_RUNS)]


class Cell(Part, frozen=True):
    """One workload in one engine and type of weights, on so many cores."""

    workload: WorkloadName
    engine: _Short
    dtype: _Short
    cores: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]

    @property
    def by_rate(self) -> bool:
        """Whether it is measured by what is done in a second, and not by how long one thing takes."""
        return self.workload in ("throughput", "training")

    @property
    def place(self) -> str:
        """Where it is measured, for people."""
        return f"{self.engine} {self.dtype}, {self.cores} core{'s' if self.cores > 1 else ''}"

    @property
    def name(self) -> str:
        """For people, and for the file that keeps its runs."""
        return f"{self.workload}, {self.place}"


class CellRuns(Part, frozen=True):
    """What was measured of a cell: every run, none dropped yet."""

    cell: Cell
    runs: Timings


class NotMeasured(Part, frozen=True):
    """What an engine does not have. reason: a sentence's middle, such as `llama.cpp has no beam search`."""

    workload: _Short
    engine: _Short
    dtype: _Short
    reason: Text


class Workload(Part, frozen=True):
    """prompt, answer: tokens. batch, beams: of the throughput workload; latency has one of each.

    A training learns from `batch` windows of `prompt` tokens in a step. chunks: of the corpus that a retrieval asks,
    unset where there is none.
    """

    prompt: Annotated[int, msgspec.Meta(ge=1, le=1 << 24)]
    answer: Annotated[int, msgspec.Meta(ge=2, le=1 << 24)]
    batch: Annotated[int, msgspec.Meta(ge=1, le=1 << 16)]
    beams: Annotated[int, msgspec.Meta(ge=1, le=1 << 10)]
    warm_ups: Annotated[int, msgspec.Meta(ge=0, le=MAX_RUNS)]
    device: Literal["cpu", "cuda"]
    chunks: Annotated[int, msgspec.Meta(ge=1, le=1 << 20)] | msgspec.UnsetType = msgspec.UNSET


class TeeResult(Part, frozen=True, tag="tee", tag_field="bench"):
    """What `confide bench tee` found on one machine. ValueError for a cell that stands there twice."""

    format: Literal[1]
    measured: Annotated[datetime, msgspec.Meta(tz=True)]
    arm: Arm
    machine: Machine
    software: Software
    model: ModelFacts
    workload: Workload
    cells: Annotated[tuple[CellRuns, ...], msgspec.Meta(min_length=1, max_length=MAX_CELLS)]
    not_measured: Annotated[tuple[NotMeasured, ...], msgspec.Meta(max_length=MAX_CELLS)]

    def __post_init__(self) -> None:
        if len({each.cell for each in self.cells}) != len(self.cells):
            raise ValueError("a cell stands there twice")


class Interval(Part, frozen=True):
    """A value and its 95% interval."""

    value: Amount
    low: Amount
    high: Amount

    @classmethod
    def of(cls, estimate: Estimate, unit: float = 1.0) -> "Interval":
        """An estimate in another unit, of which there are so many in its own."""
        return cls(unit * estimate.value, unit * estimate.low, unit * estimate.high)

    @property
    def estimate(self) -> Estimate:
        """As statistics have it."""
        return Estimate(self.value, self.low, self.high)


class QuantizationRow(Part, frozen=True):
    """One engine and type of weights. size: bytes of the weights. context_memory: bytes of a full context's cache.

    first_ms, ms_per_token: of one request alone. tokens_per_second: by the requests at once. perplexity: of the text;
    ratio: to that of the model in float32.
    """

    engine: _Short
    quantization: _Short
    size: Count
    context_memory: Count
    first_ms: Interval
    ms_per_token: Interval
    tokens_per_second: Annotated[dict[_Short, Interval], msgspec.Meta(max_length=16)]
    perplexity: Interval
    ratio: Interval
    dropped: Count


class QuantizationResult(Part, frozen=True, tag="quantization", tag_field="bench"):
    """What `confide bench quantization` found. context: tokens that context_memory is for. text: its SHA-256."""

    format: Literal[1]
    measured: Annotated[datetime, msgspec.Meta(tz=True)]
    machine: Machine
    software: Software
    model: ModelFacts
    context: Count
    prompt: Count
    answer: Count
    threads: Count
    runs: Count
    warm_ups: Count
    text: Digest
    scored_tokens: Count
    rows: Annotated[tuple[QuantizationRow, ...], msgspec.Meta(min_length=1, max_length=256)]
    not_measured: Annotated[tuple[NotMeasured, ...], msgspec.Meta(max_length=MAX_CELLS)]


AnyResult = TeeResult | QuantizationResult
_Found = TypeVar("_Found", TeeResult, QuantizationResult, AnyResult, covariant=True)


class ResultFile(Part, Generic[_Found], frozen=True):
    """A result under its digest. attested: the evidence of the machine, which signs the digest, where it has any."""

    digest: Digest
    result: _Found
    attested: Attested | None = None

    @classmethod
    def make(cls, result: _Found, attested: Attested | None = None) -> "ResultFile[_Found]":
        """With the digest that it has."""
        return cls(digest_of(result), result, attested)

    def write(self, folder: Path) -> Path:
        """As a file of this folder, which is made; its name has the digest's first digits. BenchmarkError if not."""
        result = self.result
        what = f"tee-{result.arm}" if isinstance(result, TeeResult) else "quantization"
        path = folder / f"{what}-{self.digest[:16]}.json"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            replace_file(path, msgspec.json.format(msgspec.json.encode(self), indent=1) + b"\n")
        except OSError as error:
            raise BenchmarkError(f"{path} cannot be written ({error.strerror}); choose another --out.") from error
        return path


def read_result(data: bytes) -> ResultFile[AnyResult]:
    """A file's content. InvalidResult for anything that `ResultFile.write` did not make, or that was changed since."""
    if len(data) > MAX_BYTES:
        raise InvalidResult(f"A file of results has at most {MAX_BYTES >> 20} MiB; this is none.")
    try:
        read = msgspec.json.decode(data, type=ResultFile[AnyResult])
    except (msgspec.MsgspecError, ValueError, RecursionError) as error:
        reason = printable(str(error))[:200].rstrip(".")
        raise InvalidResult(f"This is no file of results ({reason}); get it again from whoever measured.") from None
    if digest_of(read.result) != read.digest:
        raise InvalidResult(
            "These results were changed after they were measured: their digest is another one; get the file again "
            "from whoever measured."
        )
    return read


def read_file(path: Path) -> ResultFile[AnyResult]:
    """Results from a file. InvalidResult where it cannot be read, is none, or was changed."""
    try:
        data = read_bounded(path, MAX_BYTES)
    except FileTooLarge:
        raise InvalidResult(f"{path} has more than {MAX_BYTES >> 20} MiB; it is no file of results.") from None
    except OSError as error:
        raise InvalidResult(f"{path} cannot be read ({error.strerror}); name a file that was measured.") from error
    try:
        return read_result(data)
    except InvalidResult as error:
        raise InvalidResult(f"{path}: {error}") from None


def digest_of(result: AnyResult) -> str:
    """SHA-256 of a result as RFC 8785 writes it, in hexadecimal."""
    return hashlib.sha256(rfc8785.dumps(msgspec.to_builtins(result))).hexdigest()


def require_arm(file: ResultFile[AnyResult]) -> None:
    """InvalidResult where a result calls its machine a trusted environment, and the evidence in it does not show that.

    What calls itself bare, virtual or simulated shows nothing, and is not asked to.
    """
    result = file.result
    if not isinstance(result, TeeResult) or not result.arm.proven:
        return
    if file.attested is None:
        raise InvalidResult(f"These results call their machine {result.arm}, and have no evidence; measure them again.")
    gpu = result.workload.device == "cuda"
    try:
        shown = shown_arm(file.attested, file.digest, result.measured, ProductionRoots(), gpu=gpu)
    except BenchmarkError as error:
        raise InvalidResult(f"These results call their machine {result.arm}. {error}") from error
    if shown is not result.arm:
        raise InvalidResult(f"These results call their machine {result.arm}, and their evidence is of {shown}.")


def this_software(commit: str) -> Software:
    """What computes here. commit: of the checkout, where it is one."""
    versions = {name: metadata.version(name) for name in LIBRARIES}
    return Software(VERSION, commit, platform.python_version(), versions)
