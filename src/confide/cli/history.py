"""What was typed before, in a file for this user alone. Where it could not be kept so, nothing is kept."""

import os
from pathlib import Path
from typing import Final

from confide.disk.files import open_own, replace_file

FILE_NAME: Final = "chat-history"
_MOST_LINES: Final = 1000
_MAX_BYTES: Final = 1 << 20


class History:
    """Lines, oldest first: `lines` as they were found. A line that begins with a space is not kept.

    PermissionError where the file, or the folder that it is in, is not this user's alone to write.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / FILE_NAME
        facts = folder.stat()
        if facts.st_uid != os.geteuid() or facts.st_mode & 0o022:
            raise PermissionError(f"{folder} is not yours alone to write")
        with os.fdopen(open_own(self.path, os.O_RDWR | os.O_CREAT), "rb") as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - _MAX_BYTES))
            found = file.read(_MAX_BYTES).decode("utf-8", "replace").split("\n")
        self.lines = [line for line in found if line][-_MOST_LINES:]
        if len(found) > 2 * _MOST_LINES:
            replace_file(self.path, "".join(f"{line}\n" for line in self.lines).encode(), mode=0o600)

    def __repr__(self) -> str:
        return f"History({str(self.path)!r}, <hidden>)"

    def add(self, line: str) -> None:
        """Keep a line. OSError where that cannot be."""
        if line.strip() and not line.startswith(" "):
            content = line.replace("\n", " ").encode(errors="replace")
            with os.fdopen(open_own(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "ab") as file:
                file.write(content + b"\n")
