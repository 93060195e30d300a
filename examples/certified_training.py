"""Train an adapter where nobody can look, have its perplexity certified before and after, and verify all of it.

python examples/certified_training.py [TEXT]    # a text in UTF-8; a page of this project's documentation without

What each owner and the host would type, all on one machine, whose hardware is simulated: it proves nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

CONFIDE = [sys.executable, "-m", "confide"]
TASK = {"confide-task": 1, "name": "rest", "metric": "perplexity", "context": 256}
RECIPE = 'confide-training = 1\n[lora]\nlearning_rate = 4e-3\n[[check]]\ncheck = "duplicates"\n'
POLICY = 'confide-policy = 1\nkind = "simulated"\n[[all]]\nrequire = "tdx"\nmrtd = "{}"\n'
os.environ.setdefault("CONFIDE_KEYS_PASSPHRASE", "of an owner who has nobody to ask")


def confide(*words: object) -> dict:  # what a command says for machines
    done = subprocess.run([*CONFIDE, *map(str, words), "--json"], check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def main() -> None:
    text = Path(*sys.argv[1:2] or [Path(__file__).parents[1] / "docs" / "attestation.md"]).read_text()
    parts = [text[start : start + 2000] for start in range(0, len(text), 2000)]
    learnt = [part for place, part in enumerate(parts) if place % 5 != 4]  # every fifth is kept to be measured on
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        for name, header, some in (("corpus", {"confide-corpus": 1, "name": "a"}, learnt), ("task", TASK, parts[4::5])):
            Path(name).write_text("\n".join(map(json.dumps, (header, *({"text": part} for part in some)))))
        Path("recipe").write_text(RECIPE)
        confide("tee", "simulate", "init", "tee")
        confide("owner", "init", "--out", "owner.key")
        here, root = ("--tee", "simulated", "--simulated-tee", "tee"), ("--simulated-root", "tee/root.pem")
        base = confide("seal", "demo", "--out", "base", "--key", "base.key", "--owner", "owner.key")["model_digest"]
        adapter_key = confide("train", "key", "adapter.key")["key"]
        asked = ("--data", "corpus", "--adapter-key", adapter_key, "--recipe", "recipe", *here)
        code = confide("train", "run", "base", *asked, "--out", "run.json")["measurement"]["tdx mrtd"]
        Path("policy").write_text(POLICY.format(code))
        for key in ("base.key", "adapter.key"):
            confide("keys", "add", key, "--model-digest", base, "--folder", "keys", "--policy", "policy", *root)
        serve = ("keys", "serve", "--folder", "keys", "--port", "0", "--json")
        with subprocess.Popen([*CONFIDE, *serve], stdout=subprocess.PIPE, text=True) as service:
            keys = ("--keys", json.loads(service.stdout.readline())["url"], *here)
            confide("train", "lora", "base", "--data", "corpus", "--run", "run.json", *keys, "--out", "adapter")
            for out, over in (("before", ()), ("after", ("--adapter", "adapter"))):
                score = confide("certify", "score", "base", "--task", "task", *over, *keys, "--out", out)["score"]
                print(f"perplexity {out}: {score['value']:g} ({score['low']:g} to {score['high']:g})")
            service.terminate()
        verified = [confide("train", "verify", "adapter", "--policy", "policy", "--data", "corpus", *root)]
        verified += [confide("certify", "verify", one, "--policy", "policy", *root) for one in ("before", "after")]
        print(f"all three certificates are verified: {all(one['verified'] for one in verified)}")


main()
