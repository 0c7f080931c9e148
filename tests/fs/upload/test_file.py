"""A file of upload/: when it is stored, what a failure leaves, and what others see meanwhile."""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING, Any

import pytest
import trio
import trio.testing

from keepfs.fs.bridge import open_blocks
from keepfs.fs.errnos import RefusedError
from keepfs.fs.nodes import Changes, Metadata, file_mode
from keepfs.fs.upload.file import MAX_FILE_SIZE, UploadFile
from keepfs.fs.upload.slot import Slot
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import NOTHING, StoredBytes
from keepfs.fs.upload.storing import State
from keepfs.keep import Cause, KeepLocator, KeepWriteError
from tests.fakes.store import DictStore, FailingStore, GatedStore

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from typing_extensions import Buffer

    from keepfs.keep import Receipt

BLOCK = 8
FULL = KeepWriteError("the disk is full", cause=Cause.FULL)


class Bench:
    """A store that can fail and be slow, and files over it that are open once.

    Attributes:
        memory: The store itself.
        failing: In front of it.
        gated: In front of that.
        staging: The files' memory, with blocks of `BLOCK` bytes.
        receipts: Of every block of a stored version.
    """

    def __init__(self) -> None:
        self.memory = DictStore()
        self.failing = FailingStore(self.memory)
        self.gated = GatedStore(self.failing)
        self.receipts: list[Receipt] = []
        self.staging: Staging

    def file(self) -> UploadFile:
        """Make a file and open it."""
        file = UploadFile(
            Metadata(file_mode(0o644), 7, 8), self.staging, lambda it, _: self.receipts.append(it)
        )
        file.opened()
        return file

    def content_of(self, file: UploadFile) -> bytes:
        """Return what the store has under the file's locator."""
        locators = file.xattrs()["user.keep.locator"].split(",")
        return b"".join(self.memory.blocks[KeepLocator(each).md5sum] for each in locators)

    def puts(self) -> int:
        """Count the puts that reached the store."""
        return sum(call == "put_block" for call, _ in self.memory.calls)


@contextlib.asynccontextmanager
async def open_bench(maxsize: int = 100 * BLOCK) -> AsyncIterator[Bench]:
    """Make a bench, and end its threads."""
    bench = Bench()
    async with open_blocks(bench.gated, copies=3) as blocks:
        bench.staging = Staging(blocks, maxsize, BLOCK)
        yield bench


async def test_an_empty_file_is_stored_as_the_empty_block() -> None:
    async with open_bench() as bench:
        file = bench.file()

        await file.store()

        assert file.xattrs() == {
            "user.keep.state": "stored",
            "user.keep.locator": "d41d8cd98f00b204e9800998ecf8427e+0",
            "user.keep.copies": "3",
            "user.keep.services": "dict:",
        }


async def test_a_new_file_is_dirty_and_has_no_locator() -> None:
    async with open_bench() as bench:
        file = bench.file()

        assert file.xattrs() == {"user.keep.state": "dirty"}
        assert file.has_untried_changes
        assert file.has_unstored_changes


async def test_a_file_is_cut_into_blocks_and_each_version_is_reported() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"0123456789abcdefXY")

        await file.store()

        assert [receipt.locator.size for receipt in bench.receipts] == [8, 8, 2]
        assert bench.content_of(file) == b"0123456789abcdefXY"
        assert bench.staging.currsize == 0


async def test_storing_a_stored_file_makes_no_request() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abc")
        await file.store()
        puts = bench.puts()

        await file.store()
        await file.store()

        assert bench.puts() == puts
        assert len(bench.receipts) == 1
        assert not file.has_untried_changes


async def test_writes_after_a_store_are_stored_by_the_next() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abc")
        await file.store()
        await file.write(3, b"def")
        state = file.state

        await file.store()

        assert state is State.DIRTY
        assert bench.content_of(file) == b"abcdef"


async def test_a_whole_block_is_sent_while_the_file_is_being_written() -> None:
    async with open_bench() as bench:
        bench.gated.shut("put_block")
        file = bench.file()

        await file.write(0, b"01234567")
        await file.write(8, b"8")
        await trio.testing.wait_all_tasks_blocked()
        bench.gated.wait_for_callers("put_block")
        state = file.state
        bench.gated.open("put_block")

        assert state is State.STORING


async def test_a_failed_store_keeps_the_bytes_and_has_the_reason() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"precious")
        bench.failing.fail_always("put_block", FULL)

        with pytest.raises(KeepWriteError, match="the disk is full"):
            await file.store()

        assert file.xattrs() == {
            "user.keep.state": "failed",
            "user.keep.error": "the disk is full",
        }
        assert not file.has_untried_changes
        assert file.has_unstored_changes
        assert bytes(await file.read(0, 100)) == b"precious"


async def test_a_failed_store_is_tried_again_by_the_next() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"precious and long")
        bench.failing.fail_always("put_block", FULL)
        with pytest.raises(KeepWriteError):
            await file.store()
        bench.failing.heal()

        await file.store()

        assert file.state is State.STORED
        assert bench.content_of(file) == b"precious and long"


async def test_a_retry_does_not_store_a_half_written_version() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        file, other = bench.file(), bench.file()
        bench.failing.fail_always("put_block", FULL)
        for each in (file, other):
            await each.write(0, b"an old version")
            with pytest.raises(KeepWriteError):
                await each.store()
        await file.truncate(0)
        await file.write(0, b"half of")
        bench.failing.heal()

        bench.staging.failed.retry_now()
        nursery.start_soon(bench.staging.failed.retry)
        while other.has_unstored_changes:
            await trio.testing.wait_all_tasks_blocked()
        untouched = file.has_untried_changes
        await file.write(7, b" a new one")
        await file.store()
        nursery.cancel_scope.cancel()

        assert untouched
        assert b"half of" not in bench.memory.blocks.values()
        assert bench.content_of(file) == b"half of a new one"


async def test_writing_is_possible_after_a_failure() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abc")
        bench.failing.fail_next("put_block", FULL)
        with pytest.raises(KeepWriteError):
            await file.store()

        await file.write(3, b"def")
        await file.store()

        assert bench.content_of(file) == b"abcdef"


async def test_a_store_that_fails_unexpectedly_loses_nothing_either() -> None:
    class BuggyStore(DictStore):
        """A store with a bug."""

        is_buggy = True

        def put_block(
            self, block: Buffer, copies: int, *, locator: KeepLocator | None = None
        ) -> Receipt:
            if self.is_buggy:
                raise ZeroDivisionError("a bug")
            return super().put_block(block, copies, locator=locator)

    store = BuggyStore()
    async with open_blocks(store, copies=1) as blocks:
        file = UploadFile(Metadata(file_mode(0), 0, 0), Staging(blocks), lambda *_: None)
        await file.write(0, b"abc")
        with pytest.raises(ZeroDivisionError):
            await file.store()
        state = file.state
        store.is_buggy = False

        await file.store()

        assert state is State.FAILED
        assert file.state is State.STORED


async def test_a_cancelled_store_continues_and_the_file_is_stored() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.write(0, b"abc")
        with trio.CancelScope() as scope:
            nursery.start_soon(trio.testing.wait_all_tasks_blocked)
            scope.cancel()
            await file.store()
        needed = file.has_untried_changes

        nursery.start_soon(file.store)  # as release does
        await trio.testing.wait_all_tasks_blocked()
        bench.gated.open("put_block")

    assert needed
    assert file.state is State.STORED
    assert bench.puts() == 1


async def test_a_store_waits_for_bytes_written_before_not_for_later_ones() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.write(0, b"before")
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.write(0, b"after!")
        bench.gated.open("put_block")

    assert set(bench.memory.blocks.values()) == {b"before"}
    assert file.state is State.DIRTY
    assert bytes(await file.read(0, 10)) == b"after!"
    # What was written before is recorded: a crash now must not lose it.
    assert [receipt.locator for receipt in bench.receipts] == [KeepLocator.of_block(b"before")]


async def test_two_writers_of_one_file_both_count() -> None:
    async with open_bench(maxsize=BLOCK) as bench:
        file = bench.file()
        async with trio.open_nursery() as nursery:
            for begin in range(0, 10 * BLOCK, BLOCK // 2):
                nursery.start_soon(file.write, begin, bytes([begin]) * (BLOCK // 2))

        await file.store()

        expected = b"".join(bytes([i]) * (BLOCK // 2) for i in range(0, 10 * BLOCK, BLOCK // 2))
        assert bench.content_of(file) == expected


async def test_two_stores_at_once_send_each_block_once() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"0123456789")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(file.store)
            nursery.start_soon(file.store)

        assert bench.puts() == 2
        assert len(bench.receipts) == 2


async def test_truncating_while_blocks_are_sent_leaves_the_shorter_file() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.write(0, b"0123456789abcdef")
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.truncate(3)
        bench.gated.open("put_block")
        await file.store()

        assert bench.content_of(file) == b"012"
        assert file.state is State.STORED


async def test_blocks_of_a_file_cut_meanwhile_are_no_version() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.write(0, b"0123456789abcdef")
        await trio.testing.wait_all_tasks_blocked()
        await file.write(8, b"changed")  # while the second block is sent, so it is sent again
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.truncate(8)
        await file.write(8, b"new")
        bench.gated.open("put_block")
        await file.store()

        assert bench.content_of(file) == b"01234567new"
        assert [receipt.locator.size for receipt in bench.receipts] == [8, 3]


async def test_equal_holes_are_sent_once() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.truncate(5 * BLOCK + 3)

        await file.store()

        assert bench.puts() == 2
        assert bench.content_of(file) == bytes(5 * BLOCK + 3)


async def test_a_sparse_file_of_the_most_blocks_has_few_slots(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Each slot, and the task that stores it, takes time in which nobody else is answered.
    made: list[Slot] = []
    make = Slot.__init__

    def noted(slot: Slot, *args: Any) -> None:  # noqa: ANN401 - as it has them
        made.append(slot)
        make(slot, *args)

    monkeypatch.setattr(Slot, "__init__", noted)
    size = 65536 * BLOCK
    async with open_bench() as bench:
        file = bench.file()
        await file.write(size - 3, b"end")
        await file.store()
        assert bench.puts() == 2
        await file.write(size // 2, b"mid")
        await file.store()
        assert bench.puts() == 3  # the holes are stored already

        assert await file.read(size // 2 - 2, 6) == b"\0\0mid\0"
        assert await file.read(size - 4, 9) == b"\0end"
        assert len(bench.content_of(file)) == size
        pieces = file.pieces()
        assert (len(pieces), sum(piece.length for piece in pieces)) == (65536, size)
        assert len(bench.receipts) <= 6  # told of each block, not of each hole
    assert len(made) < 10


async def test_bytes_cut_during_a_store_are_zeros_after_the_file_grows() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        file = bench.file()
        await file.write(0, b"a" * BLOCK + b"b" * BLOCK + b"c" * BLOCK)
        bench.gated.shut("put_block")
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.truncate(2)
        await file.truncate(3 * BLOCK)
        bench.gated.open("put_block")
        await file.store()

        expected = b"aa".ljust(3 * BLOCK, b"\0")
        assert await file.read(0, 99) == expected
        assert bench.content_of(file) == expected


async def test_a_stored_file_that_is_cut_and_grows_has_zeros_there() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"a" * BLOCK + b"b" * BLOCK + b"cc")
        await file.store()

        for size in (4 * BLOCK, BLOCK, 2 * BLOCK + 1):
            await file.truncate(size)
        await file.store()

        assert bench.content_of(file) == (b"a" * BLOCK).ljust(2 * BLOCK + 1, b"\0")


async def test_a_hole_written_during_the_shared_store_keeps_its_bytes() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.truncate(3 * BLOCK)
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.write(0, b"a" * BLOCK)
        await file.write(BLOCK, b"b" * BLOCK)
        bench.gated.open("put_block")
        await file.store()

        assert bench.content_of(file) == b"a" * BLOCK + b"b" * BLOCK + bytes(BLOCK)


async def test_a_hole_cut_during_the_shared_store_keeps_its_length() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.truncate(2 * BLOCK)
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        await file.truncate(BLOCK + 3)
        bench.gated.open("put_block")
        await file.store()

        assert bench.content_of(file) == bytes(BLOCK + 3)


async def test_holes_that_cannot_be_stored_are_a_failure_too() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.truncate(2 * BLOCK)
        bench.failing.fail_always("put_block", FULL)

        with pytest.raises(KeepWriteError):
            await file.store()

        assert file.state is State.FAILED


async def test_a_sparse_file_is_stored_within_the_bound() -> None:
    async with open_bench(maxsize=10 * BLOCK) as bench:
        file = bench.file()
        for index in range(20):
            await file.write(index * BLOCK, b"x")
            assert bench.staging.currsize <= 10 * BLOCK

        await file.store()

        assert bench.content_of(file) == b"x".ljust(BLOCK, b"\0") * 19 + b"x"


async def test_a_write_needs_no_wait_within_a_slot_in_memory_that_has_room() -> None:
    async with open_bench(2 * BLOCK) as bench:
        file, other = bench.file(), bench.file()
        assert file.write_nowait(2, b"cd")
        assert file.write_nowait(0, b"ab")
        assert not file.write_nowait(BLOCK - 1, b"two slots")
        assert not file.write_nowait(MAX_FILE_SIZE, b"beyond")
        assert not file.write_nowait(0, b"")
        assert file.size == 4
        assert await file.read(0, 9) == b"abcd"
        bench.gated.shut("put_block")
        assert file.write_nowait(4, b"efgh")  # the slot is full, and sent
        assert not file.write_nowait(0, b"A")  # it is being sent
        assert other.write_nowait(0, b"12345678")
        assert not file.write_nowait(BLOCK, b"i")  # no room
        bench.gated.open("put_block")
        await file.store()
        assert not file.write_nowait(0, b"A")  # the stored block must be read
        await file.write(0, b"A")
        await file.store()

        assert bench.content_of(file) == b"Abcdefgh"


async def test_a_write_without_wait_does_not_overtake_one_that_waits() -> None:
    async with open_bench(BLOCK) as bench, trio.open_nursery() as nursery:
        full, file = bench.file(), bench.file()
        bench.gated.shut("put_block")
        await full.write(0, b"12345678")
        nursery.start_soon(file.write, 0, b"first")  # waits for room
        await trio.testing.wait_all_tasks_blocked()

        assert not file.write_nowait(0, b"last")
        bench.gated.open("put_block")


async def test_a_write_that_fails_for_want_of_room_leaves_size_and_state() -> None:
    async with open_bench(maxsize=BLOCK) as bench:
        file = bench.file()
        await file.write(0, b"abc")
        await file.store()
        other = bench.file()
        await other.write(0, b"1234")
        bench.failing.fail_always("put_block", FULL)

        with pytest.raises(KeepWriteError):
            await file.write(3 * BLOCK, b"12345678")

        assert file.size == 3
        assert file.state is State.STORED


async def test_a_file_that_grows_after_a_failed_write_is_stored_as_a_whole() -> None:
    async with open_bench(maxsize=BLOCK) as bench:
        file = bench.file()
        await file.write(0, b"1234567")
        bench.failing.fail_always("put_block", FULL)
        with pytest.raises(KeepWriteError):
            await file.write(BLOCK, b"12345678")
        bench.failing.heal()

        await file.truncate(2 * BLOCK + 1)
        await file.store()

        assert file.state is State.STORED
        assert bench.content_of(file) == b"1234567" + bytes(BLOCK + 2)


async def test_a_file_has_a_largest_size() -> None:
    async with open_bench() as bench:
        file = bench.file()

        with pytest.raises(RefusedError) as writing:
            await file.write(MAX_FILE_SIZE, b"x")
        with pytest.raises(RefusedError) as truncating:
            await file.truncate(MAX_FILE_SIZE + 1)

        assert writing.value.errno == truncating.value.errno == errno.EFBIG
        assert file.size == 0


async def test_truncating_to_the_same_size_changes_nothing_but_times() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abc")
        await file.store()
        file.metadata.mtime_ns = 5

        await file.truncate(3)

        assert file.state is State.STORED
        assert file.metadata.mtime_ns > 5


async def test_truncating_by_name_stores_since_no_close_follows() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abcdef")
        await file.change(Changes(size=4))
        state_while_open = file.state
        await file.store()
        file.closed()

        await file.change(Changes(size=2, mtime_ns=3))

        assert state_while_open is State.DIRTY
        assert bench.content_of(file) == b"ab"
        assert file.metadata.mtime_ns == 3


async def test_a_removed_file_is_usable_until_it_is_closed_and_not_stored() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"abc")
        file.removed()

        await file.write(3, b"def")
        await file.store()
        content = bytes(await file.read(0, 10))
        file.closed()

        assert content == b"abcdef"
        assert bench.puts() == 0
        assert bench.staging.currsize == 0
        assert not file.has_untried_changes
        assert not file.has_unstored_changes


async def test_a_file_removed_during_a_store_is_not_reported() -> None:
    async with open_bench() as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        file = bench.file()
        await file.write(0, b"abc")
        nursery.start_soon(file.store)
        await trio.testing.wait_all_tasks_blocked()

        file.removed()
        file.closed()
        bench.gated.open("put_block")

    assert bench.receipts == []
    assert bench.staging.currsize == 0


async def test_bytes_staged_for_a_removed_file_are_released() -> None:
    async with open_bench(maxsize=4) as bench, trio.open_nursery() as nursery:
        bench.gated.shut("put_block")
        other, file = bench.file(), bench.file()
        await other.write(0, b"1234")
        nursery.start_soon(file.write, 0, b"5678")
        await trio.testing.wait_all_tasks_blocked()

        file.removed()
        file.closed()
        bench.gated.open("put_block")

    assert bench.staging.currsize == 0


async def test_reads_stop_at_the_end_and_holes_are_zeros() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(3 * BLOCK - 1, b"xyz")

        assert bytes(await file.read(0, 100)) == bytes(3 * BLOCK - 1) + b"xyz"
        assert bytes(await file.read(3 * BLOCK + 2, 5)) == b""
        assert bytes(await file.read(BLOCK, 2)) == b"\0\0"


async def test_bytes_are_read_back_from_the_store() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"0123456789")
        await file.store()

        assert bytes(await file.read(6, 4)) == b"6789"
        assert bench.memory.calls[-1][0] == "get_block"


async def test_mode_times_and_group_change_but_not_the_owner() -> None:
    async with open_bench() as bench:
        file = bench.file()

        await file.change(Changes(mode=0o100600, uid=7, gid=8, atime_ns=1, mtime_ns=2))
        with pytest.raises(RefusedError) as user:
            await file.change(Changes(uid=9))
        await file.change(Changes(gid=9))

        assert file.metadata.mode == file_mode(0o600)
        assert (file.metadata.uid, file.metadata.gid) == (7, 9)
        assert (file.metadata.atime_ns, file.metadata.mtime_ns) == (1, 2)
        assert user.value.errno == errno.EPERM


async def test_a_file_may_be_opened_with_all_flags() -> None:
    async with open_bench() as bench:
        file = bench.file()

        for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_APPEND):
            file.check_open(flags)


async def test_a_removed_file_is_usable_until_its_last_opening_is_closed() -> None:
    async with open_bench() as bench:
        file = bench.file()
        file.opened()
        await file.write(0, b"abc")
        file.removed()

        file.closed()
        content = bytes(await file.read(0, 10))
        file.closed()

        assert content == b"abc"
        assert bench.staging.currsize == 0


async def test_a_removed_file_is_not_retried() -> None:
    async with open_bench() as bench:
        bench.failing.fail_next("put_block", FULL)
        file = bench.file()
        await file.write(0, b"abc")
        with pytest.raises(KeepWriteError):
            await file.store()
        assert bench.staging.failed.files() == [file]

        file.removed()

        assert bench.staging.failed.files() == []


async def test_a_file_may_have_the_largest_size() -> None:
    async with open_bench() as bench:
        file = bench.file()

        await file.truncate(MAX_FILE_SIZE)

        assert bytes(await file.read(MAX_FILE_SIZE - 2, 9)) == bytes(2)


async def test_the_pieces_of_a_file_are_blocks_holes_and_staged_bytes() -> None:
    async with open_bench() as bench:
        file = bench.file()
        await file.write(0, b"01234567")
        await file.store()
        await file.write(2 * BLOCK, b"abc")

        pieces = file.pieces()

        assert [piece.length for piece in pieces] == [BLOCK, BLOCK, 3]
        assert [piece.stored for piece in pieces] == [
            StoredBytes.of_blocks(bench.receipts),
            NOTHING,
            NOTHING,
        ]
        assert pieces[1].staged is None
        assert pieces[2].staged is not None
        assert bytes(pieces[2].staged) == b"abc"
