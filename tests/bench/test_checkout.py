"""Results are of a commit, and of nothing that is not in it."""

import subprocess
from pathlib import Path

import pytest

from confide.bench.checkout import commit
from confide.errors import BenchmarkError


def git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", folder, "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    folder = tmp_path / "checkout"
    folder.mkdir()
    git(folder, "init", "-q")
    (folder / "code.py").write_text("one = 1\n")
    git(folder, "add", "code.py")
    git(folder, "commit", "-qm", "one")
    return folder


def test_a_clean_checkout_says_its_commit(checkout: Path) -> None:
    assert commit(checkout) == git(checkout, "rev-parse", "HEAD")


def test_an_installed_program_has_no_commit(tmp_path: Path) -> None:
    assert commit(tmp_path) == ""


@pytest.mark.parametrize("change", ["edited", "staged", "untracked", "hidden"])
def test_any_change_is_refused_by_name(change: str, checkout: Path) -> None:
    name = "code.py" if change in ("edited", "staged") else "more.py"
    (checkout / name).write_text("two = 2\n")
    if change == "staged":
        git(checkout, "add", name)
    if change == "hidden":
        git(checkout, "config", "status.showUntrackedFiles", "no")
    with pytest.raises(BenchmarkError, match=rf"{name}.*commit or remove"):
        commit(checkout)


def test_the_environment_names_no_other_checkout(
    checkout: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    git(other, "commit", "-q", "--allow-empty", "-m", "empty")
    (checkout / "code.py").write_text("two = 2\n")
    monkeypatch.setenv("GIT_DIR", str(other / ".git"))
    monkeypatch.setenv("GIT_WORK_TREE", str(other))
    with pytest.raises(BenchmarkError):
        commit(checkout)


def test_without_git_nobody_can_say(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(BenchmarkError, match="git cannot say"):
        commit(checkout)
