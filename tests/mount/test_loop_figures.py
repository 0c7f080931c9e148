"""The copies of what the trio thread owns: made there, and lent while it does not run."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, Any

import pyfuse3
import pytest
import trio
from pyfuse3 import FUSEError

from keepfs.keep import Cause, KeepWriteError
from keepfs.mount.loop_figures import LoopCopies, LoopFigures, LoopOwners
from keepfs.retention.kept import KeeperStatistics
from tests.fakes.kernel import Caller
from tests.fakes.loops import Loop
from tests.fakes.store import DictStore, FailingStore
from tests.fakes.threads import PATIENCE
from tests.fakes.tree import Tree

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

ME = Caller(uid=11, gid=12)


class _Mount:
    """The owners of a mount's figures, in a loop of their own.

    Attributes:
        readers: The threads that read an owner.
        is_draining: What an owner says.
        fails: Whether that owner fails.
    """

    def __init__(self, loop: Loop) -> None:
        self.readers: set[int] = set()
        self.is_draining = self.fails = False
        self.loop = loop
        self.tree, self.copies = loop.call(self._made)
        self.readers.clear()

    def _made(self) -> tuple[Tree, LoopCopies]:
        tree = Tree(self.loop.blocks)
        owners = LoopOwners(
            tree.operations.requests,
            tree.operations,
            tree.staging,
            tree.staging.failed,
            self._noting(KeeperStatistics("off", (), trio.current_time(), None, 0, 0)),
            self._draining,
            self._noting(3),
        )
        return tree, LoopCopies(owners)

    def _noting(self, answer: Any) -> Callable[[], Any]:  # noqa: ANN401 - of several owners
        def read() -> Any:  # noqa: ANN401
            self.readers.add(threading.get_ident())
            return answer

        return read

    def _draining(self) -> bool:
        if self.fails:
            raise ZeroDivisionError
        return bool(self._noting(self.is_draining)())


@pytest.fixture
def store() -> FailingStore:
    return FailingStore(DictStore())


@pytest.fixture
def mount(store: FailingStore) -> Iterator[_Mount]:
    loop = Loop(store)
    yield _Mount(loop)
    loop.close()


def test_another_thread_gets_a_copy_that_the_trio_thread_has_made(mount: _Mount) -> None:
    mount.is_draining = True

    found = mount.copies.latest()

    assert found.is_draining
    assert found.lost == 3
    assert mount.readers == {mount.loop.call(threading.get_ident)}


def test_a_file_that_could_not_be_stored_is_copied_with_its_reason(
    mount: _Mount, store: FailingStore
) -> None:
    async def fail() -> None:
        await mount.tree.operations.lookup(pyfuse3.ROOT_INODE, b"upload", ME)
        store.fail_always("put_block", KeepWriteError("no service", cause=Cause.FULL))
        info, _ = await mount.tree.operations.create(
            mount.tree.upload, b"x", 0o100644, os.O_RDWR, ME
        )
        await mount.tree.operations.write(info.fh, 0, b"x")
        with pytest.raises(FUSEError):
            await mount.tree.operations.flush(info.fh)

    mount.loop.wait(fail)

    found = mount.copies.latest()

    assert found.unsaved == 1
    [failed] = found.failed
    assert (failed.path, failed.error) == ("upload/x", "no service")


def test_while_the_loop_is_blocked_the_last_copy_and_the_requests_of_now_are_lent(
    mount: _Mount,
) -> None:
    blocked, goes_on = threading.Event(), threading.Event()

    async def block() -> None:
        mount.is_draining = True  # the copy is older
        blocked.set()
        assert goes_on.wait(PATIENCE)  # blocks the loop

    requests = mount.tree.operations.requests
    mount.loop.call(
        lambda: trio.lowlevel.spawn_system_task(
            requests.answer, "lookup", block(), 7, (mount.tree.upload, b"name")
        )
    )
    assert blocked.wait(PATIENCE)
    for is_stuck in (True, False):  # known, and found out by waiting
        found = mount.copies.latest(is_stuck=is_stuck)

        assert not found.is_draining
        assert found.waiting["lookup"].oldest.pid == 7
    goes_on.set()

    assert _settled(mount).is_draining


def test_after_the_end_of_the_loop_the_last_copy_is_lent(store: FailingStore) -> None:
    loop = Loop(store)
    mount = _Mount(loop)
    loop.close()

    assert mount.copies.latest().failed == ()
    assert mount.readers == set()


def _settled(mount: _Mount) -> LoopFigures:
    mount.loop.settle()
    return mount.copies.latest()


def test_an_owner_that_fails_does_not_end_the_loop(
    mount: _Mount, caplog: pytest.LogCaptureFixture
) -> None:
    mount.fails = True

    assert not mount.copies.latest().is_draining  # the last copy
    assert "reading the figures of the mount failed unexpectedly" in caplog.text
    mount.fails, mount.is_draining = False, True
    assert mount.copies.latest().is_draining
