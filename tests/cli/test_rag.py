"""`confide rag` as a person or a script runs it."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.rag.made import pdf

import confide
from confide.attest.policy import SimulatedPolicy
from confide.attest.policy_toml import to_toml
from confide.attest.requirements import Corpus, NoEgress
from confide.attest.simulated import SimulatedTee
from confide.cli.keys import PASSPHRASE_VARIABLE

from .command import run, serving


def answer(*arguments: object, check: int = 0) -> dict[str, Any]:
    done = run("rag", *arguments, "--json")
    assert done.returncode == check, done.stderr + done.stdout
    output: dict[str, Any] = json.loads(done.stdout)
    return output


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CONFIDE_HOME", str(tmp_path_factory.mktemp("home") / "confide"))
        yield


def test_documents_become_a_corpus_that_is_asked_and_updated(tmp_path: Path) -> None:
    documents, key = tmp_path / "my docs", tmp_path / "corpus.key"
    documents.mkdir()
    (documents / "tide.txt").write_text("The tide rises twice a day.")
    (documents / "bread.md").write_text("Bakers rise early.")
    (documents / "photo.png").write_bytes(b"\x89PNG")
    made = answer("build", documents, "--out", tmp_path / "one", "--key", key)
    assert (made["name"], made["head"], made["documents"], made["chunks"]) == ("my-docs", 1, 2, 2)
    assert made["left_out"] == {"photo.png": "of another kind"}

    shown = answer("show", tmp_path / "one", "--key", key)
    assert shown["verified"]
    assert shown["sources"] == {"bread.md": 1, "tide.txt": 1}
    assert shown["digest"] == made["digest"]
    found = answer("search", tmp_path / "one", "when does the tide rise?", "--key", key)["hits"]
    assert [hit["source"] for hit in found] == ["tide.txt", "bread.md"]
    assert found[0]["score"] == 1 > found[1]["score"] > 0

    (documents / "bread.md").write_text("\x1b[2J bread")
    updated = answer("build", documents, "--out", tmp_path / "two", "--key", key, "--after", tmp_path / "one")
    assert (updated["corpus"], updated["head"], updated["previous"]) == (made["corpus"], 2, made["digest"])
    done = run("rag", "search", tmp_path / "two", "bread", "--key", key)
    assert "bread.md" in done.stdout
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_a_document_that_cannot_be_read_ends_the_build_unless_it_may_be_left_out(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "bad.pdf").write_bytes(b"%PDF-nothing")
    (tmp_path / "docs" / "good.txt").write_text("good")
    arguments = ("build", tmp_path / "docs", "--out", tmp_path / "out", "--key", tmp_path / "key")
    assert answer(*arguments, check=1)["error"]["code"] == "unreadable-document"
    assert not (tmp_path / "out").exists()
    assert list(answer(*arguments, "--skip-unreadable")["left_out"]) == ["bad.pdf"]


def test_the_next_head_is_its_own_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "a.txt").write_text("good")
    arguments = ("build", tmp_path / "docs", "--key", tmp_path / "key")
    answer(*arguments, "--out", tmp_path / "one")
    monkeypatch.setenv("CONFIDE_HOME", str(tmp_path / "stranger"))
    refused = answer(*arguments, "--out", tmp_path / "two", "--after", tmp_path / "one", check=1)
    assert refused["error"]["code"] == "untrusted-owner"


def test_a_corpus_is_served_once_its_owners_key_service_knows_the_head(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The owner's key service and the retrieval service are processes, the TEE is simulated, ways out are closed."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tide.txt").write_text("The tide rises twice a day.")
    SimulatedTee.create(tmp_path / "tee")
    root, key = tmp_path / "tee" / "root.pem", tmp_path / "corpus.key"
    arguments = ("build", tmp_path / "docs", "--key", key)
    first = answer(*arguments, "--out", tmp_path / "1")
    second = answer(*arguments, "--out", tmp_path / "2", "--after", tmp_path / "1")

    policy = SimulatedPolicy.all_of(Corpus(second["corpus"], second["owner"], 2), NoEgress())
    (tmp_path / "policy.toml").write_text(to_toml(policy))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "passphrase")
    keys = ("--folder", tmp_path / "keys")
    bound = ("--package", tmp_path / "2", "--policy", tmp_path / "policy.toml", "--simulated-root", root)
    added = run("keys", "add", key, *bound, *keys, "--json")
    assert json.loads(added.stdout)["model_digest"] == second["digest"], added.stderr
    with serving("keys", "serve", *keys, "--port", "0", "--offline") as broker:
        options = ("--tee", "simulated", "--simulated-tee", tmp_path / "tee", "--keys", broker["url"], "--port", "0")
        with serving("serve", tmp_path / "2", *options) as service:
            assert (service["head"], service["digest"]) == (2, second["digest"])
            with confide.connect(service["url"], simulated_root=root, policy=policy) as session:
                found = session.openai.vector_stores.search(service["vector_store"], query="tide").data
                assert [hit.filename for hit in found] == ["tide.txt"]
        refused = run("serve", tmp_path / "1", *options, "--json")
        assert json.loads(refused.stdout)["error"]["code"] == "key-refused"
        assert {"model", "corpus-head"} <= set(re.findall(r"[a-z-]+", refused.stdout))
        for wrong, said in (
            (("--context", "5"), "--context is not for a corpus"),
            (("--collections-mib", "5"), "--collections-mib goes with --collections"),
        ):
            misused = run("serve", tmp_path / "2", *options, *wrong)
            assert (misused.returncode, said in misused.stderr) == (2, True), misused.stderr
        own = ("--collections", tmp_path / "shelf", "--collections-mib", "1")
        with serving("serve", tmp_path / "2", *options, *own) as service:
            assert (service["collections"], service["configuration"]["options"]["collections"]) == (True, "true")
            assert "shelf" not in json.dumps(service)  # where documents are is not the world's business
            _keep_documents(tmp_path, service["url"], root)
    assert first["head"] == 1


def _keep_documents(folder: Path, url: str, root: Path) -> None:
    """What a user does with `confide collection`, at a service whose ways out are closed."""
    key, proof = folder / "own.key", folder / "proof"

    def own(verb: str, *arguments: object, check: int = 0) -> dict[str, Any]:
        done = run("collection", verb, url, key, *arguments, "--simulated-root", root, "--json")
        assert done.returncode == check, done.stderr + done.stdout
        said: dict[str, Any] = json.loads(done.stdout)
        return said

    created = json.loads(run("collection", "create", key, "--json").stdout)
    assert key.stat().st_mode & 0o777 == 0o600
    assert run("collection", "create", key).returncode == 1  # a key is never replaced
    (folder / "ada.pdf").write_bytes(pdf(["Ada sleeps at noon."]))
    (folder / "bed.txt").write_text("Bed seven is free.")
    added = own("add", folder / "ada.pdf", folder / "bed.txt")
    assert added["vector_store"] == created["vector_store"]
    assert [one["name"] for one in own("list")["documents"]] == ["ada.pdf", "bed.txt"]
    [hit] = own("search", "when does Ada sleep?")["found"]
    assert (hit["name"], hit["page"], hit["text"]) == ("ada.pdf", 1, "Ada sleeps at noon.")
    for shown, said in (
        (run("collection", "search", url, key, "bed", "--simulated-root", root), "Bed seven is free."),
        (run("collection", "list", url, key, "--simulated-root", root), "2 documents"),
    ):
        assert said in shown.stdout, shown.stderr
    assert own("remove", hit["id"]) == {"removed": [hit["id"]]}
    assert own("search", "Ada")["found"] == []
    (folder / "bad.pdf").write_bytes(b"%PDF-1.4")
    assert own("add", folder / "bad.pdf", check=1)["error"]["code"] == "unreadable-document"
    (folder / "large.txt").write_text("word " * (1 << 18))
    assert own("add", folder / "large.txt", check=1)["error"]["code"] == "collection-full"
    assert list((folder / "shelf").glob("*.sealed"))
    deleted = own("delete", "--proof", proof)
    assert (deleted["verified"], deleted["key_removed"]) == (True, True)
    assert not key.exists()
    assert list((folder / "shelf").glob("*.sealed")) == []
    bundle = ("--bundle", proof / "bundle.json", "--simulated-root", root)
    again = run("receipt", "verify", proof / "receipt.json", *bundle, "--request", proof / "request", "--json")
    assert again.returncode == 0, again.stdout + again.stderr
    said = {"corpus": created["vector_store"][3:], "deleted": True, "type": "confide.collection"}
    assert json.loads(again.stdout)["collection"] == said
    assert "was deleted; nothing of it is kept" in run("receipt", "verify", proof / "receipt.json", *bundle).stdout


@pytest.mark.slow
def test_a_corpus_is_built_shown_searched_and_served_with_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """tests/models/test_encoders.py does the same in one process."""
    from tests.models.encoders import save_embedder, save_reranker  # which imports what takes seconds

    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "tide.txt").write_text("the tide rises")
    (tmp_path / "docs" / "moon.txt").write_text("the moon")
    key, out = tmp_path / "corpus.key", tmp_path / "1"
    models = ("--embedder", save_embedder(tmp_path / "e"), "--reranker", save_reranker(tmp_path / "r"))
    refused = answer("build", tmp_path / "docs", "--out", out, "--key", key, "--embedder", tmp_path / "r", check=1)
    assert refused["error"]["code"] == "model-not-supported"
    assert not out.exists()
    made = answer("build", tmp_path / "docs", "--out", out, "--key", key, *models)
    assert len(made["embedder"]) == len(made["reranker"]) == 64
    assert answer("show", out, "--key", key)["verified"]
    hits = answer("search", out, "bread", "--key", key)["hits"]
    assert {hit["source"] for hit in hits} == {"tide.txt", "moon.txt"}  # neither has the word

    SimulatedTee.create(tmp_path / "tee")
    root = tmp_path / "tee" / "root.pem"
    policy = SimulatedPolicy.all_of(Corpus(made["corpus"], made["owner"]), NoEgress())
    (tmp_path / "policy.toml").write_text(to_toml(policy))
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "passphrase")
    keys = ("--folder", tmp_path / "keys")
    bound = ("--package", out, "--policy", tmp_path / "policy.toml", "--simulated-root", root)
    assert run("keys", "add", key, *bound, *keys).returncode == 0
    with serving("keys", "serve", *keys, "--port", "0", "--offline") as broker:
        options = ("--tee", "simulated", "--simulated-tee", tmp_path / "tee", "--keys", broker["url"], "--port", "0")
        with serving("serve", out, *options) as service:
            with confide.connect(service["url"], simulated_root=root, policy=policy) as session:
                found = session.openai.vector_stores.search(service["vector_store"], query="bread").data
                assert [hit.filename for hit in found] == [hit["source"] for hit in hits]
