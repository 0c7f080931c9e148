"""New files: complete or not there, with and without O_TMPFILE, also after SIGKILL."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import textwrap
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.keep.caching.disk.new_files import NewFiles, opened_directory

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

open_file = os.open


def refusing(*arguments: Any, **more: Any) -> int:  # noqa: ANN401 - those of os.open
    """Open a file as a file system without O_TMPFILE does."""
    if arguments[1] & os.O_TMPFILE == os.O_TMPFILE:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))
    return open_file(*arguments, **more)


@pytest.fixture(params=["unnamed", "renamed"])
def how(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Have O_TMPFILE or not."""
    kind: str = request.param
    if kind == "renamed":
        monkeypatch.setattr(os, "open", refusing)
    return kind


@pytest.fixture
def root(tmp_path: Path) -> Iterator[int]:
    """A directory with a folder."""
    (tmp_path / "folder").mkdir()
    with opened_directory(None, str(tmp_path)) as descriptor:
        yield descriptor


def files_in(directory: Path) -> list[str]:
    return sorted(str(it.relative_to(directory)) for it in directory.rglob("*") if it.is_file())


def test_a_file_is_added_with_its_times_and_mode(how: str, root: int, tmp_path: Path) -> None:
    new = NewFiles(root)
    with opened_directory(root, "folder") as folder:
        new.add(folder, "name", b"one", memoryview(b"two"))
        new.add(folder, "name", b"one", b"two")  # by another process, for example

    assert files_in(tmp_path) == ["folder/name"]
    added = tmp_path / "folder" / "name"
    assert added.read_bytes() == b"onetwo"
    assert (added.stat().st_mode & 0o777, added.stat().st_mtime_ns) == (0o600, 0)
    assert (tmp_path / "tmp").exists() == (how == "renamed")


@pytest.mark.usefixtures("how")
def test_a_write_that_fails_leaves_nothing(
    root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with opened_directory(root, "folder") as folder, monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OSError, match="No space"):
            NewFiles(root).add(folder, "name", b"one")

    assert files_in(tmp_path) == []


def test_a_killed_process_leaves_nothing(root: int, tmp_path: Path) -> None:
    del root
    program = """
        import os, signal, sys
        from keepfs.keep.caching.disk.new_files import NewFiles, opened_directory

        write = os.write
        def killed(file, content):
            write(file, bytes(content)[:1000])
            os.kill(os.getpid(), signal.SIGKILL)
        os.write = killed
        with opened_directory(None, sys.argv[1]) as root, opened_directory(root, "folder") as it:
            NewFiles(root).add(it, "name", bytes(100_000))
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program), tmp_path], check=False, timeout=60
    )

    assert done.returncode == -signal.SIGKILL
    assert files_in(tmp_path) == []


def test_without_proc_files_are_renamed(
    root: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> None:
        raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))

    monkeypatch.setattr(os, "link", missing)
    with opened_directory(root, "folder") as folder:
        NewFiles(root).add(folder, "name", b"one")

    assert files_in(tmp_path) == ["folder/name"]
