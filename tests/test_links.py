"""Links between the pages of the documentation, and to its files."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "SECURITY.md", *(ROOT / "docs").glob("*.md")]
LINKS = re.compile(r"\]\((?!https?:)([^)\s]*)\)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for link in LINKS.findall(page.read_text()):
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        if target.is_relative_to(ROOT / "benchmarks" / "results"):
            continue  # a benchmark writes it
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_there_are_links_to_follow() -> None:
    assert sum(len(LINKS.findall(page.read_text())) for page in PAGES) > 10


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links write them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
