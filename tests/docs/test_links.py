"""Links between the pages, also those outside the site: to files that are there, and to their headings."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def prose(path):
    return re.sub(r"^```.*?^```", "", path.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(path):
    """The anchors of a page's headings, as the forges make them."""
    headings = re.findall(r"^#+ (.+)$", prose(path), re.MULTILINE)
    plain = [re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading) for heading in headings]
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in plain}


def broken(page):
    for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            yield link


def test_every_link_of_every_page_leads_somewhere():
    told = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.md"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    pages = [ROOT / name for name in told.stdout.split()]
    if not pages:  # no checkout
        pages = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "deploy").rglob("*.md")]
    assert {str(page.relative_to(ROOT)): found for page in pages if (found := list(broken(page)))} == {}


@pytest.mark.parametrize("link", ["nowhere.md", "page.md#no-such-heading", "#another"])
def test_a_link_that_leads_nowhere_is_noticed(link, tmp_path):
    page = tmp_path / "page.md"
    page.write_text(f"# A `heading`, with more\n\n[this](#a-heading-with-more) and [that]({link})\n")
    assert list(broken(page)) == [link]
