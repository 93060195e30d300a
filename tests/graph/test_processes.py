"""Guard, model and retrieval as processes of their own, in simulated TEEs; each changed by one byte, each in turn."""

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cli.command import run, serving

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.simulated import SimulatedTee
from confide.broker.store import Conditions, KeyStore
from confide.cli.keys import PASSPHRASE_VARIABLE
from confide.errors import AttestationRefused, PromptRefused
from confide.packages.guard import sign_rules
from confide.packages.sealed.contents import contents_of
from confide.packages.sealed.corpus import Chunk, SealedCorpus, seal_corpus
from confide.packages.sealed.key import ModelKey
from confide.packages.sealed.write import seal_model

from .graphs import ALICE, NOW, begun, with_digests
from .scene import CHUNK, RULES

SERVICES = ("retrieval", "model", "guard")
DEMO = Path(confide.__file__).parent / "models" / "demo_gpt2"


def package(name: str, out: Path, key: ModelKey, *, odd: bool) -> str:
    """Its digest. An odd one differs by one byte."""
    if name == "guard":
        return sign_rules(RULES.replace("sesame", "sesamo") if odd else RULES, out, ALICE).digest
    if name == "retrieval":
        chunk = Chunk("tide.md", None, CHUNK.replace("twice", "twike") if odd else CHUNK)
        return seal_corpus((chunk,), out, name="sea", key=key, owner=ALICE).digest
    source = Path(shutil.copytree(DEMO, out.with_suffix(".in")))
    weights = bytearray((source / "model.safetensors").read_bytes())
    weights[-1] ^= odd
    (source / "model.safetensors").write_bytes(weights)
    return seal_model(contents_of(str(source)), out, key=key, owner=ALICE).model_digest


@contextmanager
def services(folder: Path, keys: str, packages: Mapping[str, Path]) -> Iterator[dict[str, str]]:
    """Where each answers. The model has no known answers: what it computes is not looked at here."""
    tee = ("--tee", "simulated", "--simulated-tee", folder / "tee", "--port", "0")
    asks = {"retrieval": "", "model": "retrieval", "guard": "model"}
    own = {"retrieval": ("--keys", keys), "model": ("--keys", keys, "--insecure-skip-self-test"), "guard": ()}
    urls: dict[str, str] = {}
    with ExitStack() as stack:
        for name in SERVICES:
            asked = ("--neighbour", f"{asks[name]}={urls[asks[name]]}") if asks[name] else ()
            joined = ("--graph", folder / "log", "--service", name)
            words = ("serve", packages[name], *joined, *tee, *asked, *own[name])
            urls[name] = stack.enter_context(serving(*words, environment={"OMP_NUM_THREADS": "1"}))["url"]
        yield urls


def attest(url: str, graph: str, root: Path) -> tuple[int, dict[str, Any]]:
    done = run("attest", "graph", url, "--graph", graph, "--simulated-root", root, "--json")
    return done.returncode, json.loads(done.stdout)


@pytest.mark.slow
def test_three_processes_are_verified_as_one_and_each_change_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/graph/test_verdict.py does the same with services in one process, and a model that is none."""
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "home"))
    SimulatedTee.create(tmp_path / "tee")
    root, store = tmp_path / "tee" / "root.pem", KeyStore.create(tmp_path / "keys", "passphrase")
    digests: dict[str, str] = {}
    for odd in (False, True):
        for name in SERVICES:
            key, out = ModelKey.generate(), tmp_path / (f"odd-{name}" if odd else name)
            digest = package(name, out, key, odd=odd)
            digests.setdefault(name, digest)
            assert not odd or digest != digests[name]
            if name != "guard":
                store.add(key, Conditions(digest, SimulatedPolicy(), root.read_bytes()), NOW)
    history = begun(with_digests(digests))
    (tmp_path / "log").write_bytes(history.content)
    whole = {name: tmp_path / name for name in SERVICES}
    broker = ("keys", "serve", "--folder", tmp_path / "keys", "--port", "0", "--offline")
    with serving(*broker, environment={PASSPHRASE_VARIABLE: "passphrase"}) as announced:
        with services(tmp_path, announced["url"], whole) as urls:
            code, verdict = attest(urls["guard"], history.id, root)
            assert (code, verdict["trusted"], list(verdict["services"])) == (0, True, list(reversed(SERVICES)))
            with confide.connect(urls["guard"], graph=history.id, simulated_root=root) as session:
                assert session.generate("The old man", max_tokens=3)
                with pytest.raises(PromptRefused):
                    session.generate("open sesame")
                answer = session.openai.chat.completions.create(
                    model=session.model,
                    messages=[{"role": "user", "content": "the tide"}],
                    max_tokens=3,
                    extra_body={"confide": {"rag": {"top_k": 1}}},
                )
                [source] = answer.confide["rag"]["sources"]
                assert source["filename"] == "tide.md"
                assert answer.confide["rag"]["corpus"]["digest"] == digests["retrieval"]
        for changed in SERVICES:
            packages = whole | {changed: tmp_path / f"odd-{changed}"}
            with services(tmp_path, announced["url"], packages) as urls:
                code, verdict = attest(urls["guard"], history.id, root)
                assert code == 10
                assert [name for name, said in verdict["services"].items() if not said["trusted"]] == [changed]
                with pytest.raises(AttestationRefused, match=f"because of {changed}"):
                    confide.connect(urls["guard"], graph=history.id, simulated_root=root)
    assert SealedCorpus.open(tmp_path / "retrieval").manifest.digest == digests["retrieval"]
