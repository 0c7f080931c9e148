"""Spill records, which are checked, and the journal of unstored files, which is incremental."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING, Any

import pytest

from keepfs.fs.upload import failed_journal, unsaved
from keepfs.fs.upload.failed_journal import FailedJournal
from keepfs.fs.upload.stored import StoredBytes
from keepfs.fs.upload.unsaved import About, Piece, UnsavedError
from keepfs.keep import MAX_BLOCK_SIZE, KeepLocator, Receipt

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

FOO = Receipt(KeepLocator("acbd18db4cc2f85cedef654fccc4a4d8+3"), 2, ("http://one/",))


def spilled(state_dir: Path, path: str = "folder/file", **fields: Any) -> unsaved.UnsavedFile:  # noqa: ANN401 - of About
    return unsaved.spill(state_dir, About(path, 6, **fields), [Piece(6, staged=b"foobar")])


def change(record: unsaved.UnsavedFile, **fields: object) -> None:
    """Change what a record says of itself."""
    path = record.directory / "about.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def piece(**fields: object) -> dict[str, object]:
    return {"length": 6, "staged": 6, "sha256": "0" * 64, "receipt": None, **fields}


def test_a_record_has_what_was_spilled(tmp_path: Path) -> None:
    pieces = [Piece(MAX_BLOCK_SIZE), Piece(5, StoredBytes.of_blocks([FOO]))]
    about = About("name", MAX_BLOCK_SIZE + 5, 0o100600, 1, 2, -3, 4, "v", "e", is_partial=True)

    written = unsaved.spill(tmp_path, about, pieces)

    (found,), flaws = unsaved.find_records(tmp_path)
    assert (found, flaws) == (written, [])
    assert found.pieces() == pieces


def test_a_record_of_an_older_keepfs_is_read(tmp_path: Path) -> None:
    record = spilled(tmp_path)
    change(
        record,
        size=6 + 5,
        pieces=[
            piece(staged=None, receipt=[str(FOO.locator), FOO.copies, list(FOO.services)]),
            piece(length=5, staged=None),
        ],
    )
    (record.directory / "bytes").write_bytes(b"")

    assert record.pieces() == [Piece(6, StoredBytes.of_blocks([FOO])), Piece(5)]


def test_a_record_survives_a_power_cut_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(path if os.path.isdir(path) else f"{path} {os.fstat(descriptor).st_size}")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    record = spilled(tmp_path)

    described = (record.directory / "about.json").stat().st_size
    assert synced == [
        f"{record.directory}/bytes 6",
        f"{record.directory}/about.json.new {described}",
        str(record.directory),
        f"{tmp_path}/unsaved",
        str(tmp_path),
    ]


@pytest.mark.parametrize(
    "fields",
    [
        {"path": ".."},
        {"path": "a/../b"},
        {"path": "/etc/passwd"},
        {"path": ""},
        {"path": "a//b"},
        {"path": "a\0b"},
        {"path": "x" * 256},
        {"path": "x/" * 600_000 + "x"},
        {"path": 7},
        {"size": 10**15},
        {"size": "6"},
        {"pieces": []},
        {"pieces": [piece(length=10**15, staged=None)], "size": 10**15},
        {"pieces": [piece(length=-1)], "size": -1},
        {"pieces": [piece(length=0, staged=None), piece()]},
        {"pieces": [piece(staged=7)]},
        {"pieces": [piece(staged=True)]},
        {"pieces": [piece(sha256=None)]},
        {"pieces": [piece(receipt=["not a locator", 2, []])]},
        {"pieces": [piece(receipt=[str(FOO.locator), "2", []])]},
        {"pieces": [piece(receipt=[str(FOO.locator), 2, "http://one/"])]},
        {"pieces": [piece(receipt=["acbd18db4cc2f85cedef654fccc4a4d8+7", 2, []])]},
        {"pieces": [piece(blocks=[[str(FOO.locator), 2, [], 1, 2, 2]])]},
        {"pieces": [piece(blocks=[[str(FOO.locator), 2, [], 3]])]},
        {"pieces": [piece(blocks=5)]},
        {"pieces": 3},
        {"mode": 0o040755},
        {"mode": None},
        {"uid": -1},
        {"gid": 2**32},
        {"mtime_ns": 2**63},
        {"atime_ns": 1.5},
        {"error": None},
        {"is_partial": 1},
        {"replaces": 3},
        {"replaces": [3]},
    ],
    ids=lambda fields: str(fields)[:40],
)
def test_an_impossible_record_is_reported_and_stays(
    tmp_path: Path, fields: dict[str, Any]
) -> None:
    bad, good = spilled(tmp_path), spilled(tmp_path)
    change(bad, **fields)

    found, flaws = unsaved.find_records(tmp_path)
    unsaved.sweep(tmp_path, [])

    assert found == [good]
    assert [str(bad.directory) in flaw for flaw in flaws] == [True]
    assert (bad.directory / "bytes").exists()


def _not_json(record: unsaved.UnsavedFile) -> None:
    (record.directory / "about.json").write_text("[" * 100_000)


def _a_list(record: unsaved.UnsavedFile) -> None:
    (record.directory / "about.json").write_text("[]")


def _a_link(record: unsaved.UnsavedFile) -> None:
    (record.directory / "about.json").rename(record.directory / "other")
    (record.directory / "about.json").symlink_to("other")


def _a_pipe(record: unsaved.UnsavedFile) -> None:
    (record.directory / "about.json").unlink()
    os.mkfifo(record.directory / "about.json")


def _a_foreign_one(record: unsaved.UnsavedFile) -> None:
    os.chown(record.directory, 12345, 12345)


def _too_long(record: unsaved.UnsavedFile) -> None:
    os.truncate(record.directory / "about.json", 10**12)


@pytest.mark.parametrize(
    "damage", [_not_json, _a_list, _a_link, _a_pipe, _a_foreign_one, _too_long]
)
def test_a_damaged_or_foreign_record_is_reported_and_stays(
    tmp_path: Path, damage: Callable[[unsaved.UnsavedFile], None]
) -> None:
    if damage is _a_foreign_one and os.geteuid() != 0:
        pytest.skip("only root gives files away")
    bad, good = spilled(tmp_path), spilled(tmp_path)
    damage(bad)

    found, flaws = unsaved.find_records(tmp_path)

    assert found == [good]
    assert len(flaws) == 1


@pytest.mark.parametrize("content", [b"foobaR", b"fooba", b"foobar!", None])
def test_bytes_that_are_not_those_spilled_are_refused(
    tmp_path: Path, content: bytes | None
) -> None:
    record = spilled(tmp_path)
    if content is None:
        (record.directory / "bytes").unlink()
    else:
        (record.directory / "bytes").write_bytes(content)

    with pytest.raises(UnsavedError, match="can't be read"):
        record.pieces()


def test_a_record_of_the_version_before_is_read(tmp_path: Path) -> None:
    record = spilled(tmp_path)
    path = record.directory / "about.json"
    described = json.loads(path.read_text())
    del described["is_partial"], described["replaces"]
    path.write_text(json.dumps(described))

    assert unsaved.find_records(tmp_path) == ([record], [])


def test_a_record_that_a_later_one_replaces_is_left_out_and_swept(tmp_path: Path) -> None:
    before = spilled(tmp_path)
    after = spilled(tmp_path, replaces=(before.name,))

    found, flaws = unsaved.find_records(tmp_path)
    unsaved.sweep(tmp_path, [])

    assert (found, flaws) == ([after], [])
    assert os.listdir(tmp_path / "unsaved") == [after.name]


def test_sweeping_removes_what_is_obsolete_or_incomplete(tmp_path: Path) -> None:
    kept, obsolete, incomplete = (spilled(tmp_path) for _ in range(3))
    (incomplete.directory / "about.json").rename(incomplete.directory / "about.json.new")
    foreign = tmp_path / "unsaved" / "foreign"
    foreign.mkdir()
    (foreign / "notes").touch()

    unsaved.sweep(tmp_path, [obsolete.name])

    assert set(os.listdir(tmp_path / "unsaved")) == {kept.name, "foreign"}


def test_the_oldest_record_comes_first(tmp_path: Path) -> None:
    records = sorted((spilled(tmp_path) for _ in range(4)), key=lambda each: each.name)
    for age, record in enumerate(records):
        os.utime(record.directory, (1000 - age, 1000 - age))

    found, _ = unsaved.find_records(tmp_path)

    assert found == records[::-1]


def test_a_failed_spill_leaves_no_files(tmp_path: Path) -> None:
    class Unreadable:
        """Bytes that can't be had."""

    with pytest.raises(TypeError):
        unsaved.spill(tmp_path, About("x", 1), [Piece(1, staged=Unreadable())])  # type: ignore[arg-type] # on purpose

    assert os.listdir(tmp_path / "unsaved") == []


# --- the journal -----------------------------------------------------------------------------


def about(number: int) -> About:
    return About(f"file {number}", number, error="why")


def test_the_journal_shows_what_is_not_stored(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path)

    journal.update({1: about(1), 2: about(2)})
    journal.update({1: None, 3: about(3)})
    journal.update({3: About("renamed", 3)})

    assert failed_journal.read(tmp_path) == [about(2), About("renamed", 3)]
    journal.update({2: None, 3: None})
    assert os.listdir(tmp_path) == []
    assert failed_journal.read(tmp_path) == []


def test_recording_one_more_file_writes_one_line(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path)
    journal.update({number: about(number) for number in range(2000)})
    before = (tmp_path / "unsaved.jsonl").stat().st_size

    journal.update({5000: about(5000)})

    assert (tmp_path / "unsaved.jsonl").stat().st_size - before < 1000
    assert len(failed_journal.read(tmp_path)) == 2001


def test_the_journal_is_the_users_alone_and_never_another_file(tmp_path: Path) -> None:
    journal, path = FailedJournal(tmp_path), tmp_path / "unsaved.jsonl"
    journal.update({1: about(1)})
    mode, inode = path.stat().st_mode & 0o777, path.stat().st_ino
    journal.update({2: about(2)})
    is_appended = path.stat().st_ino == inode
    path.unlink()
    (tmp_path / "foreign").touch()
    path.symlink_to("foreign")

    with pytest.raises(OSError, match="symbolic link"):
        journal.update({3: about(3)})
    journal.update({4: about(4)})

    assert mode == 0o600
    assert is_appended
    assert (tmp_path / "foreign").read_bytes() == b""
    assert failed_journal.read(tmp_path) == [about(number) for number in (1, 2, 3, 4)]


def test_an_ended_journal_has_lost_files_and_ignores_updates(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path)
    journal.update({1: about(1)})

    journal.end([about(2)])
    journal.update({3: about(3)})

    assert failed_journal.read(tmp_path) == [about(2)]


def test_the_journal_is_rewritten_when_most_of_it_is_out_of_date(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path)
    for _ in range(2000):
        journal.update({1: about(1)})

    assert (tmp_path / "unsaved.jsonl").read_bytes().count(b"\n") < 1100
    assert failed_journal.read(tmp_path) == [about(1)]


def test_a_journal_that_was_cut_shows_the_rest(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path)
    journal.update({1: about(1)})
    path = tmp_path / "unsaved.jsonl"
    path.write_bytes(path.read_bytes() + b'\n[2, {"path": "cu')
    journal.update({3: about(3)})

    assert failed_journal.read(tmp_path) == [about(1), about(3)]


def test_updates_that_failed_are_written_with_the_next(tmp_path: Path) -> None:
    journal = FailedJournal(tmp_path / "away")
    with pytest.raises(OSError, match="No such file"):
        journal.update({1: about(1)})
    (tmp_path / "away").mkdir()

    journal.update({2: about(2)})

    assert failed_journal.read(tmp_path / "away") == [about(1), about(2)]


def test_a_journal_that_is_rewritten_survives_a_power_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)

    FailedJournal(tmp_path).update({1: About("file", 1)})

    assert synced == [str(tmp_path / "unsaved.jsonl.new"), str(tmp_path)]


def test_a_journal_that_cannot_be_read_is_no_empty_one(tmp_path: Path) -> None:
    assert failed_journal.read(tmp_path / "none") == []

    name = failed_journal._NAME  # noqa: SLF001 - a directory in its place
    (tmp_path / "state" / name).mkdir(parents=True)

    with pytest.raises(IsADirectoryError):
        failed_journal.read(tmp_path / "state")


def test_a_deeply_nested_line_of_the_journal_is_skipped(tmp_path: Path) -> None:
    (tmp_path / failed_journal._NAME).write_text("[" * 100_000)  # noqa: SLF001 - damaged

    assert failed_journal.read(tmp_path) == []
