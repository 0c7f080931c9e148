"""Compiles what is measured with: the block server and memfs, in C, and keepstore, in Go."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import click

_HERE = Path(__file__).parent


class BuildError(click.ClickException):
    """There is no compiler, or no libfuse3 to compile with; the bench prints the reason."""


def keepstore(directory: Path) -> Path:
    """Compile keepstore.go, unless it has been since it was changed; return the program.

    Raises:
        BuildError: It can't be compiled here, and why.
    """
    source, target = _HERE / "keepstore.go", directory / "keepstore"
    if _is_current(target, source):
        return target
    reason = why_no_go()
    if reason is not None:
        raise BuildError(reason)
    directory.mkdir(parents=True, exist_ok=True)
    _compile("go", "build", "-o", str(target.resolve()), str(source))
    return target


def program(name: str, directory: Path) -> Path:
    """Compile `name`.c, unless it has been since it was changed; return the program.

    Raises:
        BuildError: It can't be compiled here, and why.
    """
    source, target = _HERE / f"{name}.c", directory / name
    if _is_current(target, source, *_HERE.glob("*.h")):
        return target
    directory.mkdir(parents=True, exist_ok=True)
    reason = why_not()
    if reason is not None:
        raise BuildError(reason)
    flags = (
        ["-pthread"] if name == "server" else _output("pkg-config", "--cflags", "--libs", "fuse3")
    )
    _compile("gcc", "-O2", "-Wall", "-Wextra", "-o", str(target), str(source), *flags)
    return target


def why_no_go() -> str | None:
    """Say why nothing in Go can be compiled here, or None where it can."""
    if shutil.which("go") is None:
        return "there is no go; scripts/setup installs it"
    return None


def why_not() -> str | None:
    """Say why nothing can be compiled here, or None where it can."""
    for tool in ("gcc", "pkg-config"):
        if shutil.which(tool) is None:
            return f"there is no {tool}; scripts/setup installs it"
    done = subprocess.run(["pkg-config", "--exists", "fuse3"], check=False)
    return "there is no libfuse3-dev; scripts/setup installs it" if done.returncode else None


def _is_current(target: Path, *sources: Path) -> bool:
    changed = max(each.stat().st_mtime for each in sources)
    return target.exists() and target.stat().st_mtime > changed


def _compile(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(done.stderr)


def _output(*command: str) -> list[str]:
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.split()
