"""What the workers of the chaos soak share: the situation, a gate, and agents that make calls."""

from __future__ import annotations

import contextlib
import errno
import pickle
import random
import select
import subprocess
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from tests.soak.chaos_cluster import COPIES
from tests.soak.chaos_content import md5_of
from tests.soak.chaos_findings import GONE

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from tests.soak.chaos_agent import Done, Step
    from tests.soak.chaos_cluster import Cluster
    from tests.soak.chaos_findings import Findings
    from tests.soak.chaos_mount import Life

_ROOT = Path(__file__).parents[2]
#: What the process of an agent runs.
_AGENT = "from tests.soak.chaos_agent import main; main()"
#: Where that a file isn't there is a right answer.
ENOENT = frozenset({errno.ENOENT})
#: How often the bound of a call a list of steps may take before it is reported as hung.
_HANGS_AFTER = 4


@dataclass(eq=False)
class Situation:
    """What is known to work for a while.

    Attributes:
        refuge: The service without a fault.
        sick: Services that have faults at times.
        is_certain: Whether reads that the refuge can answer must succeed.
        has_list: Whether the service list is the usual one.
        has_stalls: Whether transfers are held up.
        over_at: When the next situation began, in monotonic seconds.
    """

    refuge: int
    sick: frozenset[int]
    is_certain: bool
    has_list: bool = True
    has_stalls: bool = False
    over_at: float | None = None


#: Nothing is known: the mount ends, or a fault concerns everything.
UNKNOWN = (0, frozenset[int](), False)


class Stage:
    """The situation, and the gate by which the workers are held back.

    Args:
        cluster: The services.
        life: The mount.
        findings: Gets what is wrong.
    """

    def __init__(self, cluster: Cluster, life: Life, findings: Findings) -> None:
        self.cluster = cluster
        self.life = life
        self.findings = findings
        self.is_over = False
        self.situation = Situation(*UNKNOWN)
        self._changed = threading.Condition()
        self._is_open = False
        self._active = 0

    def enter(self, situation: Situation) -> None:
        """Begin another situation."""
        self.situation.over_at = time.monotonic()
        self.situation = situation

    def open_gate(self) -> None:
        """Let the workers go on."""
        with self._changed:
            self._is_open = True
            self._changed.notify_all()

    def close_gate(self, patience: float) -> bool:
        """Hold the workers back; tell whether they have stopped within that many seconds."""
        with self._changed:
            self._is_open = False
            return self._changed.wait_for(lambda: not self._active, patience)

    def finish(self) -> None:
        """Send the workers home."""
        with self._changed:
            self.is_over = True
            self._changed.notify_all()

    @contextlib.contextmanager
    def turn(self) -> Iterator[bool]:
        """Wait for the gate; yields False when all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._is_open or self.is_over)
            if self.is_over:
                yield False
                return
            self._active += 1
        try:
            yield True
        finally:
            with self._changed:
                self._active -= 1
                self._changed.notify_all()


class Counting(Protocol):
    """Of a stage, what counting copies needs."""

    cluster: Cluster
    findings: Findings


def check_copies(stage: Counting, subject: str, locators: str) -> None:
    """Count the copies of each block of a stored file."""
    for locator in filter(None, locators.split(",")):
        digest = locator[:32]
        if digest != md5_of(b""):
            intact, spoilt = stage.cluster.copies(digest)
            stage.findings.copied(subject, digest, intact, spoilt, COPIES)


class Agent:
    """A process that makes calls on the mount. One thread uses it.

    Args:
        findings: Gets calls that aren't answered.
        on_hang: Called when one isn't.
    """

    def __init__(self, findings: Findings, on_hang: Callable[[], None] = lambda: None) -> None:
        self._findings = findings
        self._on_hang = on_hang
        self._process = subprocess.Popen(
            [sys.executable, "-S", "-c", _AGENT],
            cwd=_ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, steps: Sequence[Step]) -> list[Done]:
        """Do steps up to the first that fails; the results end with that.

        Raises:
            EOFError: The process was ended meanwhile.
        """
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            process.stdin.write(pickle.dumps(list(steps)))
            process.stdin.flush()
        except OSError as error:
            raise EOFError from error
        patience: float | None = self._findings.bound * _HANGS_AFTER
        while not select.select([process.stdout], [], [], patience)[0]:
            calls = ", ".join(step.call for step in steps)
            words = next((str(it) for step in steps for it in step.arguments), "")
            expected = f"an answer to {calls} within {patience:.0f} s"
            self._findings.report("no answer", words, expected, "none")
            self._on_hang()
            patience = None
        results: list[Done] = pickle.load(process.stdout)  # noqa: S301 - from our own process
        return results

    def stop(self) -> None:
        """End the process; one that hangs in the mount ends with the mount."""
        self._process.kill()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(5)
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


class Worker(threading.Thread):
    """A thread that does one kind of thing again and again, through an agent.

    Args:
        name: Of the worker.
        stage: Shared with the others.
        seed: Of what it does.
    """

    def __init__(self, name: str, stage: Stage, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.stage = stage
        self.findings = stage.findings
        self.draw = random.Random(f"{seed} {name}")  # noqa: S311 - choices, not secrets
        self.agent = Agent(stage.findings)

    def run(self) -> None:
        """Act whenever the gate is open, until all is over."""
        with contextlib.suppress(EOFError):
            while True:
                with self.stage.turn() as goes_on:
                    if not goes_on:
                        return
                    try:
                        self.act()
                    except EOFError:
                        raise
                    except Exception as error:  # noqa: BLE001 - the soak's own fault, to be seen
                        self.findings.report(
                            "the soak failed", self.name, "it to work", repr(error)
                        )
                        time.sleep(1.0)
                if self.stage.life.pid is None:
                    time.sleep(0.05)

    def act(self) -> None:
        """Do one thing."""
        raise NotImplementedError

    def calls(
        self, subject: str, steps: Sequence[Step], *, may_fail: frozenset[int] = frozenset()
    ) -> tuple[list[Done], bool]:
        """Make calls, and check how long they took and how they failed.

        Args:
            subject: What they are about.
            steps: The calls.
            may_fail: Errnos that are right here.

        Returns:
            The results, and whether the mount was up all the time.
        """
        begin = time.monotonic()
        results = self.agent.run(steps)
        was_up = self.stage.life.was_up(begin)
        if was_up and any(it.error for it in results):
            was_up = self.stage.life.is_there()
        for done in results:
            # cp makes two calls that may wait: the write or flush, and the one after.
            seconds = done.longest / 2 if done.call == "copy" else done.longest
            self.findings.answered(subject, done.call, seconds)
            if done.error in GONE:
                was_up = False
            elif done.error and was_up and done.error not in may_fail:
                self.findings.failed(subject, done.call, done.error, done.text)
        return results, was_up

    def check_healthy(self, subject: str, situation: Situation, results: Sequence[Done]) -> None:
        """See that calls that no sick service concerns have worked, soon.

        Args:
            subject: What they are about.
            situation: What it was when they began.
            results: How they went.
        """
        if not situation.is_certain:
            return
        over_at = situation.over_at
        for done in results:
            begin = done.ended - done.longest
            if over_at is None or done.ended < over_at:
                self.findings.healthy(subject, done.call, done.longest, done.error)
            elif begin < over_at:
                # It waited into another situation: what counts is the wait in this one.
                self.findings.healthy(subject, done.call, over_at - begin)
