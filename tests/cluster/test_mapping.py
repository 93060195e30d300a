"""Work of owners as Ray tasks: the same files as here. Slow where Ray runs, as it is."""

import filecmp
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from confide.errors import ClusterUnavailable

CONFIDE = Path(sys.executable).with_name("confide")


def machines(*alive: bool) -> list[dict[str, Any]]:
    return [{"Alive": one} for one in alive]


def test_secrets_travel_only_where_ray_encrypts(monkeypatch: pytest.MonkeyPatch) -> None:
    mapping = pytest.importorskip("confide.cluster.mapping")
    monkeypatch.delenv("RAY_USE_TLS", raising=False)
    for found in (machines(True), machines(True, False)):
        monkeypatch.setattr(mapping.ray, "nodes", lambda found=found: found)
        mapping.require_private()
    monkeypatch.setattr(mapping.ray, "nodes", lambda: machines(True, True))
    for said in (None, "0", ""):
        if said is not None:
            monkeypatch.setenv("RAY_USE_TLS", said)
        with pytest.raises(ClusterUnavailable, match="2 machines"):
            mapping.require_private()
    monkeypatch.setenv("RAY_USE_TLS", "1")
    mapping.require_private()


Cluster = tuple[str, dict[str, str]]


def confide(environment: dict[str, str], *words: object) -> dict[str, Any]:
    command = [str(CONFIDE), *map(str, words), "--json"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return answer


@pytest.mark.slow
def test_an_owners_work_gives_the_same_files_on_a_cluster(ray: Cluster, tmp_path: Path) -> None:
    address, environment = ray
    for type in ("q8_0", "q4_k_m"):
        here, there = tmp_path / f"here-{type}.gguf", tmp_path / f"there-{type}.gguf"
        confide(environment, "quantize", "demo", "--type", type, "--out", here)
        confide(environment, "quantize", "demo", "--type", type, "--out", there, "--ray", address)
        assert filecmp.cmp(here, there, shallow=False)

    confide(environment, "split", "demo", "--out", tmp_path / "here")
    confide(environment, "split", "demo", "--out", tmp_path / "there", "--ray", address)
    confide(environment, "split", "demo", "--out", tmp_path / "later", "--no-hint")
    folders = (tmp_path / "later" / "client", tmp_path / "later" / "server")
    confide(environment, "hint", "make", *folders, "--ray", address)
    hints = sorted((tmp_path / "here" / "client" / "hint").iterdir())
    assert hints
    for made in hints:
        for other in ("there", "later"):
            assert filecmp.cmp(made, tmp_path / other / "client" / "hint" / made.name, shallow=False)
    for other in ("there", "later"):
        confide(environment, "hint", "verify", tmp_path / other / "client")


@pytest.mark.slow
def test_a_corpus_is_found_by_the_same_vectors(ray: Cluster, tmp_path: Path) -> None:
    address, environment = ray
    from tests.models.encoders import save_embedder  # which imports what takes seconds

    embedder_folder = save_embedder(tmp_path / "embedder")
    documents = tmp_path / "documents"
    documents.mkdir()
    for number in range(40):
        (documents / f"{number}.txt").write_text(
            f"Document {number} is about the number {number} and nothing else. " * 9
        )
    for name, more in (("here", ()), ("there", ("--ray", address))):
        words = ("rag", "build", documents, "--out", tmp_path / name, "--key", tmp_path / "key", "--embedder")
        confide(environment, *words, embedder_folder, *more)
    question = ("what is about the number seventeen", "--key", tmp_path / "key")
    here, there = (
        confide(environment, "rag", "search", tmp_path / name, *question)["hits"] for name in ("here", "there")
    )
    assert [hit["source"] for hit in here] == [hit["source"] for hit in there]
    assert [hit["score"] for hit in here] == pytest.approx([hit["score"] for hit in there], rel=1e-5)


@pytest.mark.slow
def test_a_task_that_fails_is_said_with_a_way_out(ray: Cluster, tmp_path: Path) -> None:
    """A ConfideError of the work is its own; another is the cluster's; and a task whose process dies is tried again."""
    address, environment = ray
    code = f"""
import os, sys
from pathlib import Path
from confide.cluster.ray_settings import set_before_ray
set_before_ray({address!r})
from confide.cluster.mapping import on_ray
from confide.cluster.ray_cluster import connected
from confide.errors import ClusterUnavailable, ModelNotSupported

def of_the_work(number):
    from confide.errors import ModelNotSupported
    raise ModelNotSupported("This is why.")

def dies_once(number):
    import os
    from pathlib import Path
    mark = Path({str(tmp_path)!r}) / f"died-{{number}}"
    if number == 1 and not mark.exists():
        mark.touch()
        os.kill(os.getpid(), 9)
    return number

with connected({address!r}):
    assert list(on_ray(dies_once, range(4))) == [0, 1, 2, 3]
    for work, kind in ((of_the_work, ModelNotSupported), (lambda number: 1 // number, ClusterUnavailable)):
        try:
            list(on_ray(work, range(3)))
        except kind as error:
            print("SAID", error, file=sys.stderr)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=600, cwd=os.getcwd()
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "died-1").exists()
    own, other = (line for line in done.stderr.splitlines() if line.startswith("SAID"))
    assert own == "SAID This is why."
    assert "A task of the cluster failed (ZeroDivisionError)" in other


def test_vectors_by_a_cluster_need_a_model_for_them(tmp_path: Path) -> None:
    command = [
        str(CONFIDE),
        "rag",
        "build",
        str(tmp_path),
        "--out",
        str(tmp_path / "out"),
        "--key",
        str(tmp_path / "key"),
    ]
    done = subprocess.run([*command, "--ray", "auto"], capture_output=True, text=True, timeout=600)
    assert done.returncode == 2
    assert "--ray goes with --embedder" in done.stderr.replace("\n", " ")
