"""The documents as a site: it builds without a warning, and its generated parts are current."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests import reference_documents

ROOT = Path(__file__).parent.parent


def build(source: Path, target: Path) -> subprocess.CompletedProcess[str]:
    """Build the site as scripts/docs does."""
    return subprocess.run(
        [
            *(sys.executable, "-m", "sphinx", "-q", "-b", "html", "-W", "--keep-going"),
            *("-c", source / "docs", "-d", target / "cache", source, target / "site"),
        ],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """The pages of this checkout, to be changed."""
    made = tmp_path / "tree"
    made.mkdir()
    for path in (*ROOT.glob("*.md"), ROOT / "docs"):
        (shutil.copytree if path.is_dir() else shutil.copy)(path, made / path.name)
    (made / "keepfs").symlink_to(ROOT / "keepfs")
    for name in {*re.findall(r"\]\(\.\./([\w-]+)/", _pages())} - {"keepfs", "docs"}:
        (made / name).symlink_to(ROOT / name)
    return made


def _pages() -> str:
    return "\n".join(path.read_text() for path in (ROOT / "docs").glob("*.md"))


@pytest.mark.slow
def test_the_site_builds_without_a_warning_and_has_every_page(tree: Path, tmp_path: Path) -> None:
    done = build(tree, tmp_path)

    assert done.returncode == 0, done.stderr
    site = tmp_path / "site"
    for page in (*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")):
        assert (site / page.relative_to(ROOT).with_suffix(".html")).is_file(), page
    index = (site / "docs" / "index.html").read_text()
    assert 'href="tutorial-local.html"' in index
    assert "get_view" in (site / "docs" / "api.html").read_text()


@pytest.mark.slow
def test_a_link_to_nothing_is_an_error(tree: Path, tmp_path: Path) -> None:
    with (tree / "docs" / "xattrs.md").open("a") as file:
        file.write("\n[page](nothing.md) [part](files.md#nothing) [file](../nothing.txt)\n")

    done = build(tree, tmp_path)

    assert done.returncode != 0
    assert len(re.findall("nothing", done.stderr)) >= 3


@pytest.mark.parametrize("name", sorted(reference_documents.PAGES))
def test_the_generated_part_of_a_page_is_current(name: str) -> None:
    text = (ROOT / "docs" / name).read_text()

    assert text == reference_documents.page(name), "run scripts/reference"


def test_the_reference_has_every_attribute_and_signal() -> None:
    code = "\n".join(path.read_text() for path in (ROOT / "keepfs").rglob("*.py"))
    attributes = set(re.findall(r'"user\.keep\.(\w+)"', code))
    signals = re.findall(r"signal\.(SIG\w+)", (ROOT / "keepfs/mount/signals.py").read_text())

    said = (ROOT / "docs" / "xattrs.md").read_text()
    assert len(attributes) > 8
    assert {name for name in attributes if f".{name}`" not in said} == set()
    described = (ROOT / "docs" / "signals.md").read_text()
    assert {name for name in signals if name not in described} == set()
