"""Looking at all files of the chaos soak while no fault is there: after an end, and at rest."""

from __future__ import annotations

import signal
import time
from typing import TYPE_CHECKING

from tests.soak.chaos_agent import Step, read_steps, seen_by
from tests.soak.chaos_findings import GONE, name_of
from tests.soak.chaos_ledger import Record, original_of
from tests.soak.chaos_stage import check_copies

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from tests.soak.chaos_agent import Done
    from tests.soak.chaos_content import Seen
    from tests.soak.chaos_stage import Agent, Stage
    from tests.soak.chaos_writer import Writer

#: Seconds in which every kept file is stored once no fault is there.
STORED_WITHIN = 90.0

#: Seconds after which it is told to retry at once: at first it must do so by itself.
_RETRY_AFTER = 6.0


class MountGoneError(Exception):
    """The mount has ended while it was looked at."""


class Verifier:
    """Looks at the files of all writers, who rest meanwhile. One thread uses it.

    Args:
        stage: The mount and the services.
        agent: Makes the calls.
        writers: Whose files.
        tell: Sends the mount a signal.
    """

    def __init__(
        self,
        stage: Stage,
        agent: Agent,
        writers: Iterable[Writer],
        tell: Callable[[signal.Signals], None],
    ) -> None:
        self._stage = stage
        self._findings = stage.findings
        self._agent = agent
        self._writers = list(writers)
        self._tell = tell
        #: Blocks of the files as they are stored.
        self._digests: set[str] = set()

    def after_end(self, *, orderly: bool, drained: bool) -> None:
        """Compare all files with what they must have after an end of the mount, and go on from it.

        Args:
            orderly: Whether the mount had the time to put aside what isn't stored.
            drained: Whether it was told to end.

        Raises:
            MountGoneError: The mount has ended again.
        """
        for writer in self._writers:
            self._after_end(writer, orderly=orderly, drained=drained)
        self._stage.life.was_told = False
        self.at_rest()

    def at_rest(self) -> None:
        """See that all files become stored, have their copies, and what they must have.

        Blocks that are of no use any more are taken out of the services.

        Raises:
            MountGoneError: The mount has ended.
        """
        all_stored = self._wait_until_stored()
        self._digests.clear()
        for writer in self._writers:
            for record in writer.records.values():
                self._check_stored(record)
        # Of a file that is not stored after all, the blocks aren't known.
        removed = self._stage.cluster.keep_only(self._digests) if all_stored else 0
        self._findings.log(f"{len(self._digests)} blocks in use, {removed} others removed")

    def _after_end(self, writer: Writer, *, orderly: bool, drained: bool) -> None:
        found: dict[str, Seen] = {}
        names = self._list(writer)
        for name in names:
            seen = self._read(f"{writer.name}/{name}")
            if seen is not None:
                found[name] = seen
        for name, record in writer.records.items():
            beside = {other: seen for other, seen in found.items() if original_of(other) == name}
            if name in found or name not in names:
                record.check_after_end(
                    found.get(name), beside, self._findings, orderly=orderly, drained=drained
                )
                record.adopt(found.get(name))
            self._check_new(record, name, found)
        known = set(writer.records)
        for name in names:
            if name in known:
                continue
            if (original_of(name) or name).removesuffix(".new") not in known:
                self._findings.report("an unknown file", f"{writer.name}/{name}", "none", "one")
            self._call([Step("unlink", (str(writer.directory / name),))])

    def _check_new(self, record: Record, name: str, found: Mapping[str, Seen]) -> None:
        """Look at what was to be renamed over a file."""
        for other, seen in found.items():
            if (original_of(other) or other) == f"{name}.new":
                may = [] if record.new is None else [record.new]
                self._findings.content(f"{record.path}.new", seen, may, may)
        record.new = None

    def _wait_until_stored(self) -> bool:
        """Wait until nothing is unsaved any more; what takes too long is reported.

        Returns:
            Whether all files are stored.
        """
        begin = told = time.monotonic()
        waiting = {
            record.path: record for writer in self._writers for record in writer.records.values()
        }
        while True:
            states: dict[str, str] = {}
            for path in list(waiting):
                name = str(self._stage.life.mount.upload / path)
                done = self._call([Step("attribute", (name, "user.keep.state"))])[0]
                # A file that isn't there is judged when it is read.
                state = "stored" if done.error else str(done.value)
                if state == "stored":
                    del waiting[path]
                else:
                    states[path] = state
            if not waiting:
                return True
            if time.monotonic() - begin > STORED_WITHIN:
                break
            if time.monotonic() > told + _RETRY_AFTER:
                told = time.monotonic()
                self._tell(signal.SIGUSR1)
            time.sleep(0.2)
        for path, state in states.items():
            name = str(self._stage.life.mount.upload / path)
            why = self._call([Step("attribute", (name, "user.keep.error"))])[0].value
            self._findings.report(
                "not stored after all",
                path,
                f"it to be stored {STORED_WITHIN:.0f} s after the last fault",
                f"{state}: {why}",
            )
        return False

    def _check_stored(self, record: Record) -> None:
        path = self._stage.life.mount.upload / record.path
        results = self._call(read_steps(path))
        seen, error = seen_by(results)
        if error and results[0].call == "open" and not results[0].error:
            self._unreadable(record.path, error)
            return
        record.check_live(seen, self._findings)
        if seen is None:
            return
        record.adopt(seen)
        asked = self._call([Step("attribute", (str(path), "user.keep.locator"))])[0]
        if not asked.error:
            locators: str = asked.value
            check_copies(self._stage, record.path, locators)
            self._digests.update(it[:32] for it in locators.split(",") if it)

    def _list(self, writer: Writer) -> list[str]:
        done = self._call([Step("list", (str(writer.directory),))])[0]
        if done.error:
            self._unreadable(f"the directory {writer.name}", done.error)
            self._call([Step("mkdir", (str(writer.directory),))])
            return []
        names: list[str] = done.value
        return names

    def _read(self, path: str) -> Seen | None:
        results = self._call(read_steps(self._stage.life.mount.upload / path))
        seen, error = seen_by(results)
        if error:
            self._unreadable(path, error)
        return seen

    def _unreadable(self, path: str, error: int) -> None:
        expected = "it to be readable while no fault is there"
        self._findings.report("a file can't be read", path, expected, name_of(error))

    def _call(self, steps: list[Step]) -> list[Done]:
        results = self._agent.run(steps)
        errors = {it.error for it in results} - {0}
        if errors & GONE or (errors and not self._stage.life.is_there()):
            raise MountGoneError
        return results
