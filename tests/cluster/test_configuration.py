"""The file that says which servers a cluster runs: what it may say, and who may write it."""

from pathlib import Path

import pytest

from confide.cluster.configuration import Server, read_cluster
from confide.errors import InvalidSettings

ONE = '[[server]]\nname = "layers"\nserve = ["./split/server"]\n'


def written(folder: Path, text: str, mode: int = 0o600) -> Path:
    path = folder / "cluster.toml"
    path.write_text(text)
    path.chmod(mode)
    return path


def test_what_is_not_said_has_its_default(tmp_path: Path) -> None:
    [server] = read_cluster(written(tmp_path, "confide-cluster = 1\n" + ONE))
    assert server == Server("layers", ("./split/server",))
    assert (server.least, server.largest, server.load, server.cpus) == (1, 1, 8, 1)


def test_everything_may_be_said(tmp_path: Path) -> None:
    more = "least = 2\nmost = 5\nload = 3.5\ncpus = 0.5\nmemory-gib = 4\nstart-seconds = 60\nquiet-seconds = 30\n"
    [server] = read_cluster(written(tmp_path, "confide-cluster = 1\n" + ONE + more))
    assert server == Server("layers", ("./split/server",), 2, 5, 3.5, 0.5, 4, 60, 30)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "cannot be understood"),
        ("confide-cluster = 2\n" + ONE, "cannot be understood"),
        ("confide-cluster = 1\n", "cannot be understood"),
        ("confide-cluster = 1\n" + ONE + "colour = 1\n", "cannot be understood"),
        ("confide-cluster = 1\n" + ONE + "least = 0\n", "cannot be understood"),
        ("confide-cluster = 1\n" + ONE + "load = 0\n", "cannot be understood"),
        ("confide-cluster = 1\n" + ONE + "most = 3\nleast = 4\n", "more of layers at least than at most"),
        ("confide-cluster = 1\n" + ONE + ONE, "two servers called layers"),
        ("confide-cluster = 1\n" + ONE.replace("layers", "Layers"), "cannot be understood"),
        ("confide-cluster = 1\n" + ONE.replace('["./split/server"]', "[]"), "cannot be understood"),
        ("confide-cluster = 1\n" + ONE.replace('"./split/server"', '"x", "--port", "1"'), "--port, which is chosen"),
        ("confide-cluster = 1\n" + ONE.replace('"./split/server"', '"x", "--port=1"'), "--port=1, which is chosen"),
        ("confide-cluster = 1\n" + ONE.replace('"./split/server"', '"x", "--json"'), "--json, which is chosen"),
        ("confide-cluster = 1\n" + ONE.replace('"./split/server"', '"x\\u0000y"'), "cannot be understood"),
        ("confide-cluster = 1\n" + ONE + "a.b.c.d.e.f.g.h.i.j = 1\n", "more than 8 parts"),
    ],
    ids=range(15),
)  # fmt: skip
def test_what_is_no_cluster_is_refused(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidSettings, match=said):
        read_cluster(written(tmp_path, text))


def test_a_file_that_others_may_write_starts_nothing(tmp_path: Path) -> None:
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_cluster(written(tmp_path, "confide-cluster = 1\n" + ONE, 0o666))
    with pytest.raises(InvalidSettings, match="cannot be read"):
        read_cluster(tmp_path / "missing.toml")
