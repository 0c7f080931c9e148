"""Requests under way: nothing but FUSEError gets out, and none is waited for for ever."""

from __future__ import annotations

import contextlib
import errno
import inspect
import logging
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pyfuse3
import pytest
import trio
import trio.testing
from pyfuse3 import FUSEError

from keepfs.fs.errnos import RefusedError
from keepfs.fs.guards import guarded, guarded_call
from keepfs.fs.nodes import FileNode, Metadata
from keepfs.fs.operations import Operations
from keepfs.fs.processes import dies_of_a_signal
from keepfs.fs.requests import WATCH_INTERVAL, RequestInProgress, Requests
from keepfs.keep import Cause, KeepReadError, NotFoundError
from tests.fakes.kernel import Caller

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine, Iterator

DEADLINE = 60.0
ME = Caller(pid=7)


class NamedFile(FileNode):
    """A file of upload/ that has a path."""

    mount_path = "upload/a/file"

    async def read(self, offset: int, size: int) -> bytes:
        """Return nothing."""
        return bytes(0 * (offset + size))


FILE = NamedFile(Metadata(0o100644, 0, 0))


async def kill_after(seconds: float, pid: int) -> None:
    """Send a signal to a process after a while; a stopped process keeps it pending."""
    await trio.sleep(seconds)
    os.kill(pid, signal.SIGTERM)


async def swallow(handler: Callable[..., Awaitable[object]], *arguments: object) -> None:
    """Await a handler that fails."""
    with contextlib.suppress(FUSEError):
        await handler(*arguments)


class Handlers:
    """Two handlers, guarded.

    Args:
        work: What they do.
    """

    def __init__(self, work: Callable[[], Awaitable[None]]) -> None:
        self.requests = Requests(DEADLINE)
        self._work = work

    def path_of(self, request: RequestInProgress) -> str:
        """Return a path of a request with a number above 9."""
        number = request.arguments[0]
        return f"upload/{number}" if number > 9 else ""

    @guarded
    async def read(self, number: int) -> int:
        """Return the number, when the work is done."""
        await self._work()
        return number

    @guarded
    async def open(self, number: int, ctx: pyfuse3.RequestContext) -> int:
        """Do as `read`, for a known caller."""
        await self._work()
        return number + ctx.uid


class PlainHandlers(Handlers):
    """Handlers that are plain functions.

    Args:
        act: What they do at once.
        work: What they do then; None for nothing.
    """

    def __init__(
        self, act: Callable[[], object], work: Callable[[], Awaitable[None]] | None = None
    ) -> None:
        super().__init__(trio.lowlevel.checkpoint if work is None else work)
        self._act = act
        self._waits = work is not None

    @guarded_call
    def rmdir(self, number: int, ctx: pyfuse3.RequestContext) -> int | Coroutine[Any, Any, int]:
        """Return the number."""
        self._act()
        return self._later(number) if self._waits else number + 0 * ctx.uid

    async def _later(self, number: int) -> int:
        await self._work()
        return number


def raising(error: BaseException) -> Handlers:
    """Return handlers that fail."""

    async def fail() -> None:
        await trio.lowlevel.checkpoint()
        raise error

    return Handlers(fail)


def fail(error: Exception) -> Callable[[], object]:
    """Return a function that raises an error."""

    def failing() -> object:
        raise error

    return failing


@contextlib.contextmanager
def stopped_process(preparation: str = "", prints: str = "ready") -> Iterator[int]:
    """Run a process that has been stopped, so that signals wait for it; yield its number."""
    code = f"import signal\n{preparation}\nprint({prints!r}, flush=True)\nsignal.pause()"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        os.kill(process.pid, signal.SIGSTOP)
        os.waitpid(process.pid, os.WUNTRACED)
        try:
            yield process.pid
        finally:
            process.kill()


# --- the guard -------------------------------------------------------------------


def test_every_handler_is_guarded() -> None:
    handlers = {
        name
        for name, function in vars(pyfuse3.Operations).items()
        if inspect.iscoroutinefunction(function)
    }
    naked = {
        name
        for name, function in vars(Operations).items()
        if name in handlers - {"forget"} and not hasattr(function, "__wrapped__")
    }

    assert naked == set()


async def test_a_plain_handlers_answer_is_passed_on_and_counted_once() -> None:
    for work in (None, trio.lowlevel.checkpoint):
        handlers = PlainHandlers(lambda: None, work)

        assert await handlers.rmdir(5, ME) == 5
        assert handlers.requests.statistics().answered == 1
        assert handlers.requests.in_progress() == []


@pytest.mark.parametrize(
    ("error", "number", "said"),
    [
        (RefusedError(errno.ENOTEMPTY), errno.ENOTEMPTY, []),
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC, ["rmdir of upload/17: ENOSPC: full"]),
        (ZeroDivisionError(), errno.EIO, ["rmdir of upload/17 failed unexpectedly"]),
    ],
    ids=repr,
)
async def test_a_failure_of_a_plain_handler_is_logged_and_counted_once(
    error: Exception, number: int, said: list[str], caplog: pytest.LogCaptureFixture
) -> None:
    handlers = PlainHandlers(fail(error))

    with pytest.raises(FUSEError) as failure:
        await handlers.rmdir(17, ME)

    assert failure.value.errno == number
    assert [it.getMessage().split(" [")[0] for it in caplog.records] == said
    counts = handlers.requests.operations()["rmdir"]
    assert counts.durations.number == 1
    assert counts.errors == {number: 1}
    assert handlers.requests.in_progress() == []


async def test_a_request_that_the_loop_is_stuck_in_is_in_progress_for_other_threads() -> None:
    found: list[RequestInProgress] = []

    def ask_in_a_thread() -> None:
        thread = threading.Thread(target=lambda: found.extend(handlers.requests.in_progress()))
        thread.start()
        thread.join()  # the loop is stuck meanwhile

    handlers = PlainHandlers(ask_in_a_thread)
    before = trio.current_time()
    await handlers.rmdir(17, ME)

    assert [(it.kind, handlers.path_of(it), it.pid) for it in found] == [
        ("rmdir", "upload/17", ME.pid)
    ]
    assert before <= found[0].since <= trio.current_time()


async def test_a_handlers_answer_is_passed_on() -> None:
    handlers = Handlers(trio.lowlevel.checkpoint)

    assert await handlers.read(5) == 5
    assert await handlers.open(5, Caller(uid=2)) == 7


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (RefusedError(errno.ENOTDIR), errno.ENOTDIR),
        (NotFoundError("gone"), errno.ENOENT),
        (PermissionError(errno.EACCES, "no"), errno.EACCES),
        (OSError("no number"), errno.EIO),
        (ZeroDivisionError("a bug"), errno.EIO),
        (MemoryError(), errno.ENOMEM),
        (ExceptionGroup("bugs", [KeyError("one")]), errno.EIO),
    ],
    ids=repr,
)
async def test_each_exception_of_a_handler_becomes_a_fuse_error(
    error: Exception, number: int
) -> None:
    with pytest.raises(FUSEError) as caught:
        await raising(error).read(1)

    assert caught.value.errno == number


async def test_at_the_end_of_the_mount_a_request_is_answered() -> None:
    handlers = Handlers(trio.sleep_forever)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(FUSEError) as caught:
            await handlers.read(1)

    assert caught.value.errno == errno.ENOTCONN
    assert handlers.requests.statistics().given_up == 0


# --- the log -------------------------------------------------------------------------


async def test_enoent_is_logged_at_debug_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(FUSEError):
        await raising(NotFoundError("abc not found")).read(1)

    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("DEBUG", "read: ENOENT: abc not found [not-found]")
    ]


async def test_an_expected_failure_is_one_line_of_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(FUSEError):
        await raising(KeepReadError("no token", cause=Cause.DENIED)).read(1)
    with pytest.raises(FUSEError):
        await raising(OSError(errno.ENOSPC, "No space left")).read(1)

    assert [(each.levelname, each.message) for each in caplog.records] == [
        ("WARNING", "read: EACCES: no token [denied]"),
        ("WARNING", "read: ENOSPC: No space left [file-failed]"),
    ]
    assert all(each.exc_info is None for each in caplog.records)


async def test_a_bug_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(FUSEError):
        await raising(ZeroDivisionError("a bug")).read(1)

    (record,) = caplog.records
    assert (record.levelname, record.message) == ("ERROR", "read failed unexpectedly [unexpected]")
    assert record.exc_info is not None


async def test_a_refusal_by_a_handler_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG)
    with pytest.raises(FUSEError):
        await raising(RefusedError(errno.EROFS)).read(1)

    assert caplog.records == []


# --- giving up -----------------------------------------------------------------------


async def test_a_request_past_the_deadline_is_answered_with_a_time_out(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
    caplog: pytest.LogCaptureFixture,
) -> None:
    handlers = Handlers(trio.sleep_forever)
    begin = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.requests.watch)
        with pytest.raises(FUSEError) as caught:
            await handlers.read(1)
        nursery.cancel_scope.cancel()

    assert caught.value.errno == errno.ETIMEDOUT
    assert DEADLINE < trio.current_time() - begin <= DEADLINE + 2 * WATCH_INTERVAL
    assert handlers.requests.statistics().given_up == 1
    assert caplog.records[0].levelname == "WARNING"
    assert caplog.records[0].message.startswith("read: ETIMEDOUT after 60.")


async def test_a_request_whose_caller_is_about_to_be_killed_is_interrupted(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    with stopped_process() as pid:
        os.kill(pid, signal.SIGTERM)
        handlers = Handlers(trio.sleep_forever)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers.requests.watch)
            with pytest.raises(FUSEError) as caught:
                await handlers.open(1, Caller(pid=pid))
            nursery.cancel_scope.cancel()

    assert caught.value.errno == errno.EINTR


async def test_a_request_that_has_waited_long_is_interrupted_within_a_second(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    with stopped_process() as pid:
        handlers = Handlers(trio.sleep_forever)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers.requests.watch)
            nursery.start_soon(kill_after, 30.05, pid)
            with pytest.raises(FUSEError) as caught:
                await handlers.open(1, Caller(pid=pid))
            waited = trio.current_time() - 30.05
            nursery.cancel_scope.cancel()

    assert caught.value.errno == errno.EINTR
    assert 0 < waited <= 1 + 2 * WATCH_INTERVAL


async def test_a_young_request_is_checked_at_once_though_an_old_one_is_checked_rarely(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    with stopped_process() as old, stopped_process() as young:
        handlers = Handlers(trio.sleep_forever)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers.requests.watch)
            nursery.start_soon(swallow, handlers.open, 1, Caller(pid=old))
            await trio.sleep(30)
            os.kill(young, signal.SIGTERM)
            begin = trio.current_time()
            with pytest.raises(FUSEError):
                await handlers.open(1, Caller(pid=young))
            waited = trio.current_time() - begin
            nursery.cancel_scope.cancel()

    assert waited <= 3 * WATCH_INTERVAL


async def test_the_watch_sleeps_while_nothing_waits() -> None:
    requests = Requests(DEADLINE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(requests.watch)
        await trio.testing.wait_all_tasks_blocked()
        has_timeout = trio.lowlevel.current_statistics().seconds_to_next_deadline < DEADLINE
        nursery.cancel_scope.cancel()

    assert not has_timeout


async def test_a_request_is_not_interrupted_for_an_opener_that_does_not_wait_for_it(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    with stopped_process() as pid:
        os.kill(pid, signal.SIGTERM)  # it stays pending

        async def wait() -> None:
            handlers.requests.about(FILE, pid)
            await trio.sleep(DEADLINE - 1)

        handlers = Handlers(wait)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(handlers.requests.watch)
            answer = await handlers.read(1)
            nursery.cancel_scope.cancel()

    assert answer == 1


async def test_the_log_names_the_file_of_a_request_that_fails(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = iter([OSError(errno.ENOSPC, "full"), ZeroDivisionError(), None])

    async def fail() -> None:
        handlers.requests.about(FILE)
        failure = next(failures)
        if failure is not None:
            raise failure
        await trio.sleep_forever()

    handlers = Handlers(fail)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.requests.watch)
        for _ in range(3):
            with pytest.raises(FUSEError):
                await handlers.read(1)
        nursery.cancel_scope.cancel()

    assert [record.getMessage().split(" after ")[0] for record in caplog.records] == [
        "read of upload/a/file: ENOSPC: full [file-failed]",
        "read of upload/a/file failed unexpectedly [unexpected]",
        "read of upload/a/file: ETIMEDOUT",
    ]


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), ZeroDivisionError()], ids=repr)
async def test_the_log_names_the_path_of_a_request_without_a_file(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(FUSEError):
        await raising(error).read(17)

    assert caplog.records[0].getMessage().startswith("read of upload/17")


async def test_a_request_of_a_living_caller_is_waited_for(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    async def wait() -> None:
        await trio.sleep(DEADLINE - 1)

    handlers = Handlers(wait)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.requests.watch)
        answer = await handlers.open(1, Caller(pid=os.getpid()))
        nursery.cancel_scope.cancel()

    assert answer == 1


async def test_an_exception_of_a_given_up_handler_is_eio(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
) -> None:
    async def fail_when_cancelled() -> None:
        async def fail() -> None:
            try:
                await trio.sleep_forever()
            finally:
                raise ZeroDivisionError

        async with trio.open_nursery() as nursery:
            nursery.start_soon(fail)
            nursery.start_soon(trio.sleep_forever)

    handlers = Handlers(fail_when_cancelled)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.requests.watch)
        with pytest.raises(FUSEError) as caught:
            await handlers.read(1)
        nursery.cancel_scope.cancel()

    assert caught.value.errno == errno.EIO


async def test_a_request_is_given_up_once_however_long_its_handler_takes_to_end(
    autojump_clock: trio.testing.MockClock,  # noqa: ARG001 - time passes at once
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def end_slowly() -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(10)

    handlers = Handlers(end_slowly)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(handlers.requests.watch)
        with pytest.raises(FUSEError) as caught:
            await handlers.read(1)
        nursery.cancel_scope.cancel()

    assert caught.value.errno == errno.ETIMEDOUT
    assert len(caplog.records) == 1


async def test_about_outside_a_request_has_no_effect() -> None:
    Requests(DEADLINE).about(FILE, 1)


async def test_requests_are_counted(autojump_clock: trio.testing.MockClock) -> None:
    handlers = Handlers(trio.sleep_forever)
    idle = handlers.requests.statistics()
    async with trio.open_nursery() as nursery:

        async def read() -> None:
            with pytest.raises(FUSEError):
                await handlers.read(1)

        nursery.start_soon(read)
        await trio.testing.wait_all_tasks_blocked()
        autojump_clock.jump(7.0)
        busy = handlers.requests.statistics()
        nursery.cancel_scope.cancel()

    assert (idle.under_way, idle.oldest, idle.answered, idle.given_up) == (0, 0.0, 0, 0)
    assert (busy.under_way, busy.oldest) == (1, 7.0)
    assert handlers.requests.statistics().answered == 1


# --- who is about to be killed -----------------------------------------------------------


def test_a_process_with_a_pending_fatal_signal_is_dying() -> None:
    with stopped_process() as pid:
        before = dies_of_a_signal(pid)
        os.kill(pid, signal.SIGTERM)

        assert dies_of_a_signal(pid)
        assert not before


def test_a_process_with_an_undecodable_name_can_be_dying() -> None:
    rename = "open('/proc/self/comm', 'wb').write('zähler'.encode()[:2] + bytes([0xff]))"
    with stopped_process(rename) as pid:
        os.kill(pid, signal.SIGTERM)

        assert dies_of_a_signal(pid)


@pytest.mark.parametrize(
    ("preparation", "number"),
    [
        ("signal.signal(signal.SIGTERM, lambda *_: None)", signal.SIGTERM),
        ("signal.signal(signal.SIGTERM, signal.SIG_IGN)", signal.SIGTERM),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])", signal.SIGTERM),
        ("signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGCHLD])", signal.SIGCHLD),
        ("", signal.SIGWINCH),
        ("", signal.SIGTSTP),
    ],
    ids=["handled", "ignored", "blocked", "harmless, blocked", "harmless", "stops only"],
)
def test_a_process_that_survives_its_signal_is_not_dying(
    preparation: str, number: signal.Signals
) -> None:
    with stopped_process(preparation) as pid:
        os.kill(pid, number)

        assert not dies_of_a_signal(pid)


def test_an_ended_process_is_not_dying() -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()

    assert not dies_of_a_signal(process.pid)
