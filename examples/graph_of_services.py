"""Verify a guard, a model and a retrieval service as one, ask through them, and see which it was that changed.

Three processes on one machine, whose hardware is simulated: it proves nothing. docs/graph.md has it step by step.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import confide

CONFIDE = [sys.executable, "-m", "confide"]
TEE, ROOT = ("--tee", "simulated", "--simulated-tee", "tee"), ("--simulated-root", "tee/root.pem")
RULES = 'confide-guard = 1\nname = "desk"\nrefusal = "Not here."\nphrases = ["open sesame"]\n'
GRAPH = 'confide-graph = 1\nname = "desk"\nentry = "guard"\nquorum = 1\nowners = ["{}"]\n'
SERVICE = '[services.{}]\npolicy = "policy"\nasks = {}\ndigest = "{}"\n'
MADE_BY = {"retrieval": ("rag", "build", "docs"), "model": ("seal", "demo"), "guard": ("guard", "sign", "rules")}
ASKS = {"retrieval": [], "model": ["retrieval"], "guard": ["model"]}
os.environ.setdefault("CONFIDE_KEYS_PASSPHRASE", "of an owner who has nobody to ask")


def run(*words: object) -> dict:  # what a command says for machines
    done = subprocess.run([*CONFIDE, *map(str, words), "--json"], stdout=subprocess.PIPE, check=False)
    return dict(json.loads(done.stdout))


def package(name: str, out: str) -> str:  # its digest, which is all that the graph says of it
    key = () if name == "guard" else ("--key", f"{out}.key")
    made = run(*MADE_BY[name], "--out", out, *key)
    digest = str(made["model_digest"] if name == "model" else made["digest"])
    if key:
        run("keys", "add", f"{out}.key", "--model-digest", digest, "--policy", "policy", *ROOT)
    return digest


def main() -> None:
    owner = run("owner", "init")["owner"]
    run("tee", "simulate", "init", "tee")
    Path("policy").write_text('confide-policy = 1\nkind = "simulated"\n')
    Path("docs").mkdir()
    Path("docs/tide.md").write_text("The tide rises twice a day.")
    Path("rules").write_text(RULES)
    services = "".join(SERVICE.format(name, asks, package(name, name)) for name, asks in ASKS.items())
    Path("graph.toml").write_text(GRAPH.format(owner) + services)
    run("graph", "init", "graph.toml", "--out", "version")
    run("graph", "sign", "version")
    graph = run("graph", "apply", "version", "--log", "log")["graph"]
    urls, processes = {}, []

    def serve(name: str, *words: str) -> None:
        command = [*CONFIDE, *words, "--port", "0", "--json"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE))
        urls[name] = json.loads(processes[-1].stdout.readline())["url"]

    def join(name: str, folder: str) -> None:
        asked = [word for one in ASKS[name] for word in ("--neighbour", f"{one}={urls[one]}")]
        keys = [] if name == "guard" else ["--keys", urls["keys"]]
        serve(name, "serve", folder, "--graph", "log", "--service", name, *TEE, *asked, *keys)

    serve("keys", "keys", "serve")
    for name in ASKS:
        join(name, name)
    with confide.connect(urls["guard"], graph=graph, simulated_root="tee/root.pem") as session:
        print(f"{session.trust}\n{session.generate('The old man', max_tokens=8)}")
    Path("rules").write_text(RULES.replace("sesame", "sesamo"))
    package("guard", "changed")
    join("guard", "changed")
    verdict = run("attest", "graph", urls["guard"], "--graph", graph, *ROOT)
    for process in processes:
        process.terminate()
        process.wait()
    print("not trusted:", *(name for name, said in verdict["services"].items() if not said["trusted"]))


with tempfile.TemporaryDirectory() as folder:
    os.chdir(folder)
    os.environ |= {"CONFIDE_HOME": folder}
    main()
