"""Readers of the chaos soak: of blocks, by their locators, and of what needs no service."""

from __future__ import annotations

import itertools
import os
import time
from typing import TYPE_CHECKING

from tests.soak.chaos_agent import Done, Step, read_steps, seen_by
from tests.soak.chaos_content import SIZES, Content, identified, md5_of
from tests.soak.chaos_plan import SERVICES
from tests.soak.chaos_stage import ENOENT, Situation, Stage, Worker

if TYPE_CHECKING:
    from pathlib import Path

    from tests.soak.chaos_cluster import Placed

_BLOCK = 64 << 20


class BlockReader(Worker):
    """Reads blocks by their locators; most must be had, some must not.

    Args:
        name: Of the worker.
        stage: Shared with the others.
        seed: Of what it does.
        big_once_in: One block among so many has 64 MiB; 0: none.
    """

    def __init__(self, name: str, stage: Stage, seed: int, big_once_in: int) -> None:
        super().__init__(name, stage, seed)
        self._big_once_in = big_once_in
        self._numbers = itertools.count(1)

    def act(self) -> None:
        """Read a fresh block, or several, of one kind."""
        kinds = (self._healthy, self._healthy, self._any, self._alone, self._missing, self._list)
        self.draw.choice((*kinds, self._spoilt))()
        time.sleep(0.01)

    def _healthy(self) -> None:
        """Read a block whose first service is the refuge: no other is needed."""
        situation = self.stage.situation
        while True:
            data = self._fresh()
            if self.stage.cluster.order(md5_of(data))[0] == situation.refuge:
                break
        block = self.stage.cluster.place(data, SERVICES)
        results = self._read("healthy block", [block], situation)
        self.check_healthy(f"healthy block {block.digest}", situation, results)

    def _any(self) -> None:
        """Read a block that all services have, at least one of which works."""
        data = self._fresh()
        once_in = 3 if self.stage.situation.has_stalls else self._big_once_in
        if self._big_once_in and self.draw.randrange(once_in) == 0:
            data = identified(f"{self.name} {next(self._numbers)}", _BLOCK)
        self._read("block", [self.stage.cluster.place(data, SERVICES)], self.stage.situation)

    def _alone(self) -> None:
        """Read a block that the refuge alone has."""
        situation = self.stage.situation
        block = self.stage.cluster.place(self._fresh(), [situation.refuge])
        self._read("block of one service", [block], situation)

    def _list(self) -> None:
        """Read several blocks as one file."""
        count = self.draw.choice((2, 3))
        blocks = [self.stage.cluster.place(self._fresh(), SERVICES) for _ in range(count)]
        self._read("list of blocks", blocks, self.stage.situation)

    def _spoilt(self) -> None:
        """Read a block of which one copy is spoilt, not the refuge's."""
        situation = self.stage.situation
        block = self.stage.cluster.place(self._fresh(), SERVICES)
        others = [it for it in SERVICES if it != situation.refuge]
        self.stage.cluster.spoil(block, self.draw.choice(others))
        self._read("block with a spoilt copy", [block], situation)

    def _missing(self) -> None:
        """Look for a block that nobody has."""
        data = self._fresh()
        name = f"{md5_of(data)}+{len(data)}"
        path = self.stage.life.mount.by_id / name
        results, _ = self.calls(f"missing block {name}", read_steps(path), may_fail=ENOENT)
        self.findings.count("read missing block")
        seen, _ = seen_by(results)
        if seen is not None:
            self.findings.content(f"missing block {name}", seen, [])

    def _fresh(self) -> bytes:
        return identified(f"{self.name} {next(self._numbers)}", self.draw.choice(SIZES))

    def _read(self, what: str, blocks: list[Placed], situation: Situation) -> list[Done]:
        """Read blocks; they must be had, unless the situation is uncertain."""
        path = self.stage.life.mount.by_id / ",".join(it.locator for it in blocks)
        subject = f"{what} {blocks[0].digest}"
        results, was_up = self.calls(subject, read_steps(path))
        self.findings.count(f"read {what}")
        seen, error = seen_by(results)
        if not error:
            data = b"".join(it.data for it in blocks)
            self.findings.content(subject, seen, [Content.of(subject, data)])
        elif was_up and situation.is_certain and situation.over_at is None:
            failed = next(it for it in results if it.error)
            self.findings.report(
                "a block that can be had was not",
                subject,
                f"its bytes, which service {situation.refuge} has",
                f"{failed.call}: {failed.text} after {failed.longest:.1f} s",
            )
        for block in blocks:
            self.stage.cluster.remove(block)
        return results


class Bystander(Worker):
    """Makes calls in upload/ that need no service: they must be answered soon."""

    @property
    def directory(self) -> Path:
        """Where it does so."""
        return self.stage.life.mount.upload / self.name

    def act(self) -> None:
        """Make one such call."""
        here, file = str(self.directory), str(self.directory / "file")
        scripts = (
            ("mkdir", [Step("mkdir", (f"{here}/d",)), Step("rmdir", (f"{here}/d",))]),
            ("fsync of a stored file", _synced(file)),
            ("fsync of a directory", _synced(here)),
            ("stat", [Step("stat", (file,)), Step("stat", (f"{here}/no",))]),
            ("list", [Step("list", (here,))]),
            ("state", [Step("attribute", (file, "user.keep.state"))]),
            ("rename", [Step("rename", (file, file + "2")), Step("rename", (file + "2", file))]),
        )
        name, steps = self.draw.choice(scripts)
        situation = self.stage.situation
        results, was_up = self.calls(f"{self.name}: {name}", steps, may_fail=ENOENT)
        self.findings.count("call without a service")
        if was_up:
            right = [it for it in results if it.error not in ENOENT or name != "stat"]
            self.check_healthy(f"{self.name}: {name}", situation, right)
        time.sleep(0.02)


def _synced(path: str) -> list[Step]:
    return [Step("open", (path, os.O_RDONLY)), Step("fsync"), Step("close")]
