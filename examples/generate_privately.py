"""Private generation with two processes on one machine: split a model, serve its layers, generate with the shell.

`confide demo` shows more and measures. This is what a program of your own would do.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from transformers import TextStreamer

import confide

PROMPT = "The old man opened the door and"


@contextmanager
def layer_server(package: Path) -> Iterator[str]:
    """`confide serve` in a process of its own; yields its address."""
    command = [sys.executable, "-m", "confide", "serve", str(package), "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield json.loads(process.stdout.readline())["url"]
        finally:
            process.terminate()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        owner = confide.OwnerKey.generate()  # signs both halves; the client pins its public key
        parts = confide.split(
            confide.open_model("demo"), folder, owner=owner
        )  # a local folder or a hub id will do as well
        print(f"{parts.protected_share:.0%} of the parameters go to the server, the rest stays here")
        with confide.licence_book(parts.server / "state") as book:
            _, key = book.create("me", disclosure=None)  # for others, leave the limit on what they learn of the weights
        with layer_server(parts.server) as url:
            with confide.HybridModel.from_shell(parts.client, server=url, owner=owner.public.raw, licence=key) as model:
                inputs = model.tokenizer(PROMPT, return_tensors="pt")
                streamer = TextStreamer(model.tokenizer)
                tokens = model.generate(**inputs, max_new_tokens=24, do_sample=False, streamer=streamer)

                new = tokens.shape[1] - inputs["input_ids"].shape[1]
                print(f"{new} tokens, {model.traffic.round_trips} round trips")


if __name__ == "__main__":
    main()
