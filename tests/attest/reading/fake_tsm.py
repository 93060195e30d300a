"""A fake of the kernel's configfs-tsm: named pipes, so that reading and writing make something happen."""

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread


@dataclass
class FakeTsm:
    """Answers entries made in a folder. disturb: how many of the first entries see somebody else's write."""

    provider: str = "tdx_guest"
    auxblob: bytes | None = None
    disturb: int = 0
    outblob: Callable[[bytes], bytes] = lambda inblob: b"quote over " + inblob
    entries: list[Path] = field(default_factory=list)
    removed: list[Path] = field(default_factory=list)
    threads: list[Thread] = field(default_factory=list)

    def make(self, entry: Path) -> None:
        """What mkdir does in configfs: the files appear."""
        entry.mkdir()
        self.entries.append(entry)
        (entry / "provider").write_text(self.provider + "\n")
        (entry / "generation").write_text("7\n")
        if self.auxblob is not None:
            (entry / "auxblob").write_bytes(self.auxblob)
        for name in ("inblob", "outblob"):
            os.mkfifo(entry / name)
        thread = Thread(target=self._serve, args=(entry,), daemon=True)
        thread.start()
        self.threads.append(thread)

    def _serve(self, entry: Path) -> None:
        try:
            inblob = (entry / "inblob").read_bytes()
        except FileNotFoundError:  # nobody asked, and the entry is gone again
            return
        foreign = len(self.entries) <= self.disturb
        (entry / "generation").write_text("9\n" if foreign else "8\n")
        (entry / "outblob").write_bytes(self.outblob(inblob))

    def remove(self, entry: Path) -> None:
        """What rmdir does in configfs: the files disappear with the folder."""
        for path in entry.iterdir():
            path.unlink()
        entry.rmdir()
        self.removed.append(entry)
