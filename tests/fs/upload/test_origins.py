"""Which collection a folder of upload/ came from is noted in the state directory."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pytest

from keepfs.fs.upload.origins import Origins

if TYPE_CHECKING:
    from pathlib import Path


def test_the_last_note_is_found_by_path_and_uuid(tmp_path: Path) -> None:
    Origins(tmp_path).note("a/\udcff", "uuid", "first", "then")
    Origins(tmp_path).note("a/\udcff", "uuid", "second", "now")

    assert Origins(tmp_path).find("a/\udcff", "uuid") == ("second", "now")
    assert Origins(tmp_path).find("a", "uuid") is None
    assert (tmp_path / "collections.json").stat().st_mode & 0o777 == 0o600


def test_notes_of_several_threads_are_all_kept(tmp_path: Path) -> None:
    threads = [
        threading.Thread(target=Origins(tmp_path).note, args=(str(n), "uuid", str(n), ""))
        for n in range(16)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert [Origins(tmp_path).find(str(n), "uuid") for n in range(16)] == [
        (str(n), "") for n in range(16)
    ]


@pytest.mark.parametrize("content", [b"", b"[[1]]", b"{}x", b"7"])
def test_a_damaged_file_is_reported(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "collections.json").write_bytes(content)

    with pytest.raises(OSError, match="is damaged"):
        Origins(tmp_path).find("a", "uuid")
