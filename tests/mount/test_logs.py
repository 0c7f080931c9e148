"""Where keepfs's own words go."""

from __future__ import annotations

import logging
import os
import socket
import stat
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from keepfs.mount import logs

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LIBRARIES = ("urllib3", "pyfuse3")


@pytest.fixture(autouse=True)
def _logging_is_put_back() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in set(root.handlers) - set(handlers):
        handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)
    for library in LIBRARIES:
        logging.getLogger(library).setLevel(logging.NOTSET)


def test_without_a_file_the_log_is_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logs.start("INFO", None)

    logging.getLogger("keepfs.test").info("words")
    logging.getLogger("keepfs.test").debug("details")

    said = capsys.readouterr().err
    assert said.endswith(" INFO keepfs.test: words\n")
    assert "details" not in said


def test_a_log_file_is_created_in_a_private_directory(tmp_path: Path) -> None:
    path = tmp_path / "state" / "log" / "mount.log"
    logs.start("DEBUG", path)

    logging.getLogger("keepfs.test").debug("details of \udcff and ä")

    assert path.read_text(encoding="utf-8").endswith(" DEBUG keepfs.test: details of ? and ä\n")
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_log_file_is_rotated(tmp_path: Path) -> None:
    path = tmp_path / "mount.log"
    logs.start("INFO", path)
    for _ in range(11):
        logging.getLogger("keepfs.test").info("x" * 2**20)

    assert (tmp_path / "mount.log.1").stat().st_size <= 10 * 2**20
    assert path.stat().st_size < 3 * 2**20


@pytest.mark.parametrize(
    ("level", "least"),
    [("DEBUG", logging.WARNING), ("INFO", logging.WARNING), ("ERROR", logging.ERROR)],
)
def test_libraries_log_warnings_only(level: str, least: int) -> None:
    logs.start(level, None)

    for library in LIBRARIES:
        assert logging.getLogger(library).level == least


def test_starting_again_replaces_the_handlers(tmp_path: Path) -> None:
    first, second = tmp_path / "first.log", tmp_path / "second.log"
    logs.start("INFO", first)
    logs.start("INFO", second)

    logging.getLogger("keepfs.test").info("words")

    assert first.read_text() == ""
    assert "words" in second.read_text()


def test_a_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()

    with pytest.raises(OSError, match="file"):
        logs.start("INFO", tmp_path / "file" / "mount.log")


_LOGS_TO_STANDARD_ERROR = """
import logging
from keepfs.mount import logs
logs.start("DEBUG", None)
log = logging.getLogger("keepfs.test")
for level in (50, 40, 30, 20, 10):
    log.log(level, "at %d", level)
log.info("two\\nlines")
"""


def _logged_to_a_socket(journal_stream: str | None) -> str:
    """Return what a process logs whose standard error is a socket, as under systemd.

    Without `journal_stream`, $JOURNAL_STREAM names that socket.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs:
        status = os.fstat(theirs.fileno())
        stream = journal_stream or f"{status.st_dev}:{status.st_ino}"
        subprocess.run(
            [sys.executable, "-c", _LOGS_TO_STANDARD_ERROR],
            stderr=theirs.fileno(),
            check=True,
            env={**os.environ, "JOURNAL_STREAM": stream},
        )
        theirs.close()
        with ours.makefile() as file:
            return file.read()


def test_the_journal_gets_priorities_on_each_line_and_no_times() -> None:
    assert _logged_to_a_socket(None).splitlines() == [
        "<2>keepfs.test: at 50",
        "<3>keepfs.test: at 40",
        "<4>keepfs.test: at 30",
        "<6>keepfs.test: at 20",
        "<7>keepfs.test: at 10",
        "<6>keepfs.test: two",
        "<6>lines",
    ]


@pytest.mark.parametrize("stream", ["1:1", "nonsense"])
def test_other_streams_get_times_and_no_priorities(stream: str) -> None:
    said = _logged_to_a_socket(stream)

    assert " CRITICAL keepfs.test: at 50\n" in said
    assert "<" not in said
