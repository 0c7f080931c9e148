"""A thread that has no memory to start is an error, not a hang."""

from __future__ import annotations

import contextlib
import gc
import threading
import time
import weakref

import pytest

from keepfs.keep.threads import LazyEvent, NoThreadError, Thread
from keepfs.mount import fuse


class Stillborn(Thread):
    """A thread that ends before it says that it has begun, as without memory."""

    def _bootstrap_inner(self) -> None:
        """Do nothing."""


class Late(Thread):
    """A thread that begins when it is let."""

    let = threading.Event()

    def _bootstrap_inner(self) -> None:
        self.let.wait(60)
        super()._bootstrap_inner()  # type: ignore[misc] # CPython's


def test_a_thread_runs_its_work() -> None:
    done: list[int] = []
    thread = Thread(target=done.append, args=(1,), daemon=True)
    thread.start()
    thread.join(60)

    assert done == [1]


def test_a_thread_that_does_not_begin_is_an_error() -> None:
    with pytest.raises(NoThreadError, match="no thread can be started: it does not begin"):
        Stillborn(target=print, daemon=True, patience=0.01).start()


def test_work_of_a_thread_that_failed_to_start_is_never_done() -> None:
    done: list[int] = []
    late = Late(target=done.append, args=(1,), daemon=True, patience=0.01)
    with pytest.raises(RuntimeError):
        late.start()

    late.let.set()
    assert late._started.wait(60)  # noqa: SLF001 - nothing public tells
    late.join(60)

    assert done == []


class Unstartable(Thread):
    """A thread that the system can't start."""

    def start(self) -> None:
        """Fail as CPython does."""
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(threading, "_start_new_thread", self._refuse)
            super().start()

    @staticmethod
    def _refuse(*_: object) -> None:
        raise RuntimeError("can't start new thread")


@pytest.mark.parametrize("kind", [Stillborn, Unstartable])
def test_a_thread_that_failed_to_start_keeps_nothing_alive(kind: type[Thread]) -> None:
    argument = threading.Event()
    alive = weakref.ref(argument)
    gc.disable()
    try:
        with contextlib.suppress(NoThreadError):
            kind(target=print, args=(argument,), daemon=True, patience=0.01).start()
        del argument
        assert alive() is None
    finally:
        gc.enable()


@pytest.mark.slow
def test_a_tick_ends_a_start_that_hangs_in_the_main_thread() -> None:
    class Plain(threading.Thread):
        """As of a library."""

        def _bootstrap_inner(self) -> None:
            """Do nothing."""

    with fuse.ticking(start_patience=0.1):
        with pytest.raises(RuntimeError, match="it does not begin"):
            Plain(daemon=True).start()
        waits = threading.Event()
        waits.wait(0.5)  # other waits of the main thread go on
        began = time.monotonic()

        assert not waits.wait(0.3)
        assert time.monotonic() - began >= 0.3


def test_an_event_wakes_all_threads_that_wait_for_it_whenever_they_began() -> None:
    def try_once() -> list[bool]:
        event, woken = LazyEvent(), list[bool]()
        threads = [
            threading.Thread(target=lambda: woken.append(event.wait(10.0))) for _ in range(3)
        ]
        for thread in threads[:2]:
            thread.start()
        event.set()
        threads[2].start()
        for thread in threads:
            thread.join()
        return woken

    assert all(try_once() == [True] * 3 for _ in range(200))


def test_a_wait_for_an_event_that_is_not_set_ends_at_its_timeout() -> None:
    event = LazyEvent()

    assert not event.wait(0.01)
    assert not event.is_set()
    event.set()
    assert event.wait(0.0)
