"""Links between the pages, the notebooks and their headings lead somewhere."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("notebooks/*.ipynb")])
LINK = re.compile(r"\[[^\]]*\]\((?!https?:)(?P<target>[^)\s]+)\)")


def prose(path: Path) -> str:
    """Return a page without its code, a notebook's markdown cells."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        text = "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "markdown")
    return re.sub(r"```.*?```|`[^`\n]*`", "", text, flags=re.DOTALL)


def anchors(path: Path) -> set[str]:
    """Return the names by which GitHub knows a page's headings."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_every_link_of_a_page_leads_somewhere(page: Path) -> None:
    for link in LINK.finditer(prose(page)):
        file, _, anchor = link["target"].partition("#")
        target = (page.parent / file).resolve() if file else page
        assert target.exists(), link[0]
        assert not anchor or anchor in anchors(target), link[0]


def test_links_are_found() -> None:
    readme = LINK.findall(prose(ROOT / "README.md"))
    assert "docs/tutorial.md" in readme
    assert "docs/images/panel.gif" in readme
