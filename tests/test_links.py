"""Links between the pages of the documentation, and to its files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md")]
PAGES += [*(ROOT / "docs").glob("*.md"), ROOT / "docs" / "decisions" / "README.md"]
LINKS = re.compile(r"\]\((?!https?:)([^)\s]*)\)")
TESTS = re.compile(r"`(?:tests/)?([a-z0-9_/]*test_[a-z0-9_]+\.py)")
"""As pages name them that say which test shows something."""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINKS.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(ROOT / "benchmarks" / "results"):
            continue  # a benchmark writes it
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_tests_that_are_named_are_there(page: Path) -> None:
    assert [name for name in TESTS.findall(page.read_text()) if not (ROOT / "tests" / name).exists()] == []


def test_there_are_links_to_follow() -> None:
    assert sum(len(LINKS.findall(page.read_text())) for page in PAGES) > 10
    assert sum(len(TESTS.findall(page.read_text())) for page in PAGES) > 10


def test_every_decision_is_in_the_table_with_its_status() -> None:
    folder = ROOT / "docs" / "decisions"
    table = (folder / "README.md").read_text()
    rows = re.findall(r"^\| \[\d+\]\(([^)]+)\) \| [^|]+ \| (stands|partly|superseded)", table, re.MULTILINE)
    assert [name for name, _ in rows] == sorted(path.name for path in folder.glob("0*.md"))


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
