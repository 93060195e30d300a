import json
from pathlib import Path

from gguf import GGUFReader
from tests.cli.command import run


def test_quantize_writes_a_file_and_says_so(tmp_path: Path) -> None:
    out, text = tmp_path / "demo.gguf", tmp_path / "text.txt"
    text.write_text("The old king called his three sons and said, go forth. " * 30)
    done = run("quantize", "demo", "--type", "q4_k_m", "--calibrate", text, "--out", out, "--json")
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout)
    assert said["file"] == str(out)
    assert said["bytes"] == out.stat().st_size < 5_000_000
    assert (said["type"], said["tensors"], said["parameters"]) == ("q4_k_m", 76, 5_918_720)
    assert (said["context"], said["wider"]) == (512, {})
    assert len(GGUFReader(out).tensors) == 76
