"""Names and bytes are what a dict of names to bytes would say, also when the store fails."""

from __future__ import annotations

import collections
import contextlib
import errno
import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import pyfuse3
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from pyfuse3 import EntryAttributes, FUSEError

from keepfs.keep import Cause, KeepLocator, KeepWriteError
from tests.fakes.kernel import Caller, Fields
from tests.fakes.loops import Loop
from tests.fakes.store import DictStore, FailingStore
from tests.fakes.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator

    from pyfuse3 import FileHandleT, InodeT

T = TypeVar("T")

BLOCK = 8
ME = Caller(uid=1, gid=1)
DOWN = KeepWriteError("no service takes it", cause=Cause.UNREACHABLE)
names = st.sampled_from([b"a", b"b", b"c", b"\xff"])
directories = st.sampled_from(["upload", "inner"])
offsets = st.integers(0, 3 * BLOCK)
contents = st.binary(min_size=1, max_size=2 * BLOCK)


@dataclass(eq=False)
class ExpectedFile:
    """A file of the model.

    Attributes:
        inode: What the handlers call it.
        content: Its bytes.
        is_named: Whether a directory names it.
        openings: Its open handles.
    """

    inode: InodeT
    content: bytes = b""
    is_named: bool = True
    openings: list[FileHandleT] = field(default_factory=list)


class OperationsModel(RuleBasedStateMachine):
    """What programs do with files in two directories, against two dicts."""

    def __init__(self) -> None:
        super().__init__()
        self.memory = DictStore()
        self.store = FailingStore(self.memory)
        self.loop = Loop(self.store)
        self.tree = Tree(self.loop.blocks, block_size=BLOCK)
        self.operations = self.tree.operations
        self.lookups = collections.Counter[pyfuse3.InodeT]()
        self.is_down = False
        upload = self._ask(self.operations.lookup, pyfuse3.ROOT_INODE, b"upload", ME)
        inner = self._ask(self.operations.mkdir, upload.st_ino, b"inner", 0o40755, ME)
        self.inodes = {"upload": upload.st_ino, "inner": inner.st_ino}
        self.expected: dict[str, dict[bytes, ExpectedFile]] = {"upload": {}, "inner": {}}
        self.files: list[ExpectedFile] = []

    # --- what programs do --------------------------------------------------------

    @rule(directory=directories, name=names)
    def create(self, directory: str, name: bytes) -> None:
        parent, there = self.inodes[directory], self.expected[directory]
        request = (self.operations.create, parent, name, 0o100644, os.O_RDWR, ME)
        if name in there:
            assert self._refusal(*request) == errno.EEXIST
            return
        info, said = self._ask(*request)
        self.lookups[said.st_ino] += 1
        there[name] = ExpectedFile(said.st_ino, openings=[info.fh])
        self.files.append(there[name])

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0), truncates=st.booleans())
    def open(self, number: int, *, truncates: bool) -> None:
        file = self._one(number)
        if not file.is_named:
            return
        flags = os.O_RDWR | (os.O_TRUNC if truncates else 0)
        info = self._ask(self.operations.open, file.inode, flags, ME)
        file.openings.append(info.fh)
        if truncates:
            file.content = b""

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0), offset=offsets, content=contents)
    def write(self, number: int, offset: int, content: bytes) -> None:
        file = self._one(number)
        if file.openings:
            assert self._ask(self.operations.write, file.openings[0], offset, content) == len(
                content
            )
            before = file.content.ljust(offset, b"\0")
            file.content = before[:offset] + content + before[offset + len(content) :]

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0), offset=offsets, size=offsets)
    def read(self, number: int, offset: int, size: int) -> None:
        file = self._one(number)
        if file.openings:
            found = self._ask(self.operations.read, file.openings[-1], offset, size)
            assert bytes(found) == file.content[offset : offset + size]

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0), size=offsets)
    def truncate(self, number: int, size: int) -> None:
        file = self._one(number)
        if not file.is_named and not file.openings:
            return
        wanted = EntryAttributes()
        wanted.st_size = size
        request = (self.operations.setattr, file.inode, wanted, Fields("size"), None, ME)
        if self.is_down:
            with self._may_fail():
                self._ask(*request)
        else:
            assert self._ask(*request).st_size == size
        file.content = file.content[:size].ljust(size, b"\0")

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0))
    def close(self, number: int) -> None:
        file = self._one(number)
        if file.openings:
            handle = file.openings.pop()
            with self._may_fail():
                self._ask(self.operations.flush, handle)
                if file.is_named:
                    assert self._state(file) == b"stored"
            self._ask(self.operations.release, handle)

    @precondition(lambda self: self.files)
    @rule(number=st.integers(0))
    def forget(self, number: int) -> None:
        """Let the kernel forget a file nobody has open; looked up, it may have a new number."""
        file = self._one(number)
        if file.is_named and not file.openings:
            forgotten = [(file.inode, self.lookups.pop(file.inode))]
            self._ask(self.operations.forget, forgotten)
            ((directory, name),) = (
                (directory, name)
                for directory, there in self.expected.items()
                for name in there
                if there[name] is file
            )
            said = self._ask(self.operations.lookup, self.inodes[directory], name, ME)
            self.lookups[said.st_ino] += 1
            file.inode = said.st_ino

    @rule(directory=directories, name=names)
    def unlink(self, directory: str, name: bytes) -> None:
        parent, there = self.inodes[directory], self.expected[directory]
        if name in there:
            self._ask(self.operations.unlink, parent, name, ME)
            there.pop(name).is_named = False
        else:
            assert self._refusal(self.operations.unlink, parent, name, ME) == errno.ENOENT

    @rule(source=directories, name=names, destination=directories, new_name=names)
    def rename(self, source: str, name: bytes, destination: str, new_name: bytes) -> None:
        old, new = self.expected[source], self.expected[destination]
        request = (
            *(self.operations.rename, self.inodes[source], name),
            *(self.inodes[destination], new_name, 0, ME),
        )
        if name not in old:
            assert self._refusal(*request) == errno.ENOENT
            return
        self._ask(*request)
        moved = old.pop(name)
        replaced = new.get(new_name)
        if replaced is not None:
            replaced.is_named = False
        new[new_name] = moved
        moved.is_named = True

    # --- what the store does -------------------------------------------------------

    @rule()
    def break_the_store(self) -> None:
        self.loop.calm_down()
        self.store.fail_always("put_block", DOWN)
        self.is_down = True

    @rule()
    def heal_the_store(self) -> None:
        self.loop.calm_down()
        self.store.heal()
        self.is_down = False

    # --- what is always true -----------------------------------------------------------

    @invariant()
    def names_are_as_expected(self) -> None:
        for directory, there in self.expected.items():
            for name in (b"a", b"b", b"c", b"\xff"):
                request = (self.operations.lookup, self.inodes[directory], name, ME)
                if name in there:
                    said = self._ask(*request)
                    self.lookups[said.st_ino] += 1
                    assert said.st_ino == there[name].inode
                    assert said.st_size == len(there[name].content)
                else:
                    assert self._refusal(*request) == errno.ENOENT

    @invariant()
    def what_is_said_to_be_stored_is_stored(self) -> None:
        for file in self.files:
            if self._state(file) == b"stored":
                name = b"user.keep.locator"
                locators = self._ask(self.operations.getxattr, file.inode, name, ME)
                blocks = [KeepLocator(each).md5sum for each in locators.decode().split(",")]
                stored = b"".join(self.memory.blocks[md5sum] for md5sum in blocks)
                if file.is_named or file.openings:
                    assert stored == file.content

    def teardown(self) -> None:
        self.heal_the_store()
        for file in self.files:
            while file.openings:
                self.close(0 if file is self.files[0] else self.files.index(file))
        for file in self.files:
            if file.is_named:
                info = self._ask(self.operations.open, file.inode, os.O_RDWR, ME)
                content = bytes(self._ask(self.operations.read, info.fh, 0, 1000))
                self._ask(self.operations.flush, info.fh)
                self._ask(self.operations.release, info.fh)
                assert content == file.content
                assert self._state(file) == b"stored"
        self.what_is_said_to_be_stored_is_stored()
        self.loop.calm_down()
        assert self.tree.staging.currsize == 0
        self._ask(self.operations.forget, list(self.lookups.items()))
        for file in self.files:
            assert self._refusal(self.operations.getattr, file.inode, ME) == errno.ESTALE
        self.loop.close()

    # --- how ---------------------------------------------------------------------------

    def _one(self, number: int) -> ExpectedFile:
        return self.files[number % len(self.files)]

    def _ask(self, handler: Callable[..., Awaitable[T]], *args: object) -> T:
        return self.loop.wait(handler, *args)

    def _refusal(self, handler: Callable[..., Awaitable[object]], *args: object) -> int:
        with pytest.raises(FUSEError) as caught:
            self.loop.wait(handler, *args)
        return caught.value.errno

    def _may_fail(self) -> contextlib.AbstractContextManager[None]:
        """Allow what fails because the store is down."""
        return refusing(errno.EHOSTUNREACH) if self.is_down else contextlib.nullcontext()

    def _state(self, file: ExpectedFile) -> bytes:
        return self._ask(self.operations.getxattr, file.inode, b"user.keep.state", ME)


@contextlib.contextmanager
def refusing(number: int) -> Iterator[None]:
    """Let a request be answered with this errno."""
    try:
        yield
    except FUSEError as error:
        assert error.errno == number  # noqa: PT017 - it may also succeed


TestOperationsModel = pytest.mark.slow(OperationsModel.TestCase)
TestOperationsModel.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
