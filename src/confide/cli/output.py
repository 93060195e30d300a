"""What people and machines read: results on standard output, everything else on standard error."""

import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.segment import Segment
from rich.text import Text

from confide.errors import ConfideError
from confide.printable import printable

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, TextStreamer

KEPT = (
    "\n\t\N{ZERO WIDTH JOINER}\N{ZERO WIDTH NON-JOINER}\N{WORD JOINER}\N{ZERO WIDTH SPACE}\N{SOFT HYPHEN}"
    "\N{LEFT-TO-RIGHT MARK}\N{RIGHT-TO-LEFT MARK}\N{ARABIC LETTER MARK}"
    "\N{NO-BREAK SPACE}\N{OGHAM SPACE MARK}\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a"
    "\N{NARROW NO-BREAK SPACE}\N{MEDIUM MATHEMATICAL SPACE}\N{IDEOGRAPHIC SPACE}"
)
"""What is shown besides printable characters: lines, spaces of every width, and what scripts join, part and order
letters with."""


class _Terminal(Console):
    """Whatever is shown goes through here, styles and all: whoever wrote it moves no cursor and hides nothing."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            # Those of control are the console's own: a progress bar's, say.
            yield segment if segment.control else segment._replace(text=printable(segment.text, keep=KEPT))

    def print(self, *objects: Any, **options: Any) -> None:
        """In a pipe sentences are as long as they are, unless a width is asked for: programs read them."""
        if not (self.is_terminal or "COLUMNS" in os.environ) and all(isinstance(one, str) for one in objects):
            options["soft_wrap"] = True
        super().print(*objects, **options)


console = _Terminal(highlight=False)
messages = _Terminal(stderr=True, highlight=False)


def result(value: dict[str, Any]) -> None:
    """One JSON object on standard output."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def error(problem: ConfideError, *, as_json: bool) -> None:
    """An error with its way out."""
    if as_json:
        result({"error": {"code": problem.code, "message": str(problem)}})
    else:
        # The message is one printable line: a second one would be in our voice.
        messages.print(f"[bold red]{problem.code}[/]  {escape(str(problem))}")


def note(text: str) -> None:
    """A remark for the person at the terminal."""
    messages.print(f"[dim]{escape(printable(text))}[/]")


def words(text: str) -> None:
    """What a model says, as far as it has come, in its own lines."""
    # Before rich sees it, which drops some control characters: something stands where something was.
    console.print(Text(printable(text, keep=KEPT)), end="", soft_wrap=True)


def text_streamer(tokenizer: "PreTrainedTokenizerBase") -> "TextStreamer":
    """For transformers' `generate`: shows the text while it is made."""
    from transformers import TextStreamer

    class Shown(TextStreamer):
        def on_finalized_text(self, text: str, stream_end: bool = False) -> None:
            words(text)
            if stream_end:
                console.print()

    return Shown(tokenizer)


def quiet_transformers() -> None:
    """Keep transformers' own progress bars off the terminal; ours say more."""
    from transformers.utils import logging

    logging.disable_progress_bar()


def utc(seconds: float) -> str:
    """A moment for people and machines, as RFC 3339 has it: such as 2026-11-29T13:05:00Z. seconds: since 1970."""
    try:
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (OverflowError, ValueError, OSError):  # a peer may say what it likes
        return "after the year 9999"


def megabytes(count: float) -> str:
    """A number of bytes for people."""
    if count < 1e5:
        return f"{count / 1e3:,.1f} kB"
    return f"{count / 1e6:,.1f} MB" if count < 1e9 else f"{count / 1e9:,.2f} GB"


def duration(seconds: float) -> str:
    """A time for people, such as 51 ms or 3.2 h."""
    for unit, factor, most in (("ms", 1e-3, 1), ("s", 1, 120), ("min", 60, 7200), ("h", 3600, 172_800)):
        shown = f"{seconds / factor:.3g}"
        if float(shown) * factor < most:  # rounded up, it may be the next unit's
            return f"{shown} {unit}"
    return f"{seconds / 86_400:,.0f} days"


@contextmanager
def counting_bytes(what: str, total: int, *, quiet: bool = False) -> Iterator[Callable[[int], None]]:
    """A progress bar over `total` bytes; what it yields is told of each few more."""
    columns = (TextColumn(f"[dim]{what}[/]"), BarColumn(bar_width=30), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=quiet) as bar:
        task = bar.add_task("", total=total)
        yield lambda count: bar.advance(task, count)


@contextmanager
def progress_of(what: str, *, quiet: bool = False) -> Iterator[Callable[[int, int], None]]:
    """A progress bar over bytes; what it yields is told of those done and of all. It shows once there are any."""
    columns = (TextColumn(f"[dim]{what}[/]"), BarColumn(bar_width=30), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(*columns, console=messages, transient=True, disable=quiet) as bar:
        task = bar.add_task("", visible=False, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)
