"""A process that makes system calls for the chaos soak, and tells how each went.

It is told by pickles on its standard input: lists of steps, done in order up
to the first that fails. So a call that hangs, or is killed, hangs this process
and nothing else. Standard library only; it runs without site, to start quickly.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import pickle
import subprocess
import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from tests.soak.chaos_content import Recipe, Seen

if TYPE_CHECKING:
    from collections.abc import Callable

#: Bytes of one call.
CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class Step:
    """One call, or several of one kind, such as the writes of a file.

    Attributes:
        call: `open`, `write` and so on: a method of `_Agent`.
        arguments: Of that method.
    """

    call: str
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Done:
    """How a step went.

    Attributes:
        call: As in the step.
        error: The errno; 0 if it went well.
        longest: Seconds that the slowest system call of it took.
        value: What it returned; of a write that failed, the bytes that were written before.
        ended: When it ended, in monotonic seconds, the same in all processes.
        text: The error in words.
    """

    call: str
    error: int
    longest: float
    value: Any = None
    ended: float = 0.0
    text: str = ""


def read_steps(path: os.PathLike[str] | str) -> list[Step]:
    """Return the steps that read a whole file."""
    return [Step("open", (str(path), os.O_RDONLY)), Step("read"), Step("close")]


def seen_by(results: list[Done]) -> tuple[Seen | None, int]:
    """Return what reading has shown, and the errno of the call that failed, or 0."""
    seen = next((it.value for it in results if it.call == "read" and not it.error), None)
    return seen, next((it.error for it in results if it.error), 0)


@dataclass(slots=True)
class _Agent:
    """Does the steps."""

    descriptor: int = -1
    longest: float = 0.0
    written: int = 0
    calls: dict[str, Callable[..., Any]] = field(default_factory=dict)

    def run(self, steps: list[Step]) -> list[Done]:
        """Do steps up to the first that fails; a file that is open then is closed."""
        results: list[Done] = []
        for step in steps:
            results.append(self._do(step))
            if results[-1].error:
                break
        if self.descriptor >= 0:
            results.append(self._do(Step("close")))
        return results

    def _do(self, step: Step) -> Done:
        self.longest = 0.0
        error, text, value = 0, "", None
        begin = time.monotonic()
        try:
            value = getattr(self, step.call)(*step.arguments)
        except OSError as failure:
            error, text = failure.errno or -1, str(failure)
            value = self.written if step.call == "write" else None
        end = time.monotonic()
        return Done(step.call, error, self.longest or end - begin, value, end, text)

    def _timed(self, call: Callable[..., Any], *arguments: object) -> Any:  # noqa: ANN401
        begin = time.monotonic()
        try:
            return call(*arguments)
        finally:
            self.longest = max(self.longest, time.monotonic() - begin)

    def open(self, path: str, flags: int) -> None:
        """Open a file for the steps that follow."""
        self.descriptor = os.open(path, flags | os.O_CLOEXEC, 0o644)

    def close(self) -> None:
        """Close it, whatever comes of it."""
        descriptor, self.descriptor = self.descriptor, -1
        os.close(descriptor)

    def write(self, source: bytes | Recipe) -> None:
        """Write bytes where the file stands."""
        view = memoryview(source.make() if isinstance(source, Recipe) else source)
        self.written = 0
        while self.written < len(view):
            chunk = view[self.written : self.written + CHUNK]
            self.written += self._timed(os.write, self.descriptor, chunk)

    def fsync(self) -> None:
        """Sync the open file."""
        os.fsync(self.descriptor)

    def ftruncate(self, size: int) -> None:
        """Cut the open file."""
        os.ftruncate(self.descriptor, size)

    def read(self) -> Seen:
        """Read the open file to its end."""
        md5, size, head = hashlib.md5(usedforsecurity=False), 0, b""
        while chunk := self._timed(os.read, self.descriptor, CHUNK):
            head = head or chunk[:48]
            size += len(chunk)
            md5.update(chunk)
        return Seen(size, md5.hexdigest(), head)

    def attribute(self, path: str, name: str) -> str:
        """Return an extended attribute."""
        return os.getxattr(path, name).decode()

    def copy(self, source: bytes | Recipe, seconds: int, path: str, scratch: str) -> None:
        """Copy a local file of that content and modification time by `cp -p`."""
        with open(scratch, "wb") as file:
            file.write(source.make() if isinstance(source, Recipe) else source)
        os.utime(scratch, (seconds, seconds))
        done = self._timed(
            lambda: subprocess.run(
                ["cp", "-p", scratch, path], check=False, stderr=subprocess.PIPE
            )
        )
        if done.returncode:
            words = done.stderr.decode(errors="replace").strip()
            raise OSError(_errno_in(words), words)

    def rename(self, old: str, new: str) -> None:
        """Rename, over a file too."""
        os.replace(old, new)

    def truncate(self, path: str, size: int) -> None:
        """Cut a file by its name."""
        os.truncate(path, size)

    def unlink(self, path: str) -> None:
        """Remove a file."""
        os.unlink(path)

    def mkdir(self, path: str) -> None:
        """Make a directory."""
        os.mkdir(path)

    def rmdir(self, path: str) -> None:
        """Remove a directory."""
        os.rmdir(path)

    def list(self, path: str) -> list[str]:
        """List a directory."""
        return os.listdir(path)

    def stat(self, path: str) -> int:
        """Return a file's size."""
        return os.stat(path).st_size


def _errno_in(words: str) -> int:
    """Find the errno that a program's message is about; -1 if it can't be told."""
    for line in words.splitlines():
        for number in range(1, 134):
            if line.endswith(f": {os.strerror(number)}"):
                return number
    return -1


def main() -> None:
    """Do what comes, until the input ends."""
    agent = _Agent()
    while True:
        try:
            steps = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the soak
        except EOFError:
            return
        results = agent.run(steps)
        with contextlib.suppress(BrokenPipeError):
            pickle.dump(results, sys.stdout.buffer)
            sys.stdout.buffer.flush()
