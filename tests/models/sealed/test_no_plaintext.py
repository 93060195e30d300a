"""Opening a sealed model writes nothing of it to any file system."""

import json
import os
import subprocess
import sys
from pathlib import Path

PLACES = {
    "HOME": "home",
    "TMPDIR": "tmp",
    "XDG_CACHE_HOME": "cache",
    "HF_HOME": "huggingface",
    "CONFIDE_HOME": "confide",
}


def test_opening_writes_nothing_and_writing_would_be_seen(
    demo_package: Path, gguf_package: Path, tmp_path: Path
) -> None:
    for place in PLACES.values():
        (tmp_path / place).mkdir()
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("opening.py"), tmp_path, demo_package, gguf_package],
        cwd=tmp_path,
        env=os.environ
        | {name: str(tmp_path / place) for name, place in PLACES.items()}
        | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["opening"]["opened"] == []
    assert seen["opening"]["files"] == []
    assert len(set(seen["opening"]["made"])) == 1  # the folder of links, which is gone
    assert seen["opening"]["left"] == []
    assert seen["opening"]["written"] < 4096  # a few words to the terminal
    (file,) = seen["careless"]["files"]
    assert file in seen["careless"]["opened"]
    assert seen["careless"]["written"] > 10_000_000
