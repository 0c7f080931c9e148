"""What an index is given: a wheel and an sdist, complete, with metadata that can be shown."""

from __future__ import annotations

import email.parser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from keepfs.cli import man
from keepfs.keep.hashing import growing

if TYPE_CHECKING:
    from email.message import Message

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent
#: What a checkout has for users and developers; the rest is made by tools.
SHIPPED = ("keepfs", "tests", "bench", "scripts", "docs", "man", "monitoring", "systemd", ".ci")
SHIPPED_FILES = (
    "ARCHITECTURE.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "LICENSE",
    "README.md",
    "SECURITY.md",
    "build_extension.py",
    "SEMANTICS.md",
    "pyproject.toml",
    ".pre-commit-config.yaml",
)
EXTENSION = "keepfs/keep/hashing/_md5.abi3.so"
URLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["urls"]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build both, the wheel from the sdist, with the backend that is installed."""
    target = tmp_path_factory.mktemp("dist")
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", target, ROOT],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return target


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    [path] = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def metadata(wheel: Path) -> Message:
    with zipfile.ZipFile(wheel) as file:
        [name] = [name for name in file.namelist() if name.endswith(".dist-info/METADATA")]
        return email.parser.BytesParser().parsebytes(file.read(name))


def test_the_sdist_has_everything_that_the_tests_need(built: Path) -> None:
    [path] = built.glob("*.tar.gz")
    with tarfile.open(path) as file:
        modes = {it.name.partition("/")[2]: it.mode for it in file.getmembers()}

    there = {
        str(it.relative_to(ROOT))
        for folder in SHIPPED
        for it in (ROOT / folder).rglob("*")
        if it.is_file() and "__pycache__" not in it.parts and it.suffix != ".so"
    }

    assert "tests/data/vectors.json" in there
    assert sorted((there | set(SHIPPED_FILES)) - set(modes)) == []
    assert [
        name for name in modes if name.startswith("scripts/") and not modes[name] & 0o100
    ] == []


def test_the_man_pages_are_those_of_the_help() -> None:
    written = {path.name: path.read_text() for path in (ROOT / "man").iterdir()}

    assert written == dict(man.pages()), "run scripts/man"


def test_the_wheel_has_the_package_its_types_units_and_man_pages_and_nothing_else(
    wheel: Path,
) -> None:
    with zipfile.ZipFile(wheel) as file:
        names = set(file.namelist())
        manuals = {
            name: file.read(name).decode()
            for name in names
            if ".data/data/share/man/man1/" in name
        }
        units = {
            name: file.read(name).decode()
            for name in names
            if ".data/data/lib/systemd/system/" in name
        }

        watching = {name: file.read(name) for name in names if ".data/data/share/keepfs/" in name}

    modules = {str(it.relative_to(ROOT)) for it in (ROOT / "keepfs").rglob("*.py")}
    types = {"keepfs/py.typed", "keepfs/keep/hashing/_md5.pyi"}
    extension = {EXTENSION} & names
    others = names - modules - types - extension - {*units, *manuals, *watching}

    assert {Path(name).name: text for name, text in units.items()} == {
        unit.name: unit.read_text() for unit in (ROOT / "systemd").iterdir()
    }
    assert {Path(name).name: text for name, text in manuals.items()} == dict(man.pages())
    assert {Path(name).name: content for name, content in watching.items()} == {
        each.name: each.read_bytes() for each in (ROOT / "monitoring").iterdir()
    }
    assert "keepfs@.service" in {Path(name).name for name in units}
    assert names >= modules | types
    assert all(".dist-info/" in name for name in others), others


def test_the_wheel_has_the_extension_for_every_python_of_this_platform(wheel: Path) -> None:
    if growing.shared_digest is None:
        pytest.skip("there is no C extension here")
    with zipfile.ZipFile(wheel) as file:
        library = file.read(EXTENSION)

    assert re.search(r"-cp311-abi3-linux_\w+[.]whl$", wheel.name)
    assert library.startswith(b"\x7fELF")


def test_a_wheel_is_built_without_a_compiler(tmp_path: Path) -> None:
    # From a copy: the extension of this tree is in use.
    for name in ("keepfs", "systemd", "man", "monitoring"):
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", "*.so")
        )
    for name in ("pyproject.toml", "build_extension.py", "README.md", "LICENSE", ".gitignore"):
        shutil.copy(ROOT / name, tmp_path)
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "build",
            "--no-isolation",
            "--wheel",
            "--outdir",
            tmp_path,
            tmp_path,
        ],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "CC": "/nonexistent/cc"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    [path] = tmp_path.glob("*.whl")
    with zipfile.ZipFile(path) as file:
        libraries = [name for name in file.namelist() if name.endswith(".so")]

    assert path.name.endswith("-py3-none-any.whl")
    assert libraries == []
    assert "no C extension: there is no /nonexistent/cc" in done.stdout + done.stderr


def test_an_index_can_show_the_metadata(built: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "twine", "check", "--strict", *sorted(built.iterdir())],
        capture_output=True,
        text=True,
        check=False,
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("PASSED") == 2


def test_every_link_of_the_readme_is_absolute_and_leads_to_a_file(metadata: Message) -> None:
    text = str(metadata.get_payload())
    links = re.findall(r"\]\(([^)\s]+)\)", text)
    of_files = f"{URLS['Source']}/blob/main/"

    ours = [link for link in links if link.startswith(URLS["Source"])]

    assert links
    assert [link for link in links if not re.match("https?://|#", link)] == []
    assert len(ours) == len(re.findall(r"\]\((?!https?://|#)", (ROOT / "README.md").read_text()))
    for link in ours:
        assert (ROOT / link.removeprefix(of_files)).is_file(), link


def test_the_metadata_names_the_licence_the_authors_and_the_addresses(metadata: Message) -> None:
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Author"] == "keepfs developers"
    assert dict(it.split(", ") for it in metadata.get_all("Project-URL", [])) == URLS
    assert all(url.startswith(URLS["Source"]) for url in URLS.values())
