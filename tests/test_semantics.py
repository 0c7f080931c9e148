"""Every statement of SEMANTICS.md names a test that there is, and every test of it is named."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

TESTS = Path(__file__).parent
TEXT = (TESTS.parent / "SEMANTICS.md").read_text()
_REFERENCE = re.compile(r"\[([a-z_/]+)::([a-z0-9_]+)\]")


def names_in(path: Path) -> set[str]:
    """Name a file's tests, as references do."""
    return {
        node.name.removeprefix("test_")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and node.name.startswith("test_")
    }


def statements() -> list[str]:
    """Return the paragraphs, list items and rows of all sections."""
    _, *sections = re.split(r"^## .*\n", TEXT, flags=re.MULTILINE)
    parts = re.split(r"\n\s*\n|\n(?=- |\|)", "\n".join(sections))
    no_statement = ("| errno", "| rank", "|---")  # a table's head
    return [it.strip() for it in parts if it.strip() and not it.startswith(no_statement)]


def file_of(reference: str) -> Path:
    """Find the file that the first half of a reference names."""
    folder, _, name = (reference if "/" in reference else f"mounted/{reference}").rpartition("/")
    return TESTS / folder / f"test_{name}.py"


def test_every_statement_names_a_test() -> None:
    assert len(statements()) > 50
    assert [it for it in statements() if not it.endswith("]") and not it.endswith("] |")] == []
    assert [it for it in statements() if not _REFERENCE.search(it)] == []


@pytest.mark.slow
def test_every_test_that_is_named_is_there() -> None:
    named = set(_REFERENCE.findall(TEXT))

    missing = [
        f"{file}::{test}" for file, test in sorted(named) if test not in names_in(file_of(file))
    ]

    assert missing == []


def test_every_test_of_the_semantics_is_named() -> None:
    named = set(_REFERENCE.findall(TEXT))

    unnamed = [
        f"{name}::{test}"
        for path in sorted((TESTS / "mounted").glob("test_semantics*.py"))
        for test in sorted(names_in(path))
        if ((name := path.stem.removeprefix("test_")), test) not in named
    ]

    assert unnamed == []
