"""Writers of the chaos soak: they change files in every way, and know what each must have."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

from tests.soak.chaos_agent import CHUNK, Done, Step, read_steps, seen_by
from tests.soak.chaos_cluster import COPIES
from tests.soak.chaos_content import ABSENT, FEWEST, SIZES, Content, Recipe, identified, md5_of
from tests.soak.chaos_findings import GONE
from tests.soak.chaos_ledger import Part, Record
from tests.soak.chaos_mount import REQUEST_TIMEOUT, SLACK
from tests.soak.chaos_stage import ENOENT, Situation, Stage, Worker, check_copies

if TYPE_CHECKING:
    from pathlib import Path

_BLOCK = 64 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
#: Modification times that `cp -p` brings: 1901, 1970, now or so, 2038, 2106, 2300.
_TIMES = (-2_174_774_400, 0, 1_764_000_000, 2_150_000_000, 4_300_000_000, 10_413_792_000)


class Writer(Worker):
    """Changes files of its own in every way, and knows what each must have.

    Args:
        name: Of the worker and of its directory in upload/.
        stage: Shared with the others.
        seed: Of what it does.
        files: How many it has.
        big_once_in: One content among so many has several blocks of 64 MiB; 0: none.
        odd_times: Whether `cp -p` brings times that are far away.
    """

    def __init__(
        self,
        name: str,
        stage: Stage,
        seed: int,
        files: int,
        big_once_in: int,
        *,
        odd_times: bool = True,
    ) -> None:
        super().__init__(name, stage, seed)
        self._times = _TIMES if odd_times else _TIMES[2:3]
        self.records = {f"f{number}": Record(f"{name}/f{number}") for number in range(files)}
        self._big_once_in = big_once_in
        self._versions = itertools.count(1)
        self._scratch = stage.life.mount.base / f"scratch-{name}"

    @property
    def directory(self) -> Path:
        """Where its files are."""
        return self.stage.life.mount.upload / self.name

    def act(self) -> None:
        """Change a file, and look at it."""
        failed = [it for it in self.records.values() if it.failed_at is not None]
        if failed and self.draw.random() < 0.2:
            self._look_at_state(self.draw.choice(failed))
            return
        record = self.draw.choice(list(self.records.values()))
        once_in = self._big_once_in // (10 if self.stage.situation.has_stalls else 1)
        if self._big_once_in and self.draw.randrange(once_in) == 0:
            self._change_big(record)
        else:
            ways = (
                *((self._overwrite,) * 6),
                *((self._replace, self._copy, self._append) * 2),
                *(self._truncate, self._cut, self._unlink),
            )
            self.draw.choice(ways)(record)
        if self.draw.random() < 0.4:
            self._look_at(record)
        time.sleep(0.01)

    # --- ways to change a file --------------------------------------------------

    def _label(self, record: Record) -> str:
        return f"{record.path} v{next(self._versions)}"

    def _fresh(self, record: Record) -> Content:
        label = self._label(record)
        return Content.of(label, identified(label, self.draw.choice((0, *SIZES))))

    def _overwrite(self, record: Record) -> None:
        situation = self.stage.situation
        content = self._fresh(record)
        is_healthy = situation.is_certain and situation.has_list and len(situation.sick) == 1
        if is_healthy and self.draw.random() < 0.5:
            content = self._for_healthy(record, situation)
        else:
            is_healthy = False
        synced = [Step("fsync")] if self.draw.random() < 0.3 else []
        steps = [
            Step("open", (self._path(record), _NEW)),
            Step("write", (content.data(),)),
            *synced,
            Step("close"),
        ]
        results = self._change(record, content, steps)
        if is_healthy:
            self.check_healthy(record.path, situation, results)

    def _for_healthy(self, record: Record, situation: Situation) -> Content:
        """Make a content whose block goes to services that aren't sick."""
        label = self._label(record)
        for nonce in itertools.count():
            data = identified(f"{label} {nonce}", self.draw.choice(SIZES))
            first = self.stage.cluster.order(md5_of(data))[:COPIES]
            if situation.sick.isdisjoint(first):
                return Content.of(f"{label} {nonce}", data)
        raise AssertionError

    def _change_big(self, record: Record) -> None:
        label = self._label(record)
        size = _BLOCK * self.draw.choice((1, 2)) + self.draw.choice((0, 1, 1_000_000))
        content = Content.of(label, Recipe(label, size))
        steps = [
            Step("open", (self._path(record), _NEW)),
            Step("write", (content.source,)),
            Step("close"),
        ]
        self._change(record, content, steps)

    def _replace(self, record: Record) -> None:
        content, new = self._fresh(record), f"{self._path(record)}.new"
        record.new = content
        steps = [Step("open", (new, _NEW)), Step("write", (content.data(),)), Step("close")]
        results, was_up = self.calls(record.path, steps)
        self.findings.count("replace")
        if not was_up:
            return
        if any(it.error for it in results[:2]):  # not all of it is written
            self.calls(f"{record.path}.new", [Step("unlink", (new,))], may_fail=ENOENT)
            return
        record.begin(content)
        renamed, was_up = self.calls(record.path, [Step("rename", (new, self._path(record)))])
        if not renamed[0].error and not results[-1].error:
            record.ended(content)
        elif not was_up:
            return
        elif renamed[0].error:
            self._report_failed(record, renamed[0])
        else:
            record.failed(content, results[-1].ended, whole=True)

    def _append(self, record: Record) -> None:
        if record.live is None or isinstance(record.live.source, Recipe | None):
            return
        label = self._label(record)
        more = identified(label, self.draw.choice(SIZES))
        content = Content.of(f"{label}, appended", record.live.data() + more)
        if content.size > 1 << 20:
            return
        steps = [
            Step("open", (self._path(record), os.O_WRONLY | os.O_APPEND)),
            Step("write", (more,)),
            Step("close"),
        ]
        self._change(record, content, steps)

    def _copy(self, record: Record) -> None:
        content = self._fresh(record)
        arguments = (
            content.data(),
            self.draw.choice(self._times),
            self._path(record),
            str(self._scratch),
        )
        self._change(record, content, [Step("copy", arguments)])

    def _shorter(self, record: Record) -> Content | None:
        if record.live is None or isinstance(record.live.source, Recipe | None):
            return None
        data = record.live.data()
        size = self.draw.choice((0, self.draw.randint(min(FEWEST, len(data)), len(data))))
        return Content.of(f"{record.live.label}, cut to {size}", data[:size])

    def _truncate(self, record: Record) -> None:
        content = self._shorter(record)
        if content is not None:
            self._change(record, content, [Step("truncate", (self._path(record), content.size))])

    def _cut(self, record: Record) -> None:
        content = self._shorter(record)
        if content is not None:
            opened = Step("open", (self._path(record), os.O_RDWR))
            self._change(
                record, content, [opened, Step("ftruncate", (content.size,)), Step("close")]
            )

    def _unlink(self, record: Record) -> None:
        if record.live in {None, ABSENT}:
            return
        record.begin(ABSENT)
        results, was_up = self.calls(record.path, [Step("unlink", (self._path(record),))])
        self.findings.count("unlink")
        if was_up and results[0].error:
            self._report_failed(record, results[0])
        elif was_up:
            record.ended(ABSENT)

    def _change(self, record: Record, content: Content, steps: list[Step]) -> list[Done]:
        """Change a file, and note what came of it."""
        record.begin(content)
        results, was_up = self.calls(record.path, steps)
        self.findings.count({"copy": "cp -p", "truncate": "truncate"}.get(steps[0].call, "write"))
        record.part = _part_of(content, steps, results)
        errors = {it.call: it for it in results if it.error}
        if not errors:
            # Also where the mount ends meanwhile: 0 is 0.
            record.ended(content)
        elif not was_up:
            pass
        elif set(errors) <= {"fsync", "close"}:
            if "close" not in errors or ("fsync" not in errors and _was_synced(results)):
                record.ended(content)
            else:
                record.failed(content, errors["close"].ended, whole=True)
        else:
            last = results[-1]
            is_whole = last.call == "copy" and "failed to close" in last.text
            record.failed(content, last.ended, whole=is_whole)
        return results

    def _report_failed(self, record: Record, done: Done) -> None:
        self.findings.report(
            "a call that needs no service failed", record.path, f"{done.call} to work", done.text
        )

    # --- looking at a file ------------------------------------------------------

    def _look_at(self, record: Record) -> None:
        """Read a file, count the copies of one that is stored, and read it by its locator."""
        results, was_up = self.calls(
            record.path,
            read_steps(self.stage.life.mount.upload / record.path),
            may_fail=ENOENT if record.live in {None, ABSENT} else frozenset(),
        )
        self.findings.count("read back")
        seen, error = seen_by(results)
        if not was_up or (error and error not in ENOENT):
            return
        if error and not results[0].error:
            return  # a block couldn't be read, which has been judged
        record.check_live(seen, self.findings)
        if record.live is record.acknowledged and record.live.source is not None:
            self._check_copies(record)

    def _check_copies(self, record: Record) -> None:
        wanted = Step("attribute", (self._path(record), "user.keep.locator"))
        results, was_up = self.calls(record.path, [wanted])
        if not was_up or results[0].error:
            return
        locators: str = results[0].value
        check_copies(self.stage, record.path, locators)
        if self.draw.random() < 0.3 and locators:
            name = self.stage.life.mount.by_id / locators
            read, was_up = self.calls(f"by_id of {record.path}", read_steps(name))
            seen, error = seen_by(read)
            self.findings.count("read by locator")
            if was_up and not error:
                self.findings.content(f"by_id of {record.path}", seen, [record.acknowledged])

    def _look_at_state(self, record: Record) -> None:
        failed_at = record.failed_at
        asked = Step("attribute", (self._path(record), "user.keep.state"))
        results, was_up = self.calls(record.path, [asked], may_fail=ENOENT)
        self.findings.count("look at state")
        if not was_up or results[0].error or failed_at is None:
            return
        state: str = results[0].value
        age = time.monotonic() - failed_at
        if state == "dirty" and age > REQUEST_TIMEOUT + SLACK:
            self.findings.report(
                "left dirty",
                record.path,
                f"stored, failed or storing {REQUEST_TIMEOUT:.0f} s after its close failed",
                f"dirty after {age:.0f} s",
            )
            record.failed_at = None
        elif state == "stored" and record.kept is not None:
            record.ended(record.kept)

    def _path(self, record: Record) -> str:
        return str(self.stage.life.mount.upload / record.path)


def _part_of(content: Content, steps: list[Step], results: list[Done]) -> Part | None:
    """Return what a write that failed while the mount was there may have left in the file."""
    for step, done in zip(steps, results, strict=False):
        if not done.error or done.error in GONE:
            continue
        if done.call == "copy":
            return Part(content, 0, content.size)
        if done.call == "write":
            source: bytes | Recipe = step.arguments[0]
            size = source.size if isinstance(source, Recipe) else len(source)
            least = content.size - size + done.value
            return Part(content, least, min(content.size, least + CHUNK))
    return None


def _was_synced(results: list[Done]) -> bool:
    return any(it.call == "fsync" and not it.error for it in results)
