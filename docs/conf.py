"""Configuration of the site that scripts/docs builds from README.md, docs/ and the other pages.

The source directory is the root of the repository, so that a link between pages is the same
in the repository and on the site. docs/index.md is the list of pages, and of the sidebar.
"""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))

from keepfs import __version__  # noqa: E402 - of this checkout

project = "keepfs"
author = "keepfs developers"
version = release = __version__
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
include_patterns = ["*.md", "docs/*.md"]
# Directories that need not be searched for pages.
exclude_patterns = [".*", "bench", "build", "dist", "keepfs", "scripts", "systemd", "tests"]

html_theme = "furo"
html_title = f"keepfs {version}"
html_copy_source = False

# Headings down to this level are targets of links, as on the repository's pages.
myst_heading_anchors = 3
# Python sessions and shell sessions have prompts; other blocks have no language.
highlight_language = "none"

# Docstrings are in Google style; names are in single backticks.
default_role = "code"
autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_class_signature = "separated"
napoleon_use_rtype = False

_HEADING = re.compile(r"^## (.+)$", re.MULTILINE)
_PAGE = re.compile(r"\]\((\.\./)?([\w-]+)\.md\)")


def add_contents(_app: Sphinx, docname: str, source: list[str]) -> None:
    """Add hidden tables of contents to docs/index.md: a table for each of its sections.

    Pages that no section links to are in a last table, so that a new page is never missing.
    """
    if docname != root_doc:
        return
    _, *parts = _HEADING.split(source[0])
    sections = list(zip(parts[::2], parts[1::2], strict=True))
    seen: set[str] = set()
    for caption, text in sections:
        pages = [f"/{'' if up else 'docs/'}{name}" for up, name in _PAGE.findall(text)]
        source[0] += _table(caption, dict.fromkeys(page for page in pages if page not in seen))
        seen.update(pages)
    paths = (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"))
    there = sorted(f"/{path.relative_to(ROOT).with_suffix('')}" for path in paths)
    rest = [page for page in there if page not in seen and page != f"/{root_doc}"]
    if rest:
        source[0] += _table("More", dict.fromkeys(rest))


def _table(caption: str, pages: dict[str, None]) -> str:
    listed = "\n".join(pages)
    return f"\n\n```{{toctree}}\n:hidden:\n:caption: {caption}\n\n{listed}\n```\n"


def setup(app: Sphinx) -> None:
    """Connect `add_contents`."""
    app.connect("source-read", add_contents)
