"""Any sequence of writes, truncations and stores of a file leaves what a bytearray would hold."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from keepfs.fs.nodes import Metadata, directory_mode, file_mode
from keepfs.fs.upload.catalog import Catalog
from keepfs.fs.upload.directory import UploadDirectory
from keepfs.fs.upload.file import UploadFile
from keepfs.fs.upload.staging import Staging
from keepfs.fs.upload.stored import StoredBytes, StoredRange
from keepfs.fs.upload.storing import State
from keepfs.keep import Cause, KeepLocator, KeepWriteError, Receipt
from tests.fakes.loops import Loop, Task
from tests.fakes.store import DictStore, FailingStore, GatedStore

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

BLOCK = 8
LARGEST = 5 * BLOCK
DOWN = KeepWriteError("no service takes it", cause=Cause.UNREACHABLE)
offsets = st.integers(0, LARGEST)
contents = st.binary(min_size=1, max_size=2 * BLOCK + 3)


class UploadFileModel(RuleBasedStateMachine):
    """A file against a bytearray, with a store that is slow, or down, or both at times."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = DictStore()
        self.failing = FailingStore(self.memory)
        self.store = GatedStore(self.failing)
        self.loop = Loop(self.store)
        self.is_down = False
        self.is_shut = False
        self.under_way: list[Task[None]] = []
        self.expected = b""

    @initialize(maxsize=st.sampled_from([BLOCK // 2, 2 * BLOCK, 100 * BLOCK]))
    def make(self, maxsize: int) -> None:
        self.staging = Staging(self.loop.blocks, maxsize, BLOCK)
        self.file = UploadFile(Metadata(file_mode(0o644), 0, 0), self.staging, lambda *_: None)
        self.file.opened()

    # --- what users do -----------------------------------------------------

    @rule(offset=offsets, content=contents, gives_up=st.booleans())
    def write(self, offset: int, content: bytes, *, gives_up: bool) -> None:
        outcomes = self._after_each_piece(offset, content)
        if self._do(self._write, offset, content, gives_up=gives_up):
            self.expected = outcomes[-1]
        else:
            actual = self._content()
            assert actual in outcomes
            self.expected = actual

    async def _write(self, offset: int, content: bytes) -> None:
        """Write as a handler does."""
        if not self.file.write_nowait(offset, content):
            await self.file.write(offset, content)

    @rule(size=offsets, gives_up=st.booleans())
    def truncate(self, size: int, *, gives_up: bool) -> None:
        if self._do(self.file.truncate, size, gives_up=gives_up):
            self.expected = self.expected[:size].ljust(size, b"\0")

    @rule()
    def begin_to_store(self) -> None:
        self.under_way.append(self.loop.start(self.file.store))
        if not self.is_shut:
            self._join()

    @rule()
    def begin_to_store_and_give_up(self) -> None:
        task = self.loop.start(self.file.store)
        self.loop.call(task.scope.cancel)
        task.wait()
        if not self.is_shut:
            self._calm_down()

    @precondition(lambda self: not self.is_shut and not self.is_down)
    @rule()
    def store_all(self) -> None:
        self.loop.wait(self.file.store)

        assert self.file.state is State.STORED
        assert not self.file.has_untried_changes
        assert not self.file.has_unstored_changes
        assert self.staging.currsize == 0

    @precondition(lambda self: not self.is_shut and self.is_down)
    @rule()
    def fail_to_store(self) -> None:
        calls = self.memory.calls.copy()
        try:
            self.loop.wait(self.file.store)
        except KeepWriteError:
            assert self.file.state is State.FAILED
            assert self.file.xattrs()["user.keep.error"] == str(DOWN)
        else:  # all blocks had been stored before, perhaps by whoever needed room
            assert self.file.state is State.STORED
        assert self.memory.calls == calls

    # --- what the store does -------------------------------------------------

    @rule()
    def shut_the_gate(self) -> None:
        self.store.shut("put_block")
        self.is_shut = True

    @rule()
    def open_the_gate(self) -> None:
        self.store.open("put_block")
        self.is_shut = False
        self._join()

    @rule()
    def break_the_store(self) -> None:
        self.failing.fail_always("put_block", DOWN)
        self.is_down = True

    @rule()
    def heal_the_store(self) -> None:
        self.failing.heal()
        self.is_down = False

    @rule()
    def forget_what_was_read(self) -> None:
        self.memory.forget_cached()

    # --- what is always true ---------------------------------------------------

    @invariant()
    def the_bytes_are_as_expected(self) -> None:
        assert self.file.size == len(self.expected)
        assert self._content() == self.expected

    @rule(offset=offsets, size=offsets)
    def read(self, offset: int, size: int) -> None:
        assert (
            bytes(self.loop.wait(self.file.read, offset, size))
            == (self.expected[offset : offset + size])
        )

    @invariant()
    def what_is_said_to_be_stored_is_stored(self) -> None:
        if self.file.state is State.STORED:
            self._check_version()

    @invariant()
    def memory_is_bounded(self) -> None:
        if not self.is_shut:
            assert 0 <= self.staging.currsize <= max(self.staging.maxsize, BLOCK)

    def teardown(self) -> None:
        self.heal_the_store()
        self.open_the_gate()
        self.store_all()
        self.what_is_said_to_be_stored_is_stored()
        self.loop.call(self.file.removed)
        self.loop.call(self.file.closed)
        assert self.staging.currsize == 0
        self.loop.close()

    # --- how -------------------------------------------------------------------

    def _check_version(self) -> None:
        """Compare the stored version with what is expected."""
        locators = self.file.xattrs()["user.keep.locator"].split(",")
        blocks = [self.memory.blocks[KeepLocator(each).md5sum] for each in locators]

        assert b"".join(blocks) == self.expected
        assert all(len(block) == BLOCK for block in blocks[:-1])

    def _content(self) -> bytes:
        return bytes(self.loop.wait(self.file.read, 0, 2 * LARGEST))

    def _after_each_piece(self, offset: int, content: bytes) -> list[bytes]:
        """Return what the file may hold when a write ends early: whole blocks' parts of it."""
        found = [self.expected]
        while content:
            piece = content[: BLOCK - offset % BLOCK]
            content = content[len(piece) :]
            before = found[-1].ljust(offset, b"\0")
            found.append(before[:offset] + piece + before[offset + len(piece) :])
            offset += len(piece)
        return found

    def _do(self, work: Callable[..., Awaitable[None]], *args: object, gives_up: bool) -> bool:
        """Do something that may have to wait for the store; tell whether it succeeded.

        If it has to, it is given up, or the gate opened.
        """
        task = self.loop.start(work, *args)
        if not task.is_over():
            if gives_up:
                self.loop.call(task.scope.cancel)
            else:
                self.open_the_gate()
        try:
            task.result()
        except KeepWriteError:
            assert self.is_down
            return False
        except IndexError:
            return False
        finally:
            if not self.is_shut:
                self._calm_down()
        return True

    def _join(self) -> None:
        """Wait for the end of what was begun; some of it may have failed."""
        for task in self.under_way:
            task.wait()
        self.under_way.clear()
        self._calm_down()

    def _calm_down(self) -> None:
        """Wait until nothing is being sent any more."""
        self.loop.calm_down()


class PackedFileModel(UploadFileModel):
    """The same for a file that was imported: its bytes are ranges of blocks of any sizes."""

    @initialize(
        maxsize=st.sampled_from([BLOCK // 2, 2 * BLOCK, 100 * BLOCK]),
        blocks=st.lists(st.binary(min_size=1, max_size=3 * BLOCK), min_size=1, max_size=4),
        places=st.lists(
            st.tuples(st.integers(0, 3), st.integers(0, 3 * BLOCK), st.integers(1, 2 * BLOCK)),
            min_size=1,
            max_size=6,
        ),
    )
    def make(self, maxsize: int, blocks: list[bytes], places: list[tuple[int, int, int]]) -> None:
        self.staging = Staging(self.loop.blocks, maxsize, BLOCK)
        self.catalog = Catalog()
        ranges = []
        for number, begin, length in places:
            block = blocks[number % len(blocks)]
            start = begin % len(block)
            part = block[start : start + length]
            receipt = Receipt(self.memory.put_block(block, 1).locator, 0, ())
            ranges.append(StoredRange(receipt, start, len(part)))
            self.expected += part
        self.imported = StoredBytes(ranges)
        owner = Metadata(directory_mode(0o755), 0, 0)
        upload = UploadDirectory.mounted(owner, self.staging, lambda *_: None, self.catalog)
        upload.add_stored({"file": (Metadata(file_mode(0o644), 0, 0), self.imported)})
        file = upload.entry_nowait("file")
        assert isinstance(file, UploadFile)
        self.file = file
        self.file.opened()
        self.touched: set[int] = set()

    def _do(self, work: Callable[..., Awaitable[None]], *args: object, gives_up: bool) -> bool:
        before, offset = len(self.expected), args[0]
        assert isinstance(offset, int)
        end = offset + len(args[1]) if len(args) > 1 and isinstance(args[1], bytes) else offset
        # A file that grows has zeros in the slot where it ended.
        first = min(before, offset) if end > before or len(args) == 1 else offset
        last = max(before, end) if len(args) == 1 else end
        self.touched |= set(range(first // BLOCK, -(-last // BLOCK)))
        return super()._do(work, *args, gives_up=gives_up)

    def _check_version(self) -> None:
        assert self.file.number is not None
        version = self.catalog.version(self.file.number)
        content = b""
        for each in version.ranges:
            block = self.memory.blocks[each.locator.md5sum]
            content += block[each.offset : each.offset + each.length]

        assert content == self.expected
        for slot in range(-(-self.imported.size // BLOCK)):
            if slot not in self.touched:
                place = slot * BLOCK, (slot + 1) * BLOCK
                assert version.slice(*place) == self.imported.slice(*place)

    def teardown(self) -> None:
        super().teardown()
        self.catalog.close()


TestUploadFileModel = UploadFileModel.TestCase
TestUploadFileModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
TestPackedFileModel = PackedFileModel.TestCase
TestPackedFileModel.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)
