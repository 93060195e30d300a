"""Results of single windows, kept as they come, so that an interrupted evaluation goes on where it stopped.

A file of JSON lines: the first says of which model, text and settings the results are, each other is one result. It is
only ever appended to; a last line that was cut off by a crash is dropped and measured again.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, BinaryIO, Generic, TypeVar

import msgspec

from confide.disk.files import hold_folder
from confide.errors import EvaluationError

Settings = Mapping[str, str]
"""What results depend on, by names that a person understands."""

Result = TypeVar("Result", bound=msgspec.Struct)


class _Head(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    settings: dict[str, str]


class _Line(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    variant: str
    window: int
    result: msgspec.Raw


class Results(Generic[Result]):
    """What was measured so far, by variant of the model and window; see `keep_results` for where it is kept."""

    def __init__(self, kind: type[Result], file: BinaryIO | None = None) -> None:
        self._kind = kind
        self._file = file
        self._found: dict[tuple[str, int], Result] = {}

    def get(self, variant: str, window: int) -> Result | None:
        """The result, or None where that window is yet to be measured."""
        return self._found.get((variant, window))

    def of(self, variant: str, windows: int) -> list[Result]:
        """The results of windows 0 to `windows` - 1, all of which must have been measured."""
        return [self._found[variant, window] for window in range(windows)]

    def add(self, variant: str, window: int, result: Result) -> None:
        """Keep a result; it is in the file when this returns."""
        self._found[variant, window] = result
        self._append(_Line(variant, window, msgspec.Raw(msgspec.json.encode(result))))

    def begin(self, settings: Settings) -> None:
        """Write the first line of a new file."""
        self._append(_Head(dict(settings)))

    def restore(self, line: bytes) -> None:
        """Take over a result of an earlier run; msgspec.ValidationError where the line holds none."""
        kept = msgspec.json.decode(line, type=_Line)
        self._found[kept.variant, kept.window] = msgspec.json.decode(kept.result, type=self._kind)

    def _append(self, line: msgspec.Struct) -> None:
        if self._file:
            self._file.write(msgspec.json.encode(line) + b"\n")
            self._file.flush()


@contextmanager
def keep_results(path: Path, kind: type[Result], settings: Settings) -> Iterator[Results[Result]]:
    """Results that are kept in a file, with those of an earlier run that had the same settings.

    Raises EvaluationError where the file is of other settings or is no such file, and where its folder is in use by
    another process or cannot be written to.
    """
    lock = _hold(path.parent)
    if lock is None:
        raise EvaluationError(f"Another process is evaluating into {path.parent}; wait for it or choose another --out.")
    with lock, path.open("a+b") as file:
        file.seek(0)
        content = file.read()
        whole = content[: content.rfind(b"\n") + 1]
        file.truncate(len(whole))
        results = Results(kind, file)
        if whole:
            _restore(results, whole.splitlines(), path, settings)
        else:
            results.begin(settings)
        yield results


def _hold(folder: Path) -> IO[str] | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return hold_folder(folder)
    except OSError as error:
        raise EvaluationError(f"{folder} cannot be written to ({error.strerror}); choose another --out.") from error


def _restore(results: Results[Result], lines: list[bytes], path: Path, settings: Settings) -> None:
    try:
        kept = msgspec.json.decode(lines[0], type=_Head).settings
        _require_same(kept, settings, path)
        for line in lines[1:]:
            results.restore(line)
    except (msgspec.DecodeError, ValueError, RecursionError) as error:
        raise EvaluationError(f"{path} is damaged; remove it to measure anew, or choose another --out.") from error


def _require_same(kept: Settings, settings: Settings, path: Path) -> None:
    for name in sorted(kept.keys() | settings.keys()):
        before, now = (_short(values.get(name, "not given")) for values in (kept, settings))
        if kept.get(name) != settings.get(name):
            raise EvaluationError(
                f"{path} has results of another {name} ({before}, now {now}), which cannot be mixed with these; "
                "remove it to measure anew, or choose another --out."
            )


def _short(value: str) -> str:
    return value if len(value) <= 40 else value[:12] + "…"
