"""Opens sealed models in a process that is watched, then writes one to disk on purpose, and says what was seen.

Run as a program, with an empty folder that holds all the usual places for files, and with the folders of a safetensors
and of a GGUF package. An audit hook sees what Python opens for writing. Native code goes past it, so the kernel counts
the bytes of every write, and, for the safetensors model, lets no file grow at all (RLIMIT_FSIZE).
"""

import json
import os
import resource
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.load import load_model, load_tokenizer
from confide.packages.sealed.memory import open_gguf
from confide.packages.sealed.package import SealedPackage, UnlockedPackage

KEY = ModelKey(b"k" * 32)
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_TRUNC
opened: list[str] = []
"""Links to files in memory."""
made: list[str] = []
"""Folders."""


def watch(event: str, arguments: tuple[object, ...]) -> None:
    if event == "open":
        path, mode, flags = arguments
        if set(str(mode)) & set("wax+") or int(str(flags)) & WRITING:
            opened.append(str(path))
    elif event == "os.symlink" and str(arguments[0]).startswith("/proc/self/fd/"):
        pass  # to a file in memory
    elif event == "os.mkdir":
        made.append(str(arguments[0]))
    elif event in {"os.rename", "os.link", "os.symlink"}:
        opened.append(f"{event} {arguments}")


def bytes_written() -> int:
    """By this process, to anything: `wchar` of proc_pid_io(5)."""
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("wchar")))


def seen_of(folder: Path, action: Callable[[], None]) -> dict[str, object]:
    opened.clear()
    before = bytes_written()
    action()
    written = bytes_written() - before
    files = [str(path) for path in folder.rglob("*") if path.is_file()]
    left = [path for path in made if Path(path).exists()]
    return {"opened": list(opened), "written": written, "files": files, "made": list(made), "left": left}


@contextmanager
def files_cannot_grow() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def open_both(safetensors: UnlockedPackage, gguf: UnlockedPackage) -> None:
    tokenizer = load_tokenizer(safetensors)  # not under the limit: a file in memory counts as one that grows
    assert tokenizer is not None
    with files_cannot_grow():
        model = load_model(safetensors)
        ids = model.generate(**tokenizer("The old king", return_tensors="pt"), max_new_tokens=2, do_sample=False)
        assert ids.shape[1] > 2
    with open_gguf(gguf) as file:
        assert Path(file.path).read_bytes()[:4] == b"GGUF"


def write_plaintext(safetensors: UnlockedPackage) -> None:
    content = safetensors.file("model.safetensors").read()
    with tempfile.NamedTemporaryFile(delete=False, buffering=0) as file:
        try:
            with files_cannot_grow():
                file.write(content)
            raise AssertionError("the limit does not hold")
        except OSError:
            file.write(content)


def main() -> None:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    folder = Path(sys.argv[1])
    safetensors, gguf = (SealedPackage.open(package).unlock(KEY) for package in sys.argv[2:])
    sys.addaudithook(watch)
    opening = seen_of(folder, lambda: open_both(safetensors, gguf))
    careless = seen_of(folder, lambda: write_plaintext(safetensors))
    sys.stdout.write(json.dumps({"opening": opening, "careless": careless}))


main()
