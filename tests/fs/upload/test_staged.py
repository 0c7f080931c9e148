"""The bytes of a slot: changed in place, hashed as they come, as a bytearray would be."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
import threading
from typing import TYPE_CHECKING

import pytest
import trio
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from keepfs.fs.bridge import AsyncBlocks, open_blocks
from keepfs.fs.upload import staged
from keepfs.fs.upload.staged import StagedBytes
from keepfs.keep.buffers import BufferPool
from keepfs.keep.hashing import growing
from tests.fakes.store import DictStore

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType, ModuleType

    from _typeshed import TraceFunction

MIB = 1024 * 1024


class Threadless(AsyncBlocks):
    """Hashes when the test calls for it, or never."""

    def __init__(self) -> None:
        self.waiting: list[tuple[Callable[[], None], Callable[[], None]]] = []

    def hash(self, work: Callable[[], None], then: Callable[[], None]) -> None:
        """Put it off."""
        self.waiting.append((work, then))

    def hash_now(self) -> None:
        """Do what was put off, and what that leads to."""
        while self.waiting:
            work, then = self.waiting.pop(0)
            work()
            then()


def md5_of(content: bytes | bytearray | memoryview) -> str:
    return hashlib.md5(content, usedforsecurity=False).hexdigest()


@pytest.fixture
def without_extension(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hash with hashlib in worker threads, as where the C extension wasn't built."""
    monkeypatch.setattr(growing, "shared_digest", None)


class StagedBytesModel(RuleBasedStateMachine):
    """Whatever is written and cut, whenever threads get round to hashing it, it is a bytearray."""

    LIMIT = 6 * MIB
    PLACES = st.integers(0, LIMIT)

    def __init__(self) -> None:
        super().__init__()
        self.blocks = Threadless()
        self.staged = StagedBytes(self.blocks, self.LIMIT, BufferPool(self.LIMIT).lend)
        self.expected = bytearray()

    def put(self, begin: int, content: bytes) -> None:
        content = content[: self.LIMIT - begin]
        self.staged.write(begin, content)
        if len(self.expected) < begin:
            self.expected.extend(bytes(begin - len(self.expected)))
        self.expected[begin : begin + len(content)] = content

    @rule(
        begin=PLACES,
        size=st.sampled_from([1, 5000, MIB, 2 * MIB]),
        filler=st.binary(min_size=1, max_size=1),
    )
    def write(self, begin: int, size: int, filler: bytes) -> None:
        self.put(begin, filler * size)

    @rule(size=st.sampled_from([1, 5000, MIB]), filler=st.binary(min_size=1, max_size=1))
    def append(self, size: int, filler: bytes) -> None:
        self.put(len(self.expected), filler * size)

    @rule(size=PLACES)
    def cut(self, size: int) -> None:
        self.staged.cut(size)
        del self.expected[size:]

    @rule()
    def threads_get_round_to_it(self) -> None:
        self.blocks.hash_now()

    @rule(more=st.integers(0, 10))
    def store(self, more: int) -> None:
        size = len(self.expected) + more
        digest = self.staged.digest_with_zeros(size)()
        assert digest == md5_of(self.expected + bytes(more))

    @rule()
    def go_on_with_a_copy(self) -> None:
        self.staged = self.staged.copy()

    @invariant()
    def bytes_are_as_expected(self) -> None:
        assert self.staged.view == self.expected
        assert self.staged.footprint(self.staged.size) >= self.staged.size


TestStagedBytesModel = pytest.mark.slow(StagedBytesModel.TestCase)
TestStagedBytesModel.settings = settings(max_examples=20)  # each moves and hashes tens of MiB


class HashlibModel(StagedBytesModel):
    """The same, hashed in worker threads."""


TestHashlibModel = pytest.mark.slow(
    pytest.mark.usefixtures("without_extension")(HashlibModel.TestCase)
)
TestHashlibModel.settings = settings(max_examples=20)


@pytest.mark.usefixtures("without_extension")
async def test_bytes_written_in_order_are_hashed_as_they_arrive() -> None:
    blocks = Threadless()
    staged = StagedBytes(blocks, 64 * MIB)
    for number in range(8):
        staged.write(number * MIB, bytes([number]) * MIB)
        blocks.hash_now()
    view = staged.view
    view[0] = 255  # nobody writes so: it shows that these bytes aren't looked at again

    expected = md5_of(b"".join(bytes([number]) * MIB for number in range(8)))
    assert staged.digest_with_zeros(8 * MIB)() == expected


@pytest.mark.skipif(growing.shared_digest is None, reason="the C extension wasn't built")
def test_the_extension_hashes_bytes_written_in_order_without_worker_threads() -> None:
    blocks = Threadless()
    staged = StagedBytes(blocks, 64 * MIB, BufferPool(64 * MIB).lend)
    for number in range(40):  # the memory moves several times meanwhile
        staged.write(number * MIB, bytes([number]) * MIB)

    digest = staged.digest_with_zeros(41 * MIB)()

    assert blocks.waiting == []
    assert digest == md5_of(bytes(staged.view) + bytes(MIB))


@pytest.mark.skipif(growing.shared_digest is None, reason="the C extension wasn't built")
def test_bytes_written_again_below_the_end_are_in_the_digest() -> None:
    staged = StagedBytes(Threadless(), 64 * MIB)
    for number in range(8):
        staged.write(number * MIB, bytes([number]) * MIB)
    staged.write(3 * MIB, b"again")
    staged.write(8 * MIB, b"the end")

    assert staged.digest_with_zeros(9 * MIB)() == md5_of(
        bytes(staged.view) + bytes(9 * MIB - len(staged.view))
    )


async def test_the_store_hashes_the_bytes_that_threads_have_not() -> None:
    async with open_blocks(DictStore(), copies=1) as blocks:
        staged = StagedBytes(blocks, 64 * MIB)
        for number in range(20):
            staged.write(number * MIB, bytes([number]) * MIB)
        work = staged.digest_with_zeros(20 * MIB)

        assert await trio.to_thread.run_sync(work) == md5_of(staged.view)


def test_memory_is_counted_as_it_is_allocated_and_a_whole_blocks_is_lent() -> None:
    pool = BufferPool(64 * MIB)
    blocks = Threadless()
    staged = StagedBytes(blocks, 64 * MIB, pool.lend)

    staged.write(0, b"small")
    small = staged.footprint(5)
    staged.write(0, bytes(40 * MIB))
    large = staged.footprint(staged.size)
    blocks.hash_now()
    del staged

    assert (small, large) == (256, 64 * MIB)
    assert pool.idle() == 1


def test_lent_memory_shows_no_earlier_bytes() -> None:
    pool = BufferPool(4 * MIB)
    pool.lend(4 * MIB)[:] = b"x" * 4 * MIB
    staged = StagedBytes(Threadless(), 4 * MIB, pool.lend)

    staged.write(3 * MIB, b"end")

    assert staged.view == bytes(3 * MIB) + b"end"


@pytest.mark.usefixtures("without_extension")
def test_after_a_failure_everything_is_hashed_again() -> None:
    blocks = Threadless()
    staged = StagedBytes(blocks, 64 * MIB)
    staged.write(0, bytes(2 * MIB))
    blocks.hash_now()
    staged.view[0] = 255  # as if a thread had hashed what isn't so

    before = staged.digest_with_zeros(2 * MIB)()
    staged.forget_digest()

    assert before != md5_of(staged.view)
    assert staged.digest_with_zeros(2 * MIB)() == md5_of(staged.view)


def fresh_module() -> ModuleType:
    """Load the module once more, as in a new process."""
    spec = importlib.util.spec_from_file_location("fresh_staged", staged.__file__)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Stepped(threading.Thread):
    """A thread that asks for zeros, and is stopped before a line of the module until released."""

    def __init__(self, module: ModuleType, size: int, line: int) -> None:
        super().__init__()
        self._module, self._size, self._lines_left = module, size, line
        self.stopped, self.released = threading.Event(), threading.Event()
        self.found = -1

    def run(self) -> None:
        """Ask."""
        sys.settrace(self._trace)
        self.found = len(self._module.zeros(self._size))
        sys.settrace(None)
        self.stopped.set()

    def _trace(self, frame: FrameType, event: str, _: object) -> TraceFunction | None:
        if frame.f_code.co_filename != self._module.__file__:
            return None
        if event == "line":
            if self._lines_left == 0:
                self.stopped.set()
                self.released.wait()
            self._lines_left -= 1
        return self._trace


@pytest.mark.parametrize("other_line", range(4))
@pytest.mark.parametrize("line", range(4))
def test_threads_get_zeros_concurrently(line: int, other_line: int) -> None:
    module = fresh_module()
    few, many = Stepped(module, 100, line), Stepped(module, 300_000, other_line)
    for each in (few, many):
        each.start()
        each.stopped.wait()
    for each in (few, many):
        each.released.set()
        each.join()

    assert (few.found, many.found) == (100, 300_000)
