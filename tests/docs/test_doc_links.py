"""Every link of README, docs/, recipes/, CHANGELOG and CONTRIBUTING leads somewhere: files, and headings in them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from helpers.documents import PAGES, RECIPES, ROOT, prose, title

LINK = re.compile(r"(?:\]\(|src=\"|srcset=\")([^)\s\"]+)")
EVERY = [*PAGES, *RECIPES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]
MADE_BY_MKDOCS = ("#only-light", "#only-dark")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MkDocs make them of plain headings."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(page: Path) -> list[str]:
    return LINK.findall(prose(page))


@pytest.mark.parametrize("page", EVERY, ids=title)
def test_links_lead_somewhere(page: Path) -> None:
    for link in links(page):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), link
        assert ROOT in target.parents, link
        if anchor and f"#{anchor}" not in MADE_BY_MKDOCS:
            assert anchor in anchors(target), link


def test_every_page_and_recipe_is_reached() -> None:
    """A page that nothing links to is not read."""
    reached = {(page.parent / link.partition("#")[0]).resolve() for page in EVERY for link in links(page)}
    lost = [title(page) for page in [*PAGES, *RECIPES] if page not in reached and page.name not in ("README.md",)]
    assert [page for page in lost if not page.startswith("docs/api-")] == []


def test_every_page_is_in_the_navigation() -> None:
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES[1:] if f": {page.name}" not in navigation] == []
