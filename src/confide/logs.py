"""Log lines for people, and for machines: one JSON object each. What they may say is decided where they are written.

Of an exception they give its kind and place, though not its message: one from a library could quote what it was given.
"""

import json
import logging
import time
import traceback
from types import TracebackType

from confide.printable import printable

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def quiet_logger(name: str) -> logging.Logger:
    """For libraries that would log what travels: keys and numbers that are nobody's business, at any level."""
    logger = logging.getLogger(f"confide.{name}")
    logger.setLevel(logging.CRITICAL)
    return logger


class TextLines(logging.Formatter):
    """What happened, in a sentence: printable, whoever's words are a part of it."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, and the trace where there was an exception."""
        record.exc_text = None  # kept by another handler, and with the message
        return printable(super().format(record), keep="\n")

    def formatException(self, ei: ExceptionInfo) -> str:
        """Where it was raised, and its kind."""
        kind = ei[0].__name__ if ei[0] else "no exception"
        return "".join(traceback.format_tb(ei[2])) + kind


class JsonLines(logging.Formatter):
    """time (UTC), level, logger and event, further fields by name; exception and trace where there was one."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "event": record.getMessage(),
        }
        fields = getattr(record, "fields", None)
        if isinstance(fields, dict):
            line |= fields
        if record.exc_info and record.exc_info[1] is not None:
            line["exception"] = type(record.exc_info[1]).__name__
            line["trace"] = "".join(traceback.format_tb(record.exc_info[2]))
        return json.dumps(line)
