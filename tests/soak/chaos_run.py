"""A run of the chaos soak: epochs of faults, ends of the mount, and looks at what is there."""

from __future__ import annotations

import contextlib
import itertools
import random
import signal
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.soak.chaos_agent import Step
from tests.soak.chaos_cluster import Cluster
from tests.soak.chaos_content import ABSENT, identified
from tests.soak.chaos_faults import Faulty
from tests.soak.chaos_mount import REQUEST_TIMEOUT, Life
from tests.soak.chaos_plan import ALL, SERVICES, STALLS, Epoch, Planned, plan
from tests.soak.chaos_readers import BlockReader, Bystander
from tests.soak.chaos_stage import UNKNOWN, Agent, Situation, Stage
from tests.soak.chaos_verify import MountGoneError, Verifier
from tests.soak.chaos_writer import Writer

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from tests.soak.chaos_findings import Findings
    from tests.soak.chaos_stage import Worker

_WRITERS, _READERS, _FILES = 6, 4, 6
#: Attempts to mount before the state directory is set aside.
_ATTEMPTS = 3
#: Seconds that a mount at rest has to give back what it used.
_REST = REQUEST_TIMEOUT + 30.0
#: Bytes of the two blocks that are read at the end, to see that the budget is all there.
_BIG = 64 << 20


class HopelessError(Exception):
    """No mount can be made any more."""


@dataclass(frozen=True, slots=True)
class Scale:
    """How much is done at once, and how fast the situation changes.

    Attributes:
        epochs: Shortest and longest epoch, in seconds.
        end_once_in: The mount ends in one of so many epochs.
        big_once_in: One content among so many has blocks of 64 MiB; 0: none.
        without: Faults and ends that are left out; "odd times" are too.
    """

    epochs: tuple[float, float] = (10.0, 30.0)
    end_once_in: int = 3
    big_once_in: int = 400
    without: tuple[str, ...] = ()


class Chaos:
    """One run.

    Args:
        base: A directory of its own.
        findings: Gets what is wrong.
        scale: How much is done.
    """

    def __init__(self, base: Path, findings: Findings, scale: Scale) -> None:
        self._base = base
        self._findings = findings
        self._scale = scale
        self._exits = contextlib.ExitStack()
        self._draw = random.Random(findings.seed)  # noqa: S311 - moments, not secrets

    def run(self, minutes: float) -> None:
        """Run for that long, and a little for what is looked at in the end."""
        deadline = time.monotonic() + 60 * minutes
        with contextlib.ExitStack() as self._exits:
            self._build()
            try:
                self._return(orderly=True)
                scale = self._scale
                epochs = plan(self._findings.seed, scale.epochs, scale.end_once_in, scale.without)
                for epoch in itertools.takewhile(lambda _: time.monotonic() < deadline, epochs):
                    self._pass(epoch)
                self._finish()
            except HopelessError as error:
                self._findings.report("no mount any more", "the soak", "it to go on", str(error))

    def _build(self) -> None:
        enter, callback = self._exits.enter_context, self._exits.callback
        self._cluster = enter(Cluster(self._base))
        self._life = Life(self._base, self._cluster, self._findings)
        callback(self._life.mount.clean_up)
        self._faulty = Faulty(
            self._cluster,
            self._life.token_file,
            self._findings,
            self._life.process,
            self._life.disk_cache,
        )
        callback(self._faulty.end_all)
        self._stage = Stage(self._cluster, self._life, self._findings)
        seed, big = self._findings.seed, self._scale.big_once_in
        odd_times = not any(word in "odd times" for word in self._scale.without)
        self._writers = [
            Writer(f"writer{i}", self._stage, seed, _FILES, big, odd_times=odd_times)
            for i in range(_WRITERS)
        ]
        self._bystander = Bystander("bystander", self._stage, seed)
        readers = [BlockReader(f"reader{i}", self._stage, seed, big // 8) for i in range(_READERS)]
        self._workers: list[Worker] = [*self._writers, *readers, self._bystander]
        self._agent = Agent(self._findings, on_hang=self._life.kill)
        callback(self._agent.stop)
        for worker in self._workers:
            callback(worker.agent.stop)
        callback(self._stage.finish)
        self._verifier = Verifier(self._stage, self._agent, self._writers, self._faulty.tell)
        for worker in self._workers:
            worker.start()

    # --- an epoch ---------------------------------------------------------------

    def _pass(self, epoch: Epoch) -> None:
        """Let faults come and go, then end the mount, or go on."""
        self._findings.log(
            f"epoch {epoch.number}: {epoch.seconds:.0f} s, refuge {epoch.refuge},"
            f" sick {sorted(epoch.sick)}{'' if epoch.is_certain else ', uncertain'}"
            f"{', then ' + epoch.end if epoch.end else ''}"
        )
        has_list = not any(it.name.startswith("list: ") for it in epoch.faults)
        has_stalls = any(it.name in STALLS for it in epoch.faults)
        self._stage.enter(
            Situation(epoch.refuge, epoch.sick, epoch.is_certain, has_list, has_stalls)
        )
        self._stage.open_gate()
        died = self._run_faults(epoch)
        self._stage.enter(Situation(*UNKNOWN))
        if died or epoch.end:
            orderly = not died and self._end(epoch)
            self._faulty.end_all()
            if orderly and epoch.returns_full:
                orderly = self._kill_at_return()
            self._return(orderly=orderly)
        else:
            self._faulty.end_all()
            if epoch.quiesces:
                self._quiesce()

    def _run_faults(self, epoch: Epoch) -> bool:
        """Begin and end the faults in their time; tell whether the mount has died of them."""
        if any(it.name.startswith("limits: ") for it in epoch.faults):
            self._life.is_limited = True
        begin = time.monotonic()
        begun: set[Planned] = set()
        for moment, action in _actions(epoch):
            while (left := begin + moment - time.monotonic()) > 0:
                if self._life.died():
                    return True
                time.sleep(min(0.1, left))
            if action == "":
                break
            if isinstance(action, str):
                self._findings.log(f"signal: {action}")
                self._faulty.tell(signal.Signals[action])
            elif action in begun:
                self._faulty.end(action)
            else:
                begun.add(action)
                self._faulty.begin(action)
        return self._life.died()

    def _end(self, epoch: Epoch) -> bool:
        """End the mount while the faults are there, in the middle of what the workers do."""
        if epoch.end == "unmount":  # it must not be busy
            self._stop_workers(self._findings.bound * 3)
        else:
            self._stage.close_gate(0)
        return self._life.end(epoch.end, self._draw.uniform(0.2, 2.5))

    def _stop_workers(self, patience: float) -> None:
        if not self._stage.close_gate(patience):
            self._findings.report("no rest", "the workers", "all to end their calls", "not all do")

    def _kill_at_return(self) -> bool:
        """Mount while nothing can be stored, and kill that at once: what was put aside stays.

        Returns:
            False: that was no orderly end.
        """
        self._stop_workers(30)
        for writer in self._writers:
            for record in writer.records.values():
                record.put_aside()
        full = Planned("full", ALL, 0.0, 0.0, 0)
        self._faulty.begin(full)
        if self._life.start():
            self._life.end("SIGKILL", 0)
        self._faulty.end_all()
        return False

    # --- between two mounts -----------------------------------------------------

    def _return(self, *, orderly: bool) -> None:
        """Mount again, and look at everything.

        Raises:
            HopelessError: There is no mount to be had.
        """
        self._stop_workers(30)
        for attempt in range(_ATTEMPTS * 2):
            if attempt == _ATTEMPTS:
                self._set_state_aside()
            if not self._life.start():
                continue
            try:
                self._prepare()
                self._verifier.after_end(orderly=orderly, drained=self._life.was_told)
            except MountGoneError:
                self._wait_for_death()
                orderly = False
                continue
            self._life.take_fresh()
            return
        raise HopelessError(f"{_ATTEMPTS * 2} attempts")

    def _wait_for_death(self) -> None:
        deadline = time.monotonic() + 10
        while not self._life.died():
            if time.monotonic() > deadline:
                self._life.end("SIGKILL", 0)
                return
            time.sleep(0.1)

    def _set_state_aside(self) -> None:
        """Begin anew, since no mount lives with this state directory."""
        state = self._life.mount.base / "state"
        self._findings.report(
            "no mount with this state", str(state), "a mount that lives", f"{_ATTEMPTS} that don't"
        )
        if state.exists():
            state.rename(self._base / f"state-{time.monotonic_ns()}")
        for writer in self._writers:
            for record in writer.records.values():
                record.ended(ABSENT)

    def _prepare(self) -> None:
        """Make the workers' directories, and the file that the bystander syncs."""
        here = self._bystander.directory
        for directory in [here, *(writer.directory for writer in self._writers)]:
            self._agent.run([Step("mkdir", (str(directory),))])
        for name in ("file", "file2"):
            self._agent.run([Step("unlink", (str(here / name),))])
        self._agent.run([Step("rmdir", (str(here / "d"),))])
        flags = 0o101  # O_WRONLY | O_CREAT
        self._agent.run(
            [Step("open", (str(here / "file"), flags)), Step("write", (b"calm",)), Step("close")]
        )

    # --- at rest ----------------------------------------------------------------

    def _quiesce(self) -> None:
        """Have everybody rest, and look for what is left of the faults."""
        self._stop_workers(self._findings.bound * 3)
        try:
            self._verifier.at_rest()
            self._life.check_leaks(_REST)
            self._check_servers()
        except MountGoneError:
            self._wait_for_death()
            self._return(orderly=False)
        self._life.check_log()

    def _check_servers(self) -> None:
        """See that no request is under way at the services."""
        deadline = time.monotonic() + _REST
        while True:
            left = {
                f"service {i}": count
                for i, store in enumerate(self._cluster.stores)
                if (count := store.under_way("GET") + store.under_way("PUT"))
            }
            if not left or time.monotonic() > deadline:
                break
            time.sleep(0.5)
        if left:
            self._findings.report("a leak", "the mount at rest", "no request under way", str(left))

    def _finish(self) -> None:
        """Look at everything once more, over one more end."""
        self._findings.log("the end: no faults any more")
        self._quiesce()
        if self._scale.big_once_in:
            self._check_budget()
        self._life.end("unmount", 0)
        if self._life.unmount_said:
            said = self._life.unmount_said
            self._findings.report("a failed unmount", "the mount", "all to be stored", said)
        left = self._life.unsaved()
        if left:
            self._findings.report("unsaved at the end", "the mount", "nothing", "; ".join(left))
        self._return(orderly=True)
        self._life.end("SIGTERM", 0)

    def _check_budget(self) -> None:
        """Read two large blocks: there must be memory for both, as at the beginning."""
        for number in range(2):
            data = identified(f"budget {number}", _BIG)
            block = self._cluster.place(data, SERVICES)
            path = self._life.mount.by_id / block.locator
            results = self._agent.run([Step("open", (str(path), 0)), Step("read"), Step("close")])
            for done in results:
                self._findings.healthy(
                    f"large block {number}", done.call, done.longest, done.error
                )
            self._cluster.remove(block)


def _actions(epoch: Epoch) -> Iterator[tuple[float, Planned | str]]:
    """Go through what happens in an epoch: each fault twice, when it comes and when it goes.

    The last is nothing, at the end of the epoch.
    """
    actions: list[tuple[float, Planned | str]] = list(epoch.signals)
    for planned in epoch.faults:
        actions.append((planned.begin, planned))
        if planned.end < epoch.seconds:
            actions.append((planned.end, planned))
    actions.sort(key=lambda it: it[0])
    yield from actions
    yield epoch.seconds, ""
