"""The shape of the project: what ARCHITECTURE.md and docs/modules.md say is true."""

from __future__ import annotations

import ast
import collections
import graphlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
MODULES = sorted((ROOT / "keepfs").rglob("*.py"))
MOST_LINES = 460


def dotted(path: Path) -> str:
    """Name a module as `import` does."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def first_line(path: Path) -> str:
    """Return the first line of a module's docstring."""
    return (ast.get_docstring(ast.parse(path.read_text())) or "").split("\n")[0]


def imports(path: Path) -> set[str]:
    """Collect every module that a file's import statements name, typing-only ones included."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
    return found


def test_no_import_cycles() -> None:
    ours = {dotted(path) for path in MODULES}
    # `from keepfs.cli import x` names the package as well, whose face imports its modules.
    graph = {
        name: {need for need in imports(path) & ours if not f"{name}.".startswith(f"{need}.")}
        for name, path in ((dotted(path), path) for path in MODULES)
    }

    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError, naming the cycle


def test_no_name_stands_for_two_things() -> None:
    places = collections.defaultdict[tuple[str, str], list[str]](list)
    for path in MODULES:
        if not path.stem.startswith("__"):
            places["module", path.stem].append(dotted(path))
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                places["class or function", node.name].append(dotted(path))

    twice = {
        name: where
        for (_, name), where in places.items()
        # A private name is used in its module only; `main` is the entry of a program.
        if len(where) > 1 and not name.startswith("_") and name != "main"
    }
    assert twice == {}


_IMPORTS_EACH_ALONE = """
import contextlib, importlib, os, sys, traceback

libraries, modules = (each.split() for each in sys.argv[1:])
for name in libraries:  # once for all, because they take most of the time
    with contextlib.suppress(ImportError):  # for types only
        importlib.import_module(name)
for name in modules:
    child = os.fork()
    if not child:
        try:
            importlib.import_module(name)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("importing", name, "failed", file=sys.stderr)
"""


@pytest.mark.slow
def test_every_module_imports_alone() -> None:
    libraries = {need.partition(".")[0] for path in MODULES for need in imports(path)} - {"keepfs"}
    alone = [dotted(path) for path in MODULES if path.name != "__main__.py"]  # runs a command

    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _IMPORTS_EACH_ALONE]
        + [" ".join(sorted(each)) for each in (libraries, alone)],
        capture_output=True,
        text=True,
        check=False,
        # Coverage would write a file for each process.
        env={name: text for name, text in os.environ.items() if not name.startswith("COVERAGE")},
    )

    assert done.stderr == ""
    assert done.returncode == 0


@pytest.mark.parametrize("path", MODULES, ids=dotted)
def test_no_module_is_longer_than_it_may_be(path: Path) -> None:
    assert len(path.read_text().splitlines()) <= MOST_LINES


def test_the_list_of_modules_is_that_of_the_docstrings() -> None:
    text = (ROOT / "docs" / "modules.md").read_text()
    rows = re.findall(r"^\| `(keepfs/[^`]+)` \| (.+?) \|$", text, re.MULTILINE)

    said = {str(path.relative_to(ROOT)): first_line(path) for path in MODULES}

    assert dict(rows) == said
